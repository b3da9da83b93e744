# SPDX-License-Identifier: Apache-2.0
"""Instructions of small programs that are made by hand: for feature tests, and to lead from one program to another. Pure.

Format: Documentation/bpf/standardization/instruction-set.rst of Linux. Neighbours: `features`, `preemption`, `call_exits`.
"""

from __future__ import annotations

import struct
from typing import Final

LOAD_64: Final = 0x18
"""BPF_LD | BPF_IMM | BPF_DW, which takes two."""
MAP, MAP_VALUE = 1, 2
"""BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE: what a `LOAD_64` of a descriptor gives."""


def instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction; `target` and `source` are numbers of registers."""
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


def wide(target: int, value: int, kind: int = 0) -> bytes:
    """The load of a 64-bit `value`; `kind` MAP, MAP_VALUE: of what the descriptor `value` stands for."""
    low, high = struct.unpack("=ii", struct.pack("=Q", value))
    return instruction(LOAD_64, target, kind, value=low) + instruction(0, value=high)


def helper(number: int) -> bytes:
    """The call of a helper (BPF_FUNC_*)."""
    return instruction(0x85, value=number)


END: Final = instruction(0xB7) + instruction(0x95)
"""return 0"""
