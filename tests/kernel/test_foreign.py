# SPDX-License-Identifier: Apache-2.0
"""Calls by the 32-bit entries of x86-64: read by their own table of numbers, told and held like the native ones."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.loading import LoadedPrograms
from kernel.siphash import string_id
from schemas.kernel import RULE, RULE_KEY, RuleAction, RuleKind, ScopeFlag
from schemas.operations import Backend, Class, Operation
from schemas.syscalls import I386_FIRST, X32_FIRST, name

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the 32-bit entries of x86-64"),
]
KILLED = 9
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> str:
    """The program of entries.c, where the kernel takes int 0x80."""
    out = tmp_path_factory.mktemp("entries") / "entries"
    source = Path(__file__).parents[1] / "attacks" / "entries.c"
    subprocess.run([compiler, "-O1", "-static", "-w", "-o", out, source], check=True)
    tried = subprocess.run([out, "open", "/dev/null"], capture_output=True, text=True, check=False)
    if tried.returncode or int(tried.stdout) < 0:
        pytest.skip("this kernel takes no int 0x80 (CONFIG_IA32_EMULATION)")
    return str(out)


@pytest.fixture
def blocked(sensor: Any, tmp_path: Path) -> Iterator[Path]:
    """A file whose opening, and a program whose exec, ends a process of the test's cgroup."""
    path = tmp_path.resolve() / "blocked"
    path.write_text("secret")
    table = time.monotonic_ns()
    keys = [
        RULE_KEY.struct.pack(table, string_id(sensor.key, str(what)), 0, class_, RuleKind.EXACT)
        for class_, what in ((Class.FILE, path), (Class.PROCESS, TRUE))
    ]
    with sensor.map("rules") as rules:
        for key in keys:
            rules.put(key, RULE.struct.pack(RuleAction.BLOCK, 0, 7, 0))
    sensor.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=table)
    yield path
    with sensor.map("rules") as rules:
        for key in keys:
            rules.delete(key)


def one(events: list[Any], operation: Operation, path: object = None) -> Any:
    """The foreign event of that operation."""
    found = [
        event for event in events
        if event.operation is operation and event.syscall >= I386_FIRST and path in (None, event.resource)
    ]  # fmt: skip
    assert len(found) == 1, events
    return found[0]


@pytest.mark.parametrize("how", ["open", "openat"])
def test_an_open_is_told_and_held(sensor: Any, entries: str, blocked: Path, how: str) -> None:
    event = one(sensor.run([entries, how, str(blocked)], status=KILLED), Operation.OPEN)
    assert (event.resource, event.enforcer, name("x86_64", event.syscall)) == (str(blocked), Backend.SIGNAL, how)
    free = blocked.with_name("free")
    free.write_text("x")
    event = one(sensor.run([entries, how, str(free)]), Operation.OPEN)
    assert (event.resource, event.enforcer) == (str(free), Backend.OBSERVER)


def test_an_exec_is_told_and_held(sensor: Any, entries: str, blocked: Path) -> None:
    events = sensor.run([entries, "execve", TRUE], status=KILLED)
    (event,) = (one for one in events if one.operation is Operation.EXEC and one.resource == TRUE)
    assert event.enforcer is Backend.SIGNAL


def test_calls_are_told_by_their_own_numbers(sensor: Any, entries: str, tmp_path: Path) -> None:
    path = tmp_path.resolve() / "file"
    path.write_text("x")
    changed = one(sensor.run([entries, "chown", str(path)]), Operation.CHOWN)
    assert (changed.resource, changed.args, name("x86_64", changed.syscall)) == (str(path), (7, 8), "chown")
    gone = one(sensor.run([entries, "unlink", str(path)]), Operation.UNLINK)
    assert (gone.resource, gone.result, name("x86_64", gone.syscall)) == (str(path), 0, "unlink")
    assert one(sensor.run([entries, "unshare"]), Operation.CALL).flags == 0x04000000
    unmounted = one(sensor.run([entries, "umount", str(tmp_path)]), Operation.UMOUNT)
    assert (name("x86_64", unmounted.syscall), unmounted.result) == ("umount2", -errno.EINVAL)


@pytest.mark.parametrize(
    ("how", "call", "operation"),
    [
        ("connect", "connect", Operation.CONNECT),
        ("socketcall", "connect", Operation.CONNECT),
        ("sendmsg", "sendmsg", Operation.SEND),
    ],
)
def test_sockets(sensor: Any, entries: str, how: str, call: str, operation: Operation) -> None:
    event = one(sensor.run([entries, how]), operation)
    assert (name("x86_64", event.syscall), event.address[:4], event.port) == (call, bytes((127, 0, 0, 9)), 9)


def test_x32_is_told_as_what_it_is(sensor: Any, entries: str, blocked: Path, loaded: LoadedPrograms) -> None:
    """Where the kernel takes x32 calls the open is held; where it does not, its refusal is told under the call's name, if calls are
    seen where they end: no function is asked."""
    refused = (
        int(subprocess.run([entries, "x32", "/dev/null"], capture_output=True, text=True, check=True).stdout)
        == -errno.ENOSYS
    )
    events = sensor.run([entries, "x32", str(blocked)], status=0 if refused else KILLED)
    if refused and loaded.functions:
        assert not [event for event in events if event.syscall >= X32_FIRST]
        return
    event = one(events, Operation.OPEN)
    assert (event.syscall, name("x86_64", event.syscall), event.resource) == (X32_FIRST + 2, "open", str(blocked))
    assert event.result == (-errno.ENOSYS if refused else 0)


def test_native_numbers_mean_native_calls(sensor: Any, entries: str) -> None:
    """fstat has the number of i386's open: a native one is nothing that is told."""
    events = sensor.run(lambda: [os.fstat(0) for _ in range(50)])
    assert not [event for event in events if event.syscall in (5, I386_FIRST + 5)]
    assert struct.calcsize("P") == 8
