# SPDX-License-Identifier: Apache-2.0
"""The one table of system calls: complete and right by the kernel's own headers, and nobody knows a call that it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from policy.tools import event_words
from policy.tools.events import parse_event
from schemas import syscalls, wording
from schemas.behaviour import Behaviour
from schemas.errors import Incompatible
from schemas.expand import NO_PROCESS
from schemas.operations import Class, Operation, class_of
from schemas.watched import CALLS, named, texts, words

HEADERS = Path("/usr/include")
OTHER_NAMES = {"_newselect": "select", "mmap2": "mmap", "_llseek": "lseek", "ugetrlimit": "getrlimit", "fadvise64_64": "fadvise64",
               "fstatat64": "newfstatat", "umount": "umount2"}  # fmt: skip


def header(*names: str) -> dict[str, int]:
    """`__NR_name` of the first of these headers that this machine has; skips when it has none."""
    path = next((HEADERS / name for name in names if (HEADERS / name).exists()), None)
    if path is None:
        pytest.skip(f"no {names[0]}: linux-libc-dev is not installed")
    found = re.findall(
        r"^#define __NR_(\w+)\s+\(?(?:__X32_SYSCALL_BIT \+ )?(\d+)\)?\s*$", path.read_text(), re.MULTILINE
    )
    return {name: int(value) for name, value in found}


def test_every_number_of_x86_64() -> None:
    for name, value in header("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h").items():
        assert syscalls.number(name, "x86_64") == value, name


def test_every_number_of_i386() -> None:
    numbers = header("x86_64-linux-gnu/asm/unistd_32.h", "asm/unistd_32.h", "i386-linux-gnu/asm/unistd_32.h")
    assert len(numbers) > 400
    for name, value in numbers.items():
        ours = syscalls.name("x86_64", syscalls.I386_FIRST + value)
        plain = OTHER_NAMES.get(name, name)
        assert ours in (plain, re.sub(r"(?:_time64|64|32)$", "", plain)), name


def test_every_number_of_arm64() -> None:
    numbers = header("asm-generic/unistd.h")
    numbers = {
        name: value for name, value in numbers.items() if not re.search(r"(?:time|time[r]?fd?_\w+|adjtime)64$", name)
    }
    for name, value in numbers.items():
        if name not in ("arch_specific_syscall", "syscalls", "sync_file_range2"):
            assert syscalls.number(name, "aarch64") == value, name
    assert syscalls.number("mmap", "aarch64") == 222  # __NR3264_mmap


def test_every_number_of_x32() -> None:
    for name, value in header("x86_64-linux-gnu/asm/unistd_x32.h", "asm/unistd_x32.h").items():
        assert syscalls.name("x86_64", syscalls.X32_FIRST + value) == name


def test_rows_mean_one_call_each() -> None:
    for machine in ("x86_64", "aarch64"):
        for name in syscalls.NUMBERS:
            for row in syscalls.rows(name, machine):
                assert row < syscalls.ROWS
                assert syscalls.name(machine, row) == name
    assert syscalls.rows("connect", "x86_64") == (42, 512 + 362, 1024 + 3, 1088 + 42)
    assert syscalls.rows("chown", "x86_64")[1:3] == (512 + 182, 512 + 212)
    with pytest.raises(Incompatible):
        syscalls.number("openat", "pdp11")


def test_everybody_knows_what_is_watched() -> None:
    assert set(CALLS) <= syscalls.NAMES & set(syscalls.NUMBERS)
    assert set(syscalls.ALIASES.values()) <= set(CALLS)
    for name, row in CALLS.items():
        assert event_words.CALLS[name] in (row.operation, Operation.CREATE)
        if row.operation is not Operation.CALL:
            assert name in named(row.operation)
        words(row)  # as many words as there are arguments


@pytest.mark.parametrize("name", sorted(name for name, row in CALLS.items() if row.words))
def test_what_is_told_of_a_call_is_read_back(name: str) -> None:
    row = CALLS[name]
    told = [member for member, _ in words(row)]
    behaviour = Behaviour(
        operation=row.operation, syscall_name=name,
        resource="/a/b" if "resource" in told and not texts(row) else "",
        detail="/looks/like/a/path" if texts(row) else "",
        resource2="c" if "resource2" in told else "",
        flags=7 if "flags" in told else 0,
        args=(3 if "arg0" in told else 0, 5 if "arg1" in told else 0),
    )  # fmt: skip
    assert class_of(row.operation) is Class.SYSCALL
    event = {
        "Operation": "Syscall",
        "Data": wording.data(behaviour),
        "Resource": wording.resource(behaviour, NO_PROCESS),
        "Result": "Passed",
    }
    read = parse_event(json.dumps(event).encode()).behaviour
    assert (read.operation, read.syscall_name, read.resource, read.detail) == (
        row.operation,
        name,
        behaviour.resource,
        behaviour.detail,
    )
    assert (read.resource2, read.flags, read.args) == (behaviour.resource2, behaviour.flags, behaviour.args)
