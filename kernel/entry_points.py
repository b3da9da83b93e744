# SPDX-License-Identifier: Apache-2.0
"""The kernel's own functions behind the watched calls, which programs can be attached to: one for each call and entry.

On x86-64 a call of the native entry arrives in __x64_sys_NAME, one of the 32-bit entries in __ia32_sys_NAME or
__ia32_compat_sys_NAME, one of x32 that is not the native one in __x64_compat_sys_NAME. All take the registers alone, as the
tracepoint `sys_exit` does (arch/x86/include/asm/syscall_wrapper.h). Sources of the names: arch/x86/entry/syscalls/syscall_32.tbl and
syscall_64.tbl, Linux 5.7 to 6.18. Pure. Neighbours: `call_exits` attaches, `schemas/watched.py` says which calls there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from schemas.errors import Incompatible
from schemas.syscalls import NUMBERS
from schemas.watched import CALLS

MACHINE: Final = "x86_64"
"""The machine whose entries are known here."""
PREFIXES: Final = ("__x64_sys_", "__x64_compat_sys_", "__ia32_sys_", "__ia32_compat_sys_")
EVERY: Final = "__x64_sys_openat"
"""A function that each kernel has."""

_OTHER_NAMES: Final = {"umount2": "umount"}
# Numbers of i386 whose function is not named as the call is, in the order of age; all that a kernel has are taken.
_I386: Final = {
    16: ("lchown16",), 22: ("oldumount",), 23: ("setuid16",), 46: ("setgid16",), 70: ("setreuid16",), 71: ("setregid16",),
    81: ("setgroups16",), 95: ("fchown16",), 124: ("adjtimex_time32", "adjtimex"), 138: ("setfsuid16",), 139: ("setfsgid16",),
    164: ("setresuid16",), 170: ("setresgid16",), 182: ("chown16",), 193: ("ia32_truncate64", "x86_truncate64"),
    194: ("ia32_ftruncate64", "x86_ftruncate64"), 264: ("clock_settime32",), 343: ("clock_adjtime32",),
}  # fmt: skip
_SYMBOL: Final = re.compile(rb"^[0-9a-f]+ (\w) (__(?:x64|ia32)_(?:compat_)?sys_\w+)$", re.MULTILINE)


class Entry(msgspec.Struct, frozen=True):
    """One way into the kernel for one watched call: at least one of `functions` has to be there, and each that is there is watched.
    `native`: the function of the call by the native entry; "" where there is none."""

    call: str
    functions: tuple[str, ...]
    native: str = ""


def entries() -> Iterator[Entry]:
    """Every way of a watched call into an x86-64 kernel."""
    for call in CALLS:
        native, _, foreign = NUMBERS[call]
        name = _OTHER_NAMES.get(call, call)
        own = f"__x64_sys_{name}" if native is not None else ""
        if own:
            yield Entry(call, (own, f"__x64_compat_sys_{name}"), own)
        for number in foreign:
            names = _I386.get(number, (name,))
            yield Entry(call, tuple(f"__ia32_{kind}sys_{one}" for one in names for kind in ("compat_", "")), own)
    yield Entry("socketcall", ("__ia32_compat_sys_socketcall", "__ia32_sys_socketcall"))


def symbols(text: bytes) -> dict[str, bool]:
    """Functions of system calls in `text` of /proc/kallsyms -> whether it does something. The weak ones of a kernel that is built
    without the call answer ENOSYS (COND_SYSCALL, kernel/sys_ni.c)."""
    return {found[2].decode(): found[1] not in b"wW" for found in _SYMBOL.finditer(text)}


def watched_functions(
    there: Mapping[str, bool], typed: Mapping[str, tuple[int, int, int]], machine: str = MACHINE
) -> dict[str, tuple[int, int]]:
    """function -> (its BTF id, that of its prototype) of each that a watched call of this kernel arrives in. `there`: `symbols`;
    `typed`: what BTF says of the functions with `PREFIXES`. Calls that the kernel is built without are left out. Raises Incompatible
    when a call would be missed."""
    if machine != MACHINE:
        raise Incompatible(
            f"the functions behind system calls are known for {MACHINE} alone, this machine is {machine}"
        )
    if not there.get(EVERY):
        raise Incompatible(f"expected the function `{EVERY}`, this kernel has none of that name")
    narrow = any(name.startswith("__ia32_") for name in there)
    found: dict[str, tuple[int, int]] = {}
    for entry in entries():
        if not narrow and entry.functions[0].startswith("__ia32_"):
            continue
        if not any(name in there for name in entry.functions) and (there.get(entry.native) or not entry.native):
            raise Incompatible(f"`{entry.call}` is expected in {' or '.join(entry.functions)}, this kernel has neither")
        for name in entry.functions:
            if not there.get(name):
                continue
            if name not in typed:
                raise Incompatible(f"`{name}` is not in this kernel's BTF")
            ident, prototype, parameters = typed[name]
            if parameters != 1:
                raise Incompatible(f"`{name}` is expected to take the registers alone, it has {parameters} parameters")
            found[name] = ident, prototype
    return found
