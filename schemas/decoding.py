# SPDX-License-Identifier: Apache-2.0
"""The door for encoded words: bytes become a struct of ours or a DecodeError, whatever the bytes are.

msgspec alone does not keep that promise: text that is not UTF-8 is a UnicodeDecodeError, deep nesting a RecursionError, a
size that nobody has memory for a MemoryError. Ranges of values stand in the structs (`Nanoseconds`, `Count`, ...), so that
what was decoded is fit for every later step: SQLite takes 64 bits with a sign, a date ends in the year 9999.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from schemas.errors import DecodeError

T = TypeVar("T")

LATEST_NS: Final = 1 << 62
"""Unix ns in the year 2116: no clock says more, and a sum of two such still fits 63 bits."""

Nanoseconds = Annotated[int, Meta(ge=0, le=LATEST_NS)]
Seconds = Annotated[int, Meta(ge=0, le=LATEST_NS // 1_000_000_000)]
LARGEST: Final = (1 << 63) - 1
"""What a `Count` may be: a column of SQLite and a signed 64-bit number of other languages hold it."""
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
_LETTER: Final = r"[^/\x00-\x1f\x7f]"
Name = Annotated[str, Meta(min_length=1, max_length=253, pattern=rf"^{_LETTER}+$(?!\n)")]
"""A node: it is the first part of keys, and a line of text."""
NAME_OR_EMPTY: Final = rf"^{_LETTER}*$(?!\n)"
"""Pattern of a setting that becomes a `Name`; empty: the program chooses one."""
Bits = Annotated[int, Meta(ge=-1, le=(1 << 32) - 1)]
"""A mask of a u32 in the kernel's maps; -1 for none."""
Port = Annotated[int, Meta(ge=0, le=65535)]
Word = Annotated[str, Meta(max_length=253, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]

_CAUGHT: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError)


def decoder(kind: type[T], what: str, form: Any = msgspec.msgpack) -> Callable[[bytes], T]:
    """A function from bytes to `kind`. It raises DecodeError, which names `what`, and nothing else. `form`: `msgspec.json`
    or `msgspec.msgpack`."""
    decode = form.Decoder(kind).decode
    name = form.__name__.rpartition(".")[2]

    def convert(data: bytes) -> T:
        try:
            found: T = decode(data)
        except _CAUGHT as error:
            raise DecodeError(
                f"expected {what} as {name}, got {len(data)} bytes: {error or type(error).__name__}"
            ) from error
        return found

    return convert
