# SPDX-License-Identifier: Apache-2.0
"""The kernel's own type information (BTF), read far enough to know where a member of a struct lies.

Why: most nodes have no kernel headers, but nearly all carry `/sys/kernel/btf/vmlinux`. The programs need a few dozen offsets
and to know whether a member, an enum value or a tracepoint exists at all; that is what is asked here, by name, never by
kernel version. Format: Documentation/bpf/btf.rst. Never used by the resident agent: parsing costs a quarter of a second
and some tens of megabytes, which the short-lived loader child pays. Neighbours: `members.py` (what is needed).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

from schemas.errors import DecodeError, MissingDependency

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC: Final = 0xEB9F
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_TRANSPARENT: Final = {_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG}
# Bytes after the 12-byte type header: (once, per vlen).
_EXTRA: Final = {
    _INT: (4, 0), _PTR: (0, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12), _ENUM: (0, 8), _FWD: (0, 0),
    _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0), _RESTRICT: (0, 0), _FUNC: (0, 0), _FUNC_PROTO: (0, 8),
    _VAR: (4, 0), _DATASEC: (0, 12), _FLOAT: (0, 0), _DECL_TAG: (4, 0), _TYPE_TAG: (0, 0), _ENUM64: (0, 12),
}  # fmt: skip


class BtfMember(msgspec.Struct, frozen=True):
    """Where one member lies. `offset` and `size` in bytes; a bit field reports the byte its first bit is in."""

    offset: int
    size: int


class Btf:
    """Types of one BTF blob. Types are found by a single pass over headers; members are decoded when asked for."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < 24 or struct.unpack_from("=H", blob)[0] != _MAGIC:
            raise DecodeError(f"expected BTF (magic 0x{_MAGIC:x}), got {len(blob)} bytes starting {blob[:2].hex()!r}")
        _, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from("=HBBIIIII", blob)
        self._types = blob[header + type_off : header + type_off + type_len]
        self._strings = blob[header + str_off : header + str_off + str_len]
        self._at = [0]
        self._named: dict[int, list[int]] = {}
        unpack = struct.Struct("=II").unpack_from
        types, at, named, offset, end = self._types, self._at, self._named, 0, type_len
        while offset < end:
            name, info = unpack(types, offset)
            kind = info >> 24 & 0x1F
            if kind not in _EXTRA:
                raise DecodeError(
                    f"BTF kind {kind} at type {len(at)} is not known; this kernel's BTF is newer than this reader"
                )
            if name:
                named.setdefault(name, []).append(len(at))
            at.append(offset)
            once, each = _EXTRA[kind]
            offset += 12 + once + each * (info & 0xFFFF)

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX) -> Btf:
        """BTF of the running kernel."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise MissingDependency(f"no BTF at `{path}` ({error.strerror}); install kernel headers instead") from error

    def member(self, owner: str, path: str) -> BtfMember | None:
        """Where `path` (dotted, through nested and anonymous structs) lies in struct or union `owner`; None if absent."""
        type_id = self._find(owner, {_STRUCT, _UNION})
        if type_id is None:
            return None
        offset = 0
        for name in path.split("."):
            found = self._step(type_id, name)
            if found is None:
                return None
            offset += found[0]
            type_id = found[1]
        return BtfMember(offset // 8, self._size(type_id))

    def size(self, owner: str) -> int | None:
        """Size in bytes of struct or union `owner`; None if absent."""
        type_id = self._find(owner, {_STRUCT, _UNION})
        return None if type_id is None else self._size(type_id)

    def type_id(self, name: str) -> int | None:
        """Id of the typedef, struct or union called `name`: what `attach_btf_id` wants."""
        return self._find(name, {_TYPEDEF, _STRUCT, _UNION})

    def function_id(self, name: str) -> int | None:
        """Id of the kernel function `name`: what fentry and LSM programs attach to."""
        return self._find(name, {_FUNC})

    def functions(self, start: str) -> dict[str, tuple[int, int, int]]:
        """name -> (id, id of its prototype, how many parameters it has) of each function whose name begins with `start`. Functions
        of one prototype have the same id of it; the names of parameters belong to it."""
        found: dict[str, tuple[int, int, int]] = {}
        needle = b"\0" + start.encode()
        at = self._strings.find(needle)
        while at >= 0:
            for type_id in self._named.get(at + 1, ()):
                _, info, prototype = self._header(type_id)
                if info >> 24 & 0x1F == _FUNC:
                    found[self._text(at + 1)] = type_id, prototype, self._header(prototype)[1] & 0xFFFF
            at = self._strings.find(needle, at + 1)
        return found

    def has_tracepoint(self, name: str) -> bool:
        """Whether the kernel defines tracepoint `name` (BTF keeps one `btf_trace_NAME` typedef for each)."""
        return self._find(f"btf_trace_{name}", {_TYPEDEF}) is not None

    def enumerator(self, enum: str, name: str) -> int | None:
        """Value of `name` in `enum`; None if this kernel does not have it."""
        type_id = self._find(enum, {_ENUM})
        if type_id is None:
            return None
        _, info, _ = self._header(type_id)
        for index in range(info & 0xFFFF):
            at, value = struct.unpack_from("=Ii", self._types, self._at[type_id] + 12 + 8 * index)
            if self._text(at) == name:
                return int(value)
        return None

    def _header(self, type_id: int) -> tuple[int, int, int]:
        name, info, size = struct.unpack_from("=III", self._types, self._at[type_id])
        return name, info, size

    def _text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def _find(self, name: str, kinds: set[int]) -> int | None:
        needle = b"\0" + name.encode() + b"\0"
        at = self._strings.find(needle)
        while at >= 0:
            for type_id in self._named.get(at + 1, ()):
                if self._header(type_id)[1] >> 24 & 0x1F in kinds:
                    return type_id
            at = self._strings.find(needle, at + 1)
        return None

    def _solid(self, type_id: int) -> int:
        while True:
            _, info, target = self._header(type_id)
            if info >> 24 & 0x1F not in _TRANSPARENT:
                return type_id
            type_id = target

    def _step(self, type_id: int, name: str) -> tuple[int, int] | None:
        """Bit offset and type of member `name`, looking into anonymous members too."""
        type_id = self._solid(type_id)
        _, info, _ = self._header(type_id)
        if info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return None
        base = self._at[type_id] + 12
        for index in range(info & 0xFFFF):
            at, target, bits = struct.unpack_from("=III", self._types, base + 12 * index)
            offset = bits & 0xFFFFFF if info >> 31 else bits
            if at == 0:
                inner = self._step(target, name)
                if inner is not None:
                    return offset + inner[0], inner[1]
            elif self._text(at) == name:
                return offset, target
        return None

    def _size(self, type_id: int) -> int:
        type_id = self._solid(type_id)
        _, info, size = self._header(type_id)
        kind = info >> 24 & 0x1F
        if kind == _PTR:
            return 8
        if kind == _ARRAY:
            element, _, count = struct.unpack_from("=III", self._types, self._at[type_id] + 12)
            return self._size(element) * int(count)
        return size
