# SPDX-License-Identifier: Apache-2.0
"""Identity changes, ptrace, bpf and modules, from their arguments."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from schemas.operations import Class, Operation, class_of
from schemas.syscalls import number

pytestmark = pytest.mark.kernel
Pick = Callable[..., Any]
libc = ctypes.CDLL(None, use_errno=True)


def test_setuid_and_setgid(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        os.setgid(4321)
        os.setresuid(1234, 5678, 9)

    events = sensor.run(act)
    assert pick(events, Operation.SETGID).args[0] == 4321
    changed = pick(events, Operation.SETUID)
    assert (changed.args, changed.uid, changed.syscall) == ((1234, 5678), 1234, number("setresuid"))


def test_refused_setuid(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        os.setuid(1234)
        with pytest.raises(PermissionError):
            os.setuid(0)

    assert pick(sensor.run(act), Operation.SETUID, args=(0, 0)).result == -errno.EPERM


def test_ptrace(sensor: Any, pick: Pick) -> None:
    event = pick(sensor.run(lambda: libc.ptrace(16, 999999999, 0, 0)), Operation.PTRACE)
    assert (event.args, event.result) == ((16, 999999999), -errno.ESRCH)


def test_bpf_and_modules(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        libc.syscall(number("bpf"), 9999, None, 0)
        libc.syscall(number("delete_module"), b"no_such_module_of_hauberk", 0)

    events = sensor.run(act)
    assert pick(events, Operation.BPF).args[0] == 9999
    assert pick(events, Operation.MODULE).result < 0
    assert class_of(Operation.BPF) is Class.SYSCALL
