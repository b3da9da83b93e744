# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3 as kernel/programs/hash.c computes it: string ids, for whoever must know an id before the kernel says it.

The enforcer needs the ids of the paths in its rules. Must never be used where a hash has to be the same after a reload: the
key is drawn for each load. A test compares this twin with the kernel's own ids. Reference: Aumasson and Bernstein, SipHash.
"""

from __future__ import annotations

import struct
from typing import Final

_MASK: Final = (1 << 64) - 1


def start(key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The four u64 of the state before the first word."""
    k0, k1 = key
    return k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573


def siphash13(key: tuple[int, int], data: bytes) -> int:
    """64-bit SipHash with one round per word and three at the end. `key`: two u64, `LoadedPrograms.key`. About 2 us per 8 bytes."""
    a, b, c, d = start(key)
    length = len(data)
    whole = length // 8
    words = list(struct.unpack_from(f"<{whole}Q", data))
    words.append((length & 0xFF) << 56 | int.from_bytes(data[whole * 8 :], "little"))
    for word in words:
        d ^= word
        a, b, c, d = _round(a, b, c, d)
        a ^= word
    c ^= 0xFF
    for _ in range(3):
        a, b, c, d = _round(a, b, c, d)
    return a ^ b ^ c ^ d


def string_id(key: tuple[int, int], text: str | bytes) -> int:
    """Id of a path or text as the kernel announces it; a directory rule's id is that of its path with a trailing slash."""
    return siphash13(key, text.encode() if isinstance(text, str) else text)


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    a = (a + b) & _MASK
    b = ((b << 13 | b >> 51) & _MASK) ^ a
    a = (a << 32 | a >> 32) & _MASK
    c = (c + d) & _MASK
    d = ((d << 16 | d >> 48) & _MASK) ^ c
    a = (a + d) & _MASK
    d = ((d << 21 | d >> 43) & _MASK) ^ a
    c = (c + b) & _MASK
    b = ((b << 17 | b >> 47) & _MASK) ^ c
    c = (c << 32 | c >> 32) & _MASK
    return a, b, c, d
