# SPDX-License-Identifier: Apache-2.0
"""Why a node stopped what no rule of the current policies stops, as the `Message` of its alert.

Pure, asked only for such denials. It names the setting or the limit that stopped the call where the behaviour shows which; where it does not,
it says so instead of choosing one. Neighbours: `processors.alerts`, docs/enforcement.md "What is told".
"""

from __future__ import annotations

from typing import Final

from schemas.behaviour import Behaviour
from schemas.operations import Access, Backend, Operation
from schemas.socket_names import EXTENSION_HEADERS, INET6

UNKNOWN: Final = (
    "blocked on the node, by no rule of the current policies: its plan was older than they are, or"
    ' `enforcement.unresolved = "stop"` denied what a rule on a source or a file without a path could not decide'
)
_MOUNTING: Final = frozenset((Operation.MOUNT, Operation.CALL))
_SENDING: Final = frozenset((Operation.SEND, Operation.CONNECT))


def denial_reason(behaviour: Behaviour) -> str:
    """One sentence for a denial that no policy explains."""
    if behaviour.syscall_name == "io_uring_setup":
        return "ended by enforcement.io_uring=stop: what goes through a ring is no system call that a rule sees"
    if behaviour.enforcer is Backend.BPF_LSM and behaviour.operation in _MOUNTING:
        return "denied by enforcement.mounts=stop: a mount gives a file another path, under which no rule knows it"
    if behaviour.access & Access.PARTIAL:
        return (
            'blocked on the node for a path that could not be told whole: by `enforcement.unresolved = "stop"`, or by a rule on what is'
            " left out"
        )
    if _behind_headers(behaviour):
        return (
            "denied by the cgroup backend: the packet has more extension headers of IPv6 than are looked behind, or one is"
            " cut, so its port could not be found and no rule on ports could be asked"
        )
    return UNKNOWN


def _behind_headers(behaviour: Behaviour) -> bool:
    """A packet of which only another extension header was found is told with that header as its protocol, without a port."""
    return (
        behaviour.enforcer is Backend.CGROUP
        and behaviour.operation in _SENDING
        and behaviour.family == INET6
        and behaviour.port == 0
        and behaviour.protocol in EXTENSION_HEADERS
    )
