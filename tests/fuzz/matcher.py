# SPDX-License-Identifier: Apache-2.0
"""The kernel's matcher, run on request: the text of the LSM hooks with `matcher.c` behind it, asked by BPF_PROG_TEST_RUN.

No hook is attached and nothing is enforced, so it runs on any kernel that has `bpf_loop`. Maps and programs are this process's
alone and go with it. Neighbours: `agreement` (who asks), kernel/hook_compiler.py (who compiles).
"""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from enforcers.bpf_lsm import LsmEnforcer
from enforcers.contract import TablePart
from enforcers.regions import with_base
from kernel import bpf, hook_compiler, hook_loading
from kernel.compiled import Compiled, relocated
from kernel.loading import LoadSettings
from kernel.maps import Map
from kernel.siphash import string_id
from policy.judge.sockets import address_number
from schemas.behaviour import Behaviour
from schemas.enforcement import ScopePlan
from schemas.kernel import STRING_LIMIT, Direction
from schemas.operations import Access, Class, Operation, class_of
from schemas.socket_names import CAPABILITIES

TEXT: Final = (Path(__file__).parent / "matcher.c").read_text()
KEY: Final = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
_TEST_RUN: Final = 10  # BPF_PROG_TEST_RUN
_RAW_TRACEPOINT: Final = 17
_ACTING: Final = 128
"""Longest path of an executable that is asked about."""
_HEAD: Final = struct.Struct(f"=QQQ12I4H16s{_ACTING}s{_ACTING}s{_ACTING}s")
"""`struct matcher_question` up to its text."""
_SIZE: Final = _HEAD.size + STRING_LIMIT
_SENT: Final = {Operation.CONNECT: Direction.SEND, Operation.SEND: Direction.SEND, Operation.BIND: Direction.BIND}
_OWN_PORT: Final = (Operation.LISTEN, Operation.ACCEPT)
_ASKED_AS: Final = {Operation.MMAP: Class.PROCESS, Operation.PTRACE: Class.FILE, Operation.MOUNT: Class.FILE}
_NOTHING: Final = (Operation.MMAP, Operation.PTRACE, Operation.MOUNT)
"""Operations whose hooks ask for no path."""
_CHANGED: Final = {
    Operation.CREATE: Access.CREATE, Operation.UNLINK: Access.DELETE, Operation.MKDIR: Access.CREATE,
    Operation.RMDIR: Access.DELETE, Operation.LINK: Access.CREATE, Operation.SYMLINK: Access.CREATE, Operation.RENAME: Access.DELETE,
    Operation.CHMOD: Access.METADATA, Operation.CHOWN: Access.METADATA, Operation.TRUNCATE: Access.TRUNCATE,
    Operation.MKNOD: Access.CREATE,
}  # fmt: skip
"""The access that each hook asks for (kernel/programs/lsm_files.c)."""


def asked_as(operation: Operation) -> Class:
    """The class whose rules the hook of `operation` asks."""
    return _ASKED_AS.get(operation) or class_of(operation)


class Matcher:
    """Tables of this process alone and the program that asks them. Not for two threads at once."""

    def __init__(self, compiled: Compiled) -> None:
        """Raises PermissionMissing, KernelError."""
        self._fds = hook_loading.shared(compiled, {})
        code = relocated(compiled.programs["match"], self._fds, KEY)
        self.program = hook_loading.load_program("match", code, compiled.starts["match"], kind=_RAW_TRACEPOINT)
        self._maps = {name: Map(self._fds[name], name) for name in LsmEnforcer.maps}
        self._cells = Map(self._fds["patterns"], "patterns")
        self._kept = [Map(self._fds[name], name) for name in ("lsm_actors", "lsm_texts")]
        self._memory = mmap.mmap(self._fds["matcher_questions"], -(-_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._attributes = ctypes.create_string_buffer(struct.pack("=II", self.program, 0), 80)
        self._encoder = LsmEnforcer("/nowhere")
        self._free = 1
        self._nothing = True
        """Whether the table in hand would put no scope under the hooks."""

    def close(self) -> None:
        """Give everything back."""
        self._memory.close()
        for fd in (*self._fds.values(), self.program):
            os.close(fd)

    def fill(self, table: int, scope: ScopePlan) -> TablePart:
        """The rules of `scope` as a table; what the backend made of them."""
        part = self._encoder.encode(scope, ident)
        base = self._free if part.cells else 0
        if base:
            self._cells.put_array(base, part.cells)
            self._free += len(part.cells) // 4
        self._nothing = not part.flags
        name = struct.pack("=Q", table)
        for where, offset in LsmEnforcer.maps.items():
            pairs = [(key[:offset] + name + key[offset + 8 :], value) for key, value in part.entries.get(where, ())]
            if base and where == "rules":
                pairs = [(key, with_base(key, value, base)) for key, value in pairs]
            self._maps[where].put_many(pairs)
        return part

    def clear(self) -> None:
        """Empty the tables."""
        self._free = 1
        for one in (*self._maps.values(), *self._kept):
            one.clear()

    def stops(self, table: int, behaviour: Behaviour) -> bool:
        """Whether the hooks of `behaviour` would stop it under `table`."""
        return not self._nothing and any(self.ask(question) for question in questions(table, behaviour))

    def ask(self, question: bytes) -> bool:
        """What the kernel answers to one `struct matcher_question`."""
        self._memory[: len(question)] = question
        result = bpf.call(_TEST_RUN, self._attributes)
        answer = struct.unpack_from("=I", self._attributes, 4)[0]
        if result < 0 or answer not in (0, 1):
            raise RuntimeError(f"expected 0 or 1 of the matcher, got {answer} ({os.strerror(-result)})")
        return bool(answer)


@lru_cache(4096)
def ident(text: str) -> int:
    """A string's id under the matcher's key."""
    return string_id(KEY, text)


def questions(table: int, behaviour: Behaviour) -> Iterator[bytes]:
    """What the hooks of `behaviour` ask, as `struct matcher_question`; the first that is answered with a stop ends it."""
    class_ = asked_as(behaviour.operation)
    if class_ is Class.NETWORK:
        where = address_number(behaviour.address)
        packed = bytes(16) if where is None else ipaddress.ip_address(behaviour.address).packed.ljust(16, b"\0")
        direction = _SENT.get(behaviour.operation, 0) if where is not None else 0
        if behaviour.operation in _OWN_PORT:
            direction = Direction.BIND
        yield _head(table, behaviour, direction=direction, address=packed)
        return
    if behaviour.operation in _NOTHING:
        yield _head(table, behaviour, access=behaviour.args[0])
        return
    if class_ is Class.CAPABILITIES:
        yield _head(table, behaviour, capability=CAPABILITIES.index(behaviour.detail))
        return
    access = (
        behaviour.access if behaviour.operation is Operation.OPEN else _CHANGED.get(behaviour.operation, Access.EXEC)
    )
    for path in (behaviour.resource, behaviour.resource2):
        text = _bytes(path)
        if text:
            yield _head(table, behaviour, access=access, length=len(text)) + text.rjust(STRING_LIMIT, b"\0")
        if behaviour.operation is Operation.RENAME:
            access = Access.CREATE


def _head(
    table: int, behaviour: Behaviour, *, access: int = 0, length: int = 0, direction: int = 0, capability: int = 0,
    address: bytes = b"",
) -> bytes:  # fmt: skip
    class_ = asked_as(behaviour.operation)
    actor = (behaviour.parent or behaviour.executable) if class_ is Class.PROCESS else behaviour.executable
    texts = [_bytes(behaviour.executable) if class_ is Class.PROCESS else b"", _bytes(actor), _bytes(behaviour.script)]
    socket = (0, 0, 0, 0)
    if class_ is Class.NETWORK:
        socket = (behaviour.family, behaviour.socket_type & 0xF, behaviour.protocol, behaviour.port)
    return _HEAD.pack(
        table, ident(actor) if actor else 0, ident(behaviour.script) if behaviour.script else 0, class_, access, behaviour.owner,
        behaviour.uid, STRING_LIMIT - length, direction, behaviour.operation, capability, behaviour.tty, *map(len, texts), *socket,
        address, *(text.rjust(_ACTING, b"\0") for text in texts),
    )  # fmt: skip


def forgotten(question: bytes) -> bytes:
    """`question` without the texts of who acts."""
    fields = list(_HEAD.unpack_from(question))
    fields[14] = fields[13] = 0
    return _HEAD.pack(*fields) + question[_HEAD.size :]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def compile_matcher() -> Compiled:
    """The program for this kernel, kept in the directory for temporary files under the hash of what it is made of."""
    request = LoadSettings(occurrence_pages=1, definition_pages=1, rules=262144).request()
    name = hashlib.blake2b((TEXT + hook_compiler.name_of(request)).encode(), digest_size=16).hexdigest()
    kept = Path(tempfile.gettempdir(), f"hauberk-matcher-{os.geteuid()}", name)
    try:
        if kept.parent.stat().st_uid == os.geteuid():
            return msgspec.msgpack.decode(kept.read_bytes(), type=Compiled)
    except (OSError, msgspec.DecodeError):
        pass
    with tempfile.TemporaryDirectory(prefix="hauberk-headers-") as request["directory"]:
        made = hook_compiler.compile_hooks(
            request, lambda step: None, more=TEXT, programs=("match",), maps=("matcher_questions",)
        )
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    kept.write_bytes(msgspec.msgpack.encode(made))
    return made
