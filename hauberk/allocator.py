# SPDX-License-Identifier: Apache-2.0
"""Keeps a long-running process near what it uses: glibc's allocator is told to give freed memory back.

Frames come as blobs of up to half a megabyte in several threads. By default each thread gets an arena of its own and a freed
blob raises the size below which memory stays in it: after a flood `up` kept 195 MB where 149 MB did (measured, two cores).
Must be called before the first thread starts; does nothing under another C library. Neighbour: `hauberk.cli`.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# Numbers of mallopt(3), <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SMALL: Final = 128 * 1024
"""glibc's own first values; setting them once stops it from raising them."""
_ARENAS: Final = 2
"""One for the loop, one for the threads; more only helps threads that allocate at the same time, which the GIL forbids."""


_YOUNG: Final = 20_000
"""Objects made before the garbage collector looks at them. Judged behaviours and records hold no cycles, and are freed without
it; at CPython's 700 it took a sixth of what a new behaviour costs (benchmarks/bench_judge.py's frames)."""


def settle() -> bool:
    """Whether the allocator took it."""
    gc.set_threshold(_YOUNG, 10, 10)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_ARENA_MAX, _ARENAS), (_MMAP_THRESHOLD, _SMALL), (_TRIM_THRESHOLD, _SMALL))
    refused = [name for name, value in wanted if not mallopt(name, value)]
    return not refused


def give_back() -> bool:
    """Have glibc return the free pages in the middle of its arenas to the kernel, malloc_trim(3); whether there were any. Blocks for
    some milliseconds."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2, mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def free_bytes() -> int:
    """Bytes that are free in glibc's arenas and still this process's; 0 under another C library or one before 2.33."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return 0
    ask.restype = _Mallinfo
    return int(ask().fordblks)
