# SPDX-License-Identifier: Apache-2.0
"""The scratch that the programs of one event share: nothing of an event steers the next one, however the first one ended.

Between events the whole scratch is filled with random bytes; a path as deep as the kernel allows is judged like any other,
and what cannot be resolved follows the scope's flag.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel import bpf
from kernel.maps import Map
from schemas.kernel import Loss, RuleAction, RuleKind, ScopeFlag
from schemas.operations import Access, Backend, Class, Operation

pytestmark = pytest.mark.kernel
KILLED = 9
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")
BLOCK = RuleAction.BLOCK
Rules = Callable[..., None]
TEXT = 2 * 4096 + 64
"""Bytes of `work.text`, the last member of the scratch; from 4096 on it stays zero."""


@pytest.fixture
def scratch(sensor: Any) -> Iterator[Map]:
    """The scratch map, which is not pinned: found by the ids of the maps that a program uses."""
    program = sensor.loaded.program("on_exec")
    ids = (ctypes.c_uint32 * 32)()
    info = ctypes.create_string_buffer(struct.pack("=52xIQ", len(ids), ctypes.addressof(ids)), 64)
    bpf.check(bpf.OBJ_GET_INFO, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)), "on_exec")
    os.close(program)
    for ident in ids:
        fd = bpf.check(bpf.MAP_GET_FD_BY_ID, struct.pack("=I8x", ident), "map")
        if bpf.map_info(fd).name == "scratch":
            found = Map(fd, "scratch")
            break
        os.close(fd)
    yield found
    found.close()


def poison(scratch: Map, seed: int) -> None:
    """Random bytes in the scratch of every CPU. Not where the kernel relies on zeros: behind the text."""
    noise = random.Random(seed)
    size = scratch.info.value_size
    every = bytearray()
    for _ in range(len(scratch.get(bytes(4)) or b"") // ((size + 7) // 8 * 8)):
        every += noise.randbytes(size - TEXT + 4096) + bytes(TEXT - 4096 + -size % 8)
    scratch.put(bytes(4), bytes(every))


def deep(base: Path, name: str, count: int) -> None:
    """`count` nested directories below `base`, entered one by one: the whole path may be longer than a call accepts."""
    os.chdir(base)
    for _ in range(count):
        if not os.path.isdir(name):
            os.mkdir(name)
        os.chdir(name)


def program_in(base: Path, name: str, count: int) -> None:
    """A copy of `true` as `p` at the bottom of such a nest."""
    with open(TRUE, "rb") as source:
        content = source.read()
    deep(base, name, count)
    with open("p", "wb") as made:
        made.write(content)
    os.chmod("p", 0o755)


def apart(action: Callable[[], object]) -> None:
    """Run `action` in a process of its own, outside the cgroup: it may change directory."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed without recursion."""
    made = tmp_path / "nest"
    made.mkdir()
    yield made
    subprocess.run(["rm", "-rf", str(made)], check=True)


def told(event: Any) -> tuple[Any, ...]:
    """What must not depend on what lay in the scratch."""
    return (
        event.operation, event.access, event.executable, event.parent, event.resource, event.resource2, event.flags, event.result,
        event.uid, event.owner, event.args, event.family, event.port, event.address, event.enforcer, event.ns_pid == event.pid,
    )  # fmt: skip


def test_nothing_of_an_event_steers_the_next(sensor: Any, rules: Rules, scratch: Map, place: Path) -> None:
    blocked, free = place / "blocked", place / "free"
    for path in (blocked, free):
        path.write_text("x")
    rules((Class.FILE, RuleKind.EXACT, str(blocked), BLOCK), (Class.PROCESS, RuleKind.EXACT, str(blocked), BLOCK))

    def act() -> None:
        noise = 0

        def fresh() -> None:
            nonlocal noise
            noise += 1
            poison(scratch, noise)

        def attempt(name: str) -> None:
            fresh()
            pid = os.fork()
            if not pid:
                fresh()
                os.open(name, os.O_RDONLY)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == (KILLED if name == str(blocked) else 0)

        attempt(str(blocked))
        attempt(str(free))
        for name in (free, place / "gone", "free"):
            fresh()
            os.chdir(place)
            fresh()
            with contextlib.suppress(FileNotFoundError):
                os.close(os.open(name, os.O_RDONLY))
        fresh()
        os.rename(free, place / "other")
        fresh()
        os.rename(place / "other", free)
        fresh()
        os.chmod(free, 0o600)
        fresh()
        os.symlink("x/../y", place / "link")
        fresh()
        os.unlink(place / "link")
        fresh()
        os.setgid(0)
        fresh()
        os.execv(TRUE, [TRUE])

    def seen() -> list[tuple[Any, ...]]:
        return [told(event) for event in sensor.run(act) if event.operation is not Operation.EXIT or event.executable]

    # Opens by the interpreter itself differ from run to run (caches): what is compared is what concerns the directory.
    def ours(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [row for row in rows if row[0] is not Operation.OPEN or str(place) in row[4] or row[4] == TRUE]

    first = ours(seen())
    clean = scratch.get(bytes(4)) or b""
    scratch.put(bytes(4), bytes(len(clean)))
    assert [row for row in first if row[14] is Backend.SIGNAL] == [row for row in first if row[4] == str(blocked)] != []
    assert any(row[0] is Operation.RENAME and (row[4], row[5]) == (str(free), f"{place}/other") for row in first)
    assert any(row[0] is Operation.SYMLINK and row[5] == "x/../y" for row in first)
    assert not [row for row in first if row[1] & Access.PARTIAL]
    assert ours(seen()) == first


@pytest.mark.parametrize("adopted", [False, True])
def test_a_chain_that_is_as_long_as_it_gets_is_judged(
    sensor: Any, rules: Rules, place: Path, pick: Callable[..., Any], adopted: bool
) -> None:
    """A program and its working directory, each about as deep as PATH_MAX allows: killed and told; so is what comes next."""
    apart(lambda: program_in(place, "a", 1950))
    rules(
        (Class.PROCESS, RuleKind.RECURSIVE, f"{place}/a/", BLOCK),
        (Class.FILE, RuleKind.EXACT, f"{place}/secret", BLOCK),
    )
    (place / "secret").write_text("x")
    broken = sensor.lost(Loss.CHAIN_BROKEN)

    def act() -> None:
        os.sched_setaffinity(0, {0})
        deep(place, "a", 1950)
        if adopted:
            with sensor.map("processes") as processes:
                processes.clear()
        pid = os.fork()
        if not pid:
            os.execv("./p", ["./p"])
        assert os.waitpid(pid, 0)[1] == KILLED
        os.open(place / "secret", os.O_RDONLY)

    events = sensor.run(act, status=KILLED)
    stopped = [event for event in events if event.enforcer is Backend.SIGNAL]
    assert [event.operation for event in stopped] == [Operation.EXEC, Operation.OPEN]
    assert stopped[0].resource == f"{place}" + "/a" * 1950 + "/p"
    assert stopped[1].resource == f"{place}/secret"
    # Of an adopted process the working directory is not worth that many steps.
    assert (sensor.lost(Loss.CHAIN_BROKEN) == broken) is not adopted


def test_a_working_directory_over_4096_bytes_lets_no_exec_pass(
    sensor: Any, rules: Rules, place: Path, pick: Callable[..., Any]
) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))

    def act() -> None:
        deep(place, "d" * 250, 18)
        os.execv(TRUE, [TRUE])

    event = pick(sensor.run(act, status=KILLED), Operation.EXEC)
    assert (event.resource, event.enforcer) == (TRUE, Backend.SIGNAL)
    assert not event.access & Access.PARTIAL, "the path of the program is whole, whatever the directory's"


@pytest.mark.parametrize(
    ("kind", "where", "held"),
    [
        (RuleKind.RECURSIVE, "", True),
        (RuleKind.RECURSIVE, "/dir", True),
        (RuleKind.RECURSIVE, "/dir" + ("/" + "e" * 250) * 14, True),
        (RuleKind.RECURSIVE, "/other", False),
        (RuleKind.DIRECTORY, "/dir" + ("/" + "e" * 250) * 14, False),
    ],
)
@pytest.mark.parametrize("act", ["open", "exec"])
def test_a_directory_rule_holds_below_4096_bytes(
    sensor: Any, rules: Rules, place: Path, kind: RuleKind, where: str, held: bool, act: str
) -> None:
    (place / "dir").mkdir()
    apart(lambda: program_in(place / "dir", "e" * 250, 18))
    class_ = Class.FILE if act == "open" else Class.PROCESS
    rules((class_, kind, f"{place}{where}/", BLOCK), flags=ScopeFlag.CLOSED)

    def run() -> None:
        deep(place / "dir", "e" * 250, 18)
        if act == "open":
            os.close(os.open("p", os.O_RDONLY))
        os.execv("./p", ["./p"])

    events = sensor.run(run, status=KILLED if held else 0)
    stopped = [event for event in events if event.enforcer is Backend.SIGNAL]
    assert len(stopped) == held
    for event in stopped:
        assert event.access & Access.PARTIAL
        assert event.resource.startswith(f"{place}/dir/eee")
        assert event.resource.endswith("/...")


def test_what_lies_in_the_last_directory_that_fits(sensor: Any, rules: Rules, place: Path) -> None:
    """A file whose directory is shorter than 4,096 bytes and whose path is longer."""
    count, rest = divmod(4000 - len(str(place)) - 2, 251)
    first = place / ("d" * (rest + 1))
    first.mkdir()

    def make() -> None:
        deep(first, "e" * 250, count)
        Path("f" * 250).write_text("x")

    apart(make)
    parent = f"{first}" + ("/" + "e" * 250) * count
    assert len(parent) == 4000

    def act() -> None:
        deep(first, "e" * 250, count)
        os.open("f" * 250, os.O_RDONLY)

    rules((Class.FILE, RuleKind.DIRECTORY, f"{os.path.dirname(parent)}/", BLOCK))
    sensor.run(act)
    rules((Class.FILE, RuleKind.DIRECTORY, f"{parent}/", BLOCK))
    sensor.run(act, status=KILLED)
    rules((Class.FILE, RuleKind.EXECNAME, "f" * 250, RuleAction.ALLOW))
    sensor.run(act)


@pytest.mark.parametrize("closed", [True, False])
def test_a_path_that_cannot_be_resolved_follows_the_scope_and_is_told(
    sensor: Any, rules: Rules, place: Path, closed: bool
) -> None:
    apart(lambda: program_in(place, "u", 9000))
    rules((Class.FILE, RuleKind.EXACT, "/nobody/opens/this", BLOCK), flags=ScopeFlag.CLOSED if closed else ScopeFlag(0))
    broken = sensor.lost(Loss.CHAIN_BROKEN)

    def act() -> None:
        deep(place, "u", 9000)
        os.open("p", os.O_RDONLY)

    events = sensor.run(act, status=KILLED if closed else 0)
    (event,) = [event for event in events if event.resource.endswith("/u/p")]
    assert event.access & Access.PARTIAL
    assert event.resource.startswith("...")
    assert event.enforcer is (Backend.SIGNAL if closed else Backend.OBSERVER)
    assert sensor.lost(Loss.CHAIN_BROKEN) > broken
