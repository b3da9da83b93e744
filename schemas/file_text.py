# SPDX-License-Identifier: Apache-2.0
"""The sentence about a file that a person gave as text and that is not UTF-8."""

from __future__ import annotations

from typing import Final

_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What came in its place, where in the whole file that was decoded, and what to do. Of the file itself nothing but the byte."""
    data, at = bytes(error.object), error.start
    if data.startswith(_UTF_16):
        return "UTF-16 text; save it as UTF-8"
    line = data.count(b"\n", 0, at) + 1
    return f"byte 0x{data[at]:02x} at line {line} (offset {at}), which is not UTF-8; save it as UTF-8 text"
