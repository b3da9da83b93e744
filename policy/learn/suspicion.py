# SPDX-License-Identifier: Apache-2.0
"""Why a sighting should be looked at before it is believed: what intruders do and workloads seldom do. Pure, and static.

A reason is no verdict. What has one is learnt once two instances did it, or when somebody accepts it; until then it is set apart.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from stat import S_ISGID, S_ISUID
from typing import Final

from policy.judge.sockets import LOCAL
from policy.learn import zones
from policy.learn.sightings import Sighting, paths
from schemas.behaviour import Behaviour
from schemas.operations import Access, Class, Operation

_EMPTIED: Final = int(Access.TRUNCATE)
_OWN: Final = int(Access.OWN)
_WITH_MODE: Final = frozenset((Operation.CHMOD, Operation.MKNOD))
"""Of these the first argument is the mode (`schemas/watched.py`)."""


def reason(behaviour: Behaviour, write: bool) -> str:
    """A few words; "" when nothing is odd. Of files (`write`: they are changed) and sockets; of programs `executed` knows."""
    match behaviour.cls:
        case Class.FILE:
            return _touched(behaviour, write)
        case Class.NETWORK:
            if behaviour.family not in LOCAL and behaviour.socket_type & 0xF in (3, 10):
                return "a raw socket"
            return ""
    return ""


def executed(one: Sighting, written: Mapping[str, int], *, entry: bool = False) -> str:
    """The same of a program. `written`: paths that the workload itself has written, with when first (Unix ns). `entry`: the container
    was started with it."""
    for path in paths(one.behaviour):
        if written.get(path, one.first + 1) <= one.first:
            return "a program that the workload itself has written"
        if zones.temporary(posixpath.dirname(path)) or path.startswith("/proc/"):
            return "a program in a directory for temporary files"
        if posixpath.basename(path).startswith("."):
            return "a program with a hidden name"
        if posixpath.basename(path) in zones.TOOLS and not entry:
            return "a tool that moves data, builds or changes the system"
        if zones.interpreter(posixpath.basename(path)) and not entry:
            return "an interpreter, which runs whatever it is given"
    return ""


def _touched(behaviour: Behaviour, write: bool) -> str:
    if not write and behaviour.operation is Operation.OPEN and not behaviour.resource.startswith(zones.WITH_SECRETS):
        # Nearly all that there is.
        return ""
    for path in paths(behaviour):
        if zones.secret(path) and not int(behaviour.access) & _OWN:
            return "a secret"
        if not write:
            continue
        if zones.persistent(path):
            return "something that is run or believed later"
        if zones.served(path):
            return "a script where a web server runs it"
        if zones.code(path):
            return "a program or a library is changed"
        if behaviour.operation in _WITH_MODE and behaviour.args[0] & (S_ISUID | S_ISGID):
            return "a file becomes set-user-ID"
        if path.startswith("/var/log/") and behaviour.operation in (Operation.UNLINK, Operation.TRUNCATE):
            return "a log is removed"
        if int(behaviour.access) & _EMPTIED and zones.record(path):
            return "a record of the system is emptied"
    return ""
