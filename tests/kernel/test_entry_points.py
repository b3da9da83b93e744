# SPDX-License-Identifier: Apache-2.0
"""Every watched call has its functions in this kernel, and one that would be missed is named."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kernel.btf import VMLINUX, Btf
from kernel.call_exits import KALLSYMS
from kernel.entry_points import EVERY, PREFIXES, entries, symbols, watched_functions
from schemas.errors import Incompatible
from schemas.syscalls import I386_FIRST, X32_FIRST, rows
from schemas.watched import CALLS

Typed = dict[str, tuple[int, int, int]]
Change = Callable[[dict[str, bool], Typed], None]


def whole() -> tuple[dict[str, bool], Typed]:
    """A kernel that has every function there can be."""
    names = sorted({name for entry in entries() for name in entry.functions})
    return dict.fromkeys(names, True), {name: (100 + place, 7, 1) for place, name in enumerate(names)}


def test_every_row_of_a_watched_call_has_functions() -> None:
    of = {call: [entry for entry in entries() if entry.call == call] for call in CALLS}
    for call in CALLS:
        # By x32 a call comes to the native function, or to the one beside it.
        wanted = sum(row < X32_FIRST for row in rows(call, "x86_64"))
        by_socketcall = sum(I386_FIRST + 512 <= row < X32_FIRST for row in rows(call, "x86_64"))
        assert len(of[call]) == wanted - by_socketcall, call
    names = {name for entry in entries() for name in entry.functions}
    assert {
        "__x64_sys_umount",
        "__ia32_sys_oldumount",
        "__ia32_sys_umount",
        "__ia32_sys_chown16",
        "__ia32_sys_chown",
    } <= names
    assert "__x64_sys_umount2" not in names
    assert "__x64_compat_sys_execve" in names


def test_this_kernel_has_them() -> None:
    if os.uname().machine != "x86_64" or not VMLINUX.exists():
        pytest.skip("needs x86-64 and BTF")
    btf = Btf.of_kernel()
    typed = {name: found for prefix in PREFIXES for name, found in btf.functions(prefix).items()}
    there = symbols(KALLSYMS.read_bytes())
    found = watched_functions(there, typed)
    assert found[EVERY] == typed[EVERY][:2]
    assert {name for name in found if not there[name]} == set()
    for name in ("__x64_sys_connect", "__x64_sys_execve", "__x64_sys_umount", "__ia32_compat_sys_socketcall"):
        assert there.get(name) is None or name in found


def test_symbols_tell_what_a_kernel_is_built_without() -> None:
    text = (
        b"ffffffff81000010 T __pfx___x64_sys_openat\nffffffff81000020 T __x64_sys_openat\n0000000000000000 W __ia32_sys_uselib\n"
        b"ffffffff81000030 t __ia32_compat_sys_openat\nffffffff81000040 T __x64_sys_other [module]\n"
    )
    assert symbols(text) == {"__x64_sys_openat": True, "__ia32_sys_uselib": False, "__ia32_compat_sys_openat": True}


def test_calls_that_the_kernel_is_built_without_are_left_out() -> None:
    there, typed = whole()
    everything = watched_functions(there, typed)
    assert everything.keys() == there.keys()
    # Of an older kernel there is no symbol, of one without the call a weak one.
    del there["__x64_sys_mount_setattr"], there["__ia32_sys_mount_setattr"], there["__ia32_compat_sys_mount_setattr"]
    there["__x64_sys_uselib"] = there["__ia32_sys_uselib"] = False
    assert everything.keys() - watched_functions(there, typed).keys() == {
        "__x64_sys_mount_setattr", "__ia32_sys_mount_setattr", "__ia32_compat_sys_mount_setattr", "__x64_sys_uselib",
        "__ia32_sys_uselib",
    }  # fmt: skip
    narrow = {name: alive for name, alive in whole()[0].items() if not name.startswith("__ia32_")}
    assert watched_functions(narrow, typed).keys() == narrow.keys()


def _without_openat(there: dict[str, bool], typed: Typed) -> None:
    del there[EVERY]


def _untyped(there: dict[str, bool], typed: Typed) -> None:
    del typed["__ia32_compat_sys_sendmsg"]


def _unnamed(there: dict[str, bool], typed: Typed) -> None:
    del there["__ia32_sys_chown16"], there["__ia32_compat_sys_chown16"]


def _without_socketcall(there: dict[str, bool], typed: Typed) -> None:
    del there["__ia32_sys_socketcall"], there["__ia32_compat_sys_socketcall"]


def _of_more(there: dict[str, bool], typed: Typed) -> None:
    typed["__x64_sys_kill"] = (1, 2, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_openat, "expected the function `__x64_sys_openat`"),
        (_untyped, "`__ia32_compat_sys_sendmsg` is not in this kernel's BTF"),
        (_unnamed, "`chown` is expected in __ia32_compat_sys_chown16 or __ia32_sys_chown16"),
        (_without_socketcall, "`socketcall` is expected in"),
        (_of_more, "`__x64_sys_kill` is expected to take the registers alone, it has 6 parameters"),
    ],
)
def test_a_call_that_would_be_missed_is_named(change: Change, says: str) -> None:
    there, typed = whole()
    change(there, typed)
    with pytest.raises(Incompatible, match=says.replace("(", r"\(")):
        watched_functions(there, typed)


def test_other_machines_are_not_guessed() -> None:
    with pytest.raises(Incompatible, match="this machine is aarch64"):
        watched_functions(*whole(), "aarch64")


def test_functions_are_found_with_their_prototype() -> None:
    """BTF by hand: int, int (int a), a function `f` of it, and one named `ff`."""
    import struct

    strings = b"\0int\0a\0__f\0__ff\0"
    types = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("=IIIII", 0, 13 << 24 | 1, 1, 5, 1)
    types += struct.pack("=III", 7, 12 << 24, 2) + struct.pack("=III", 11, 12 << 24, 2)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    made = Btf(head + types + strings)
    assert made.functions("__f") == {"__f": (3, 2, 1), "__ff": (4, 2, 1)}
    assert made.functions("__ff") == {"__ff": (4, 2, 1)}
    assert made.functions("g") == {}
