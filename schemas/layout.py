# SPDX-License-Identifier: Apache-2.0
"""How a record that is shared with the kernel programs is described: fields in order, for Python's `struct` and for C. Pure.

Neighbours: `schemas.kernel` (the records), `schemas.c_header` (prints them).
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec


class Field(msgspec.Struct, frozen=True):
    """One member: name, C type (`u8 u16 u32 u64 s32`), how many, what it means."""

    name: str
    ctype: str
    meaning: str
    count: int = 1


_SIZES: Final = {"u8": (1, "B"), "u16": (2, "H"), "u32": (4, "I"), "s32": (4, "i"), "u64": (8, "Q"), "s64": (8, "q")}


class Layout:
    """A fixed record: fields in order, naturally aligned without holes (checked here, so `struct` and C agree)."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = fields
        self.offsets: dict[str, int] = {}
        offset = 0
        form = "="
        for field in fields:
            size, code = _SIZES[field.ctype]
            if offset % size:
                raise ValueError(f"layout `{name}`: `{field.name}` at {offset} is not aligned to {size}")
            self.offsets[field.name] = offset
            form += f"{field.count}s" if field.ctype == "u8" and field.count > 1 else code * field.count
            offset += size * field.count
        if offset % 8:
            raise ValueError(f"layout `{name}`: size {offset} is not a multiple of 8")
        self.struct = struct.Struct(form)
        self.size = offset

    def c_struct(self) -> str:
        """The C declaration."""
        lines = [f"struct {self.name} {{"]
        for field in self.fields:
            array = f"[{field.count}]" if field.count > 1 else ""
            lines.append(f"    {field.ctype} {field.name}{array}; /* {field.meaning} */")
        return "\n".join([*lines, "};"])
