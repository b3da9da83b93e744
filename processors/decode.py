# SPDX-License-Identifier: Apache-2.0
"""Hot: definition bytes to `Behaviour` and `ProcessContext`. Runs for ids that no cache knows, never per event.

Bytes come from workloads, so every string is hostile: what is not UTF-8 is judged as surrogates (each byte kept apart) and
told as `\\xff`, because no envelope carries surrogates. Must never evaluate or enrich. Neighbours: `schemas.kernel` (the
layouts), `processors.judge` (the caller).
"""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Final

import msgspec

from schemas import frame as frames
from schemas import socket_names
from schemas.behaviour import Behaviour
from schemas.decoding import LARGEST
from schemas.errors import DecodeError, Incompatible
from schemas.kernel import BEHAVIOUR, DEFINITION, PROCESS, DefinitionKind, ProcessFlag
from schemas.operations import Access, Backend, Operation
from schemas.syscalls import BY_ARCHITECTURE
from schemas.syscalls import name as syscall_name
from schemas.telemetry import ProcessContext
from schemas.watched import CALLS, texts

_BEHAVIOUR: Final = BEHAVIOUR.struct.unpack_from
_PROCESS: Final = PROCESS.struct.unpack_from
_HEAD: Final = DEFINITION.struct.unpack_from
_PLACE: Final = DefinitionKind.CGROUP.value
_OPERATIONS: Final[dict[int, Operation]] = {member.value: member for member in Operation}
_BACKENDS: Final[dict[int, Backend]] = {member.value: member for member in Backend}
_CAPABLE: Final = Operation.CAPABLE
_DNS: Final = Operation.DNS
_TEXTUAL: Final = {call for call, row in CALLS.items() if texts(row)}
_MAPPED: Final = bytes(10) + b"\xff\xff"
_TEXTS: Final = ("executable", "parent", "resource", "resource2", "detail", "script")
_SCRIPT: Final = BEHAVIOUR.offsets["script"]


_ACCESS: Final[dict[int, Access]] = {}


def _access(bits: int) -> Access:
    if len(_ACCESS) < 4096:
        _ACCESS[bits] = Access(bits)
    return Access(bits)


@lru_cache(4096)
def address_text(family: int, raw: bytes) -> str:
    """`10.0.0.1`, `2001:db8::1`; an IPv4 address mapped into IPv6 is told as IPv4; "" for other families."""
    if family == socket_names.INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if family != socket_names.INET6:
        return ""
    if raw[:12] == _MAPPED:
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def text(raw: bytes) -> str:
    """As the kernel has it: undecodable bytes become lone surrogates, one each, so that no two paths become one."""
    return raw.decode("utf-8", "surrogateescape")


def tellable(value: str) -> str:
    """`value` with surrogates as `\\xff`: fit for msgpack and JSON."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def tellable_behaviour(behaviour: Behaviour) -> Behaviour:
    """The behaviour with every string tellable; for those in `DecodedDefinitions.odd`."""
    changed = {}
    for name in _TEXTS:
        value: str = getattr(behaviour, name)
        if not value.isascii() and (safe := tellable(value)) != value:
            changed[name] = safe
    return msgspec.structs.replace(behaviour, **changed) if changed else behaviour


def leading_cgroups(data: bytes) -> dict[int, str]:
    """Paths of the cgroups that a frame's definitions begin with: id -> path. Without reading further, for every frame has some.
    What is no record there is left to `DecodedDefinitions`."""
    found: dict[int, str] = {}
    at, end, head = 0, len(data), DEFINITION.size
    while at + head <= end:
        ident, kind, size = _HEAD(data, at)
        at += head
        if kind != _PLACE or at + size > end:
            break
        found[ident] = tellable(text(data[at : at + size].rstrip(b"\0")))
        at += size + (-size % 8)
    return found


class DecodedDefinitions:
    """The definitions of one frame by kind. `odd`: ids of behaviours decoded here that hold a string that was not UTF-8.
    Raises DecodeError when the run of records is not one."""

    __slots__ = (
        "_architecture",
        "_calls",
        "_strings",
        "_surrogates",
        "_texts",
        "behaviours",
        "odd",
        "processes",
    )

    def __init__(self, data: bytes, architecture: str) -> None:
        self._architecture = architecture
        self._calls = BY_ARCHITECTURE.get(architecture, {})
        self._strings: dict[int, bytes] = {}
        self._texts: dict[int, str] = {0: ""}
        self._surrogates: set[int] = set()
        self.behaviours: dict[int, bytes] = {}
        self.processes: dict[int, bytes] = {}
        self.odd: set[int] = set()
        by_kind: dict[int, dict[int, bytes]] = {
            DefinitionKind.STRING: self._strings,
            DefinitionKind.BEHAVIOUR: self.behaviours,
            DefinitionKind.PROCESS: self.processes,
        }
        for ident, kind, body in frames.definitions(data):
            table = by_kind.get(kind)
            if table is not None:
                table[ident] = body

    def string(self, ident: int) -> str:
        """The string called `ident`; "" for 0 and for one the agent did not get."""
        known = self._texts.get(ident)
        if known is None:
            raw = self._strings.get(ident, b"")
            if raw.endswith(b"\0"):
                raw = raw.rstrip(b"\0")
            try:
                known = raw.decode()
            except UnicodeDecodeError:
                known = text(raw)
                self._surrogates.add(ident)
            self._texts[ident] = known
        return known

    def behaviour(self, ident: int) -> Behaviour | None:
        """The behaviour called `ident`; None when it is not defined here. Raises DecodeError, Incompatible."""
        body = self.behaviours.get(ident)
        if body is None:
            return None
        if len(body) < BEHAVIOUR.size:
            if len(body) < _SCRIPT:
                raise DecodeError(f"expected a behaviour of {_SCRIPT} bytes or more, got {len(body)}, id {ident}")
            body = body.ljust(BEHAVIOUR.size, b"\0")  # written before behaviours had a script
        (
            cgroup, executable, parent, resource, resource2, pid_ns, mnt_ns, operation, syscall, access, enforcer, tty,
            flags, result, uid, owner, arg0, arg1, family, port, socket_type, protocol, address, script, *_,
        ) = _BEHAVIOUR(body)  # fmt: skip
        if cgroup > LARGEST:
            # Its identity would be published and read by nobody.
            raise DecodeError(f"expected a cgroup id of at most {LARGEST}, got {cgroup}, id {ident}")
        op = _OPERATIONS.get(operation)
        if op is None:
            raise Incompatible(
                f"operation {operation} of behaviour {ident} is not known to this build; upgrade hauberk"
            )
        # The memo is asked here first: most strings of a frame are shared, and a call costs more than the lookup.
        known, string = self._texts.get, self.string
        path = string(resource)
        detail = ""
        if op is _CAPABLE:
            detail = socket_names.capability(arg0)
        elif op is _DNS:
            detail = path
        named = self._calls.get(syscall) or syscall_name(self._architecture, syscall)
        if named in _TEXTUAL:
            # The name of a memfd or a key is no path, whatever it looks like.
            path, detail = "", path
        behaviour = Behaviour(
            id=ident,
            operation=op,
            access=_ACCESS.get(access) or _access(access),
            result=result,
            enforcer=_BACKENDS.get(enforcer, Backend.OBSERVER),
            cgroup=cgroup,
            pid_ns=pid_ns,
            mnt_ns=mnt_ns,
            uid=uid,
            owner=owner,
            tty=tty != 0,
            executable=known(executable) or string(executable),
            parent=known(parent) or string(parent),
            resource=path,
            resource2=string(resource2) if resource2 else "",
            syscall=syscall,
            syscall_name=named,
            flags=flags,
            args=(arg0, arg1),
            family=family,
            socket_type=socket_type,
            protocol=protocol,
            address=address_text(family, address) if family else "",
            port=port,
            detail=detail,
            script=string(script) if script else "",
        )
        if self._surrogates and not self._surrogates.isdisjoint((executable, parent, resource, resource2, script)):
            self.odd.add(ident)
        return behaviour

    def process(self, ident: int) -> ProcessContext | None:
        """The exec image called `ident`; None when it is not defined here. Strings are tellable."""
        body = self.processes.get(ident)
        if body is None:
            return None
        if len(body) < PROCESS.size:
            raise DecodeError(f"expected a process of {PROCESS.size} bytes or more, got {len(body)}, id {ident}")
        (
            process, executable, parent, arguments, cwd, parent_process, start, pid, ppid, _, session, loginuid, flags,
            tty, *_,
        ) = _PROCESS(body)  # fmt: skip
        argv = self._strings.get(arguments, b"")
        if argv.endswith(b"\0"):
            argv = argv[:-1]
        called = b""
        if flags & ProcessFlag.CALLED:
            called, _, argv = argv.partition(b"\0")
        return ProcessContext(
            process=process,
            executable=tellable(self.string(executable)),
            parent=tellable(self.string(parent)),
            arguments=tuple(part.decode("utf-8", "backslashreplace") for part in argv.split(b"\0")) if argv else (),
            cwd=tellable(self.string(cwd)),
            tty=tty.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
            parent_process=parent_process,
            start=start,
            pid=pid,
            ppid=ppid,
            session=session,
            loginuid=loginuid,
            cut=bool(flags & ProcessFlag.CUT),
            called=called.decode("utf-8", "backslashreplace"),
        )

    def process_contexts(self) -> dict[int, ProcessContext]:
        """Every exec image defined here, by id."""
        return {ident: found for ident in self.processes if (found := self.process(ident)) is not None}
