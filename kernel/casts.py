# SPDX-License-Identifier: Apache-2.0
"""Typed reads of kernel memory from any address: the kernel function `bpf_rdonly_cast`, called from C that BCC compiles.

Why: the verifier turns the call into a register move and reads through the result into plain loads, where a probe read is a
helper call of 20 to 40 ns. BCC knows no kernel functions, so the C calls a helper number that cannot exist and `resolve`
writes the real call into the instructions before they are loaded. Where the function or a type is missing, the programs are
compiled without `K_CAST` and probe as before. Must never be needed. Neighbours: `loader_child`, `members`, programs/work.c.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from kernel import bpf
from kernel.btf import Btf
from schemas.errors import KernelError

MARK: Final = 0x7FFFFF01
"""The helper number that stands for the cast until `resolve`."""
TYPES: Final = ("pt_regs", "list_head", "file", "dentry", "mount")
"""Structs cast to. `list_head` stands for any pointer in memory: its first member is one."""

_FUNCTION: Final = "bpf_rdonly_cast"
_CALL: Final = struct.pack("=BBhi", 0x85, 0, 0, MARK)
_RAW_TRACEPOINT: Final = 17


def usable(btf: Btf) -> bool:
    """Whether this kernel takes the cast: tried with a program of six instructions, which reads what the real ones read."""
    name = btf.member("dentry", "d_name.name")
    if btf.function_id(_FUNCTION) is None or name is None or any(btf.type_id(kind) is None for kind in TYPES):
        return False
    move, load = struct.Struct("=BBhi").pack, 0x79
    code = move(load, 0x11, 0, 0) + move(0xB7, 2, 0, btf.type_id("dentry") or 0) + _CALL
    code += move(load, 0x01, name.offset, 0) + move(0xB7, 0, 0, 0) + move(0x95, 0, 0, 0)
    try:
        os.close(bpf.program_load(_RAW_TRACEPOINT, resolve(code, btf), name="hauberk_test"))
    except KernelError:
        return False
    return True


def constants(btf: Btf) -> str:
    """Lines for `offsets.h`: the mark and the BTF ids of the types."""
    lines = [f"#define K_CAST 0x{MARK:x}"] + [f"#define K_TYPE_{name} {btf.type_id(name)}" for name in TYPES]
    return "\n".join(lines) + "\n"


def resolve(code: bytes, btf: Btf) -> bytes:
    """`code` with every marked call made a call of the kernel function; unchanged when there is none."""
    function = btf.function_id(_FUNCTION)
    if function is None:
        return code
    # BPF_PSEUDO_KFUNC_CALL in the source register; immediate: BTF id of the function.
    real = struct.pack("=BBhi", 0x85, 2 << 4, 0, function)
    return b"".join(real if code[at : at + 8] == _CALL else code[at : at + 8] for at in range(0, len(code), 8))
