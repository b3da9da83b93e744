# SPDX-License-Identifier: Apache-2.0
"""What BCC cannot say, said after it: callbacks of `bpf_loop` and calls of kernel functions, put into compiled instructions.

BCC compiles every function into a section of its own and knows neither subprograms nor kernel functions. The C therefore loads
64-bit marks and calls helper numbers that cannot exist; `linked` copies each callback behind the program that uses it and turns
marks into addresses. The kernel wants BTF for a program with subprograms: `subprogram_btf` is the least that it takes. Pure.
Neighbours: `casts` (the same for one function), programs/lsm_ask.c (the marks), `loader_child` (who loads).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from kernel import casts
from schemas.errors import KernelError

HIGH: Final = 0x48415542
"""Upper half of every mark."""
CALLBACKS: Final = {1: "cb_climb", 2: "cb_scan", 3: "cb_pattern"}
SUBPROGRAMS: Final = {
    0x7FFFFE01 + place: f"sub_{name}"
    for place, name in enumerate(
        (
            "enter",
            "sources",
            "object",
            "tell",
            "climb",
            "verdict",
            "lookup",
            "sockets",
            "patterns",
            "preset",
            "actors",
            "keep",
        )
    )
}
FUNCTIONS: Final = {0x7FFFFF02: "bpf_preempt_disable", 0x7FFFFF03: "bpf_preempt_enable"}
_MARKS: Final = frozenset({casts.MARK, *SUBPROGRAMS, *FUNCTIONS})
_HELPERS: Final = 4096
"""More than any kernel has; a helper has a smaller number."""
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_64, _CALL = 0x18, 0x85
_PSEUDO_CALL, _PSEUDO_KERNEL_FUNCTION, _PSEUDO_FUNCTION = 1, 2, 4  # include/uapi/linux/bpf.h


def linked(
    name: str, code: Mapping[str, bytes], function: Callable[[str], int | None]
) -> tuple[bytes, tuple[int, ...]]:
    """Program `name` of `code` (function name -> instructions) with its callbacks behind it, and the instruction each subprogram
    starts at, the program's own 0 first. `function`: the BTF id of a kernel function. Raises KernelError for a call that nothing
    resolves."""
    out, starts, placed, at = bytearray(refuse_unresolved(name, code[name])), [0], dict[str, int](), 0

    def distance(subprogram: str) -> int:
        # From the next instruction. Each is placed once, whoever needs it first.
        if subprogram not in placed:
            placed[subprogram] = len(out) // 8
            starts.append(len(out) // 8)
            out.extend(refuse_unresolved(subprogram, code[subprogram]))
        return placed[subprogram] - at // 8 - 1

    while at < len(out):
        operation, registers, _, value = _INSTRUCTION.unpack_from(out, at)
        if operation == _LOAD_64:
            if registers >> 4 == 0 and _INSTRUCTION.unpack_from(out, at + 8)[3] == HIGH:
                place = distance(CALLBACKS[value])
                _INSTRUCTION.pack_into(out, at, operation, registers & 15 | _PSEUDO_FUNCTION << 4, 0, place)
                _INSTRUCTION.pack_into(out, at + 8, 0, 0, 0, 0)
            at += 8
        elif operation == _CALL and value in SUBPROGRAMS:
            _INSTRUCTION.pack_into(out, at, operation, _PSEUDO_CALL << 4, 0, distance(SUBPROGRAMS[value]))
        elif operation == _CALL and value in FUNCTIONS:
            ident = function(FUNCTIONS[value])
            if ident is None:
                raise KernelError(
                    f"expected the kernel function `{FUNCTIONS[value]}` that `{name}` calls, this kernel's BTF has none",
                    operation="link", target=name,
                )  # fmt: skip
            _INSTRUCTION.pack_into(out, at, operation, _PSEUDO_KERNEL_FUNCTION << 4, 0, ident)
        at += 8
    return bytes(out), tuple(starts)


def refuse_unresolved(name: str, code: bytes) -> bytes:
    """`code` of the function `name`, as it is. KernelError when it calls a function that the C text does not have: clang only warns,
    and leaves a call of a subprogram that is not there."""
    at = 0
    while at < len(code):
        operation, registers, _, value = _INSTRUCTION.unpack_from(code, at)
        helper = registers >> 4 == 0
        known = not helper or value in _MARKS or 0 < value < _HELPERS
        if operation == _CALL and (not known or registers >> 4 == _PSEUDO_CALL):
            raise KernelError(
                f"instruction {at // 8} of `{name}` calls what nothing resolves ({'helper' if helper else 'function'} {value}): expected "
                "a function of the files that are compiled; add the file that has it to `SOURCES`, or a mark to kernel/linker.py",
                operation="link", target=name,
            )  # fmt: skip
        at += 16 if operation == _LOAD_64 else 8
    return code


def subprogram_btf(count: int) -> tuple[bytes, tuple[int, ...]]:
    """A BTF blob with `count` functions `int f(int)`, and their type ids (Documentation/bpf/btf.rst)."""
    strings, ids = bytearray(b"\0int\0a\0"), []
    types = [
        struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32),  # 1: int, signed, 32 bits
        struct.pack("=IIIII", 0, 13 << 24 | 1, 1, 5, 1),  # 2: int (int a)
    ]
    for number in range(count):
        types.append(struct.pack("=III", len(strings), 12 << 24, 2))
        strings += b"f%d\0" % number
        ids.append(len(types))
    body = b"".join(types)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return head + body + strings, tuple(ids)
