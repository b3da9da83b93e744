# SPDX-License-Identifier: Apache-2.0
"""New names are dear: who makes too many is counted without them, and takes nobody else's room."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from kernel.loading import LoadedPrograms, LoadSettings, load, unload
from kernel.siphash import string_id
from schemas.kernel import BUDGET, OWN_LOSSES, QUIET_KEY, RULE, RULE_KEY, Config, Loss, RuleAction, RuleKind, ScopeFlag
from schemas.operations import Access, Backend, Class, Operation

PER_SECOND = 256
TABLE = 4711


@pytest.fixture(scope="module")
def frugal(bpffs: str) -> Iterator[LoadedPrograms]:
    """The programs with room for few new names."""
    pins = f"{bpffs}/frugal"
    try:
        yield load(LoadSettings(new_visibility=("none",), new_per_second=PER_SECOND, timeout=1200.0), pins)
    finally:
        unload(pins)


@pytest.fixture
def flooder(frugal: LoadedPrograms, cgroup: Path, sensor: Any) -> Iterator[Any]:
    """A container that will make too many names."""
    made = type(sensor)(frugal, cgroup)
    yield made
    made.close()


def fresh_window() -> None:
    """Waits for a window in which nobody has asked for names yet; they are of 2^30 ns."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) >> 30
    assert eventually(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) >> 30 != before)


def missing(count: int) -> Callable[[], None]:
    def act() -> None:
        for number in range(count):
            try:
                os.open(f"/nonexistent/{number:040}", os.O_RDONLY)
            except FileNotFoundError:
                continue

    return act


def of(events: list[Any], cgroup: int, operation: Operation = Operation.OPEN) -> list[Any]:
    return [event for event in events if event.cgroup == cgroup and event.operation is operation]


def test_failed_calls_are_shed_and_counted_exactly(flooder: Any) -> None:
    events = [event for event in of(flooder.run(missing(3000)), flooder.cgroup_id) if event.result == -2]
    own = [event for event in events if event.resource.startswith("/nonexistent/") or event.access & Access.UNTOLD]
    untold = [event for event in own if event.access & Access.UNTOLD]
    assert len(own) == 3000
    assert 0 < len(untold) < 3000
    assert {event.resource for event in untold} == {""}
    assert len({event.id for event in untold}) == 1
    assert {event.executable for event in untold} == {event.executable for event in own}
    assert flooder.lost(Loss.DEFINITIONS_FULL) == 0


def test_who_is_behind_has_fewer_names_announced(flooder: Any, tmp_path: Path) -> None:
    def named(step: int) -> int:
        target = tmp_path / str(step)
        target.mkdir()
        for number in range(1000):
            (target / f"{number}").touch()

        def act() -> None:
            for number in range(1000):
                os.close(os.open(target / f"{number}", os.O_RDONLY))

        with flooder.map("config") as config:
            config.put(struct.pack("=I", Config.SPARED), struct.pack("=Q", step))
            try:
                events = of(flooder.run(act), flooder.cgroup_id)
            finally:
                config.put(struct.pack("=I", Config.SPARED), struct.pack("=Q", 0))
        return len({event.resource for event in events if event.resource.startswith(f"{target}/")})

    # In calm 128 of a window may pass for the node; at the last step 4, and 2 of a container.
    whole, spared = named(0), named(6)
    assert spared < whole / 4, (whole, spared)


def test_a_neighbour_and_calls_that_pass_have_room_of_their_own(
    frugal: LoadedPrograms, flooder: Any, remove: Callable[[Path], None], tmp_path: Path
) -> None:
    for number in range(20):
        (tmp_path / f"{number}").touch()

    def read(numbers: range) -> Callable[[], None]:
        def act() -> None:
            for number in numbers:
                os.close(os.open(tmp_path / f"{number}", os.O_RDONLY))

        return act

    def flood_then_read() -> None:
        missing(2000)()
        read(range(10))()

    mine = of(flooder.run(flood_then_read), flooder.cgroup_id)
    named = {event.resource for event in mine}
    assert {f"{tmp_path}/{number}" for number in range(10)} <= named
    assert any(event.access & Access.UNTOLD for event in mine)
    path = flooder.cgroup.with_name(flooder.cgroup.name + "-b")
    path.mkdir()
    neighbour = type(flooder)(frugal, path)
    try:
        pid = os.fork()
        if not pid:
            (flooder.cgroup / "cgroup.procs").write_text("0")
            while True:
                missing(100)()
        try:
            other = of(neighbour.run(read(range(10, 20))), neighbour.cgroup_id)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    finally:
        neighbour.close()
        remove(path)
    assert {f"{tmp_path}/{number}" for number in range(10, 20)} <= {event.resource for event in other}


def test_two_names_of_one_call_are_shed_together(flooder: Any, tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "0").touch()
        for number in range(1000):
            os.rename(tmp_path / f"{number}", tmp_path / f"{number + 1}")

    renames = of(flooder.run(act), flooder.cgroup_id, Operation.RENAME)
    assert len(renames) == 1000
    for event in renames:
        told = (event.resource, event.resource2)
        assert told == ("", "") if event.access & Access.UNTOLD else all(told)
    assert {bool(event.access & Access.UNTOLD) for event in renames} == {True, False}


def test_a_denial_is_named_in_the_middle_of_a_flood(flooder: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    flooder.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=TABLE)
    key = RULE_KEY.struct.pack(TABLE, string_id(flooder.key, str(secret).encode()), 0, Class.FILE, RuleKind.EXACT)

    def act() -> None:
        missing(2000)()
        for number in range(400):  # calls that pass are over their share as well
            (tmp_path / f"new-{number}").touch()
        os.open(secret, os.O_RDONLY)

    with flooder.map("rules") as rules:
        rules.put(key, RULE.struct.pack(RuleAction.BLOCK, 0, 1, 0))
        try:
            events = flooder.run(act, status=9)
        finally:
            rules.delete(key)
    assert any(event.access & Access.UNTOLD and event.result == 0 for event in events)
    (denied,) = [event for event in events if event.enforcer is Backend.SIGNAL]
    assert denied.resource == str(secret)
    assert not denied.access & Access.UNTOLD


def test_users_without_end_do_not_multiply_a_container(flooder: Any) -> None:
    def act() -> None:
        missing(500)()
        for uid in range(100_000, 100_200):
            os.setresuid(uid, 0, 0)
            missing(2)()
        os.setresuid(0, 0, 0)

    events = [event for event in of(flooder.run(act), flooder.cgroup_id) if event.access & Access.UNTOLD]
    assert len({event.id for event in events}) < 20
    assert any(event.uid == 0xFFFFFFFF and event.executable == "" for event in events)


def test_a_cgroup_inside_a_container_is_charged_to_it(flooder: Any) -> None:
    inner = flooder.cgroup / "inner"
    inner.mkdir()

    def act() -> None:
        (inner / "cgroup.procs").write_text("0")
        missing(50)()

    key = struct.pack("=Q", flooder.cgroup_id)
    with flooder.map("budgets") as budgets:
        before = budgets.get(key)
        flooder.run(act)
        assert budgets.get(struct.pack("=Q", inner.stat().st_ino)) is None
        # Its window, or what was asked in it: the next second begins at 0.
        after = budgets.get(key)
        assert after is not None
        assert after != before
    inner.rmdir()


def test_nothing_is_reported_before_there_is_a_reader_nor_long_after(flooder: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()

    def observed(until: int) -> None:
        with flooder.map("config") as config:
            config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", until))

    def act() -> None:
        os.close(os.open(path, os.O_RDONLY))

    lost = flooder.lost(Loss.UNREAD)
    observed(0)
    assert flooder.run(act) == []
    assert flooder.lost(Loss.UNREAD) == lost
    observed(1)
    assert flooder.run(act) == []
    untold = flooder.lost(Loss.UNREAD) - lost
    assert untold > 0
    with flooder.map("budgets") as budgets:
        value = budgets.get(struct.pack("=Q", flooder.cgroup_id))
        lost_of_it = struct.unpack_from(f"={len(OWN_LOSSES)}Q", value, BUDGET.offsets["lost"])
        assert lost_of_it[OWN_LOSSES.index(Loss.UNREAD)] == untold
    with flooder.map("processes") as images:
        images.clear()  # what was executed meanwhile is not known by name
    observed(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60_000_000_000)
    assert str(path) in {event.resource for event in of(flooder.run(act), flooder.cgroup_id)}


def test_once_the_time_is_over_a_call_is_not_even_read_and_what_is_enforced_is(flooder: Any, tmp_path: Path) -> None:
    path = Path(os.path.realpath(tmp_path)) / "blocked"
    path.touch()
    late = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1

    def until() -> int:
        with flooder.map("config") as config:
            return int(config.sum_u64(struct.pack("=I", Config.OBSERVED_UNTIL)))

    with flooder.map("config") as config:
        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", late))
    assert flooder.run(missing(1)) == []
    assert until() == 1, "the first event that comes too late says so to the others"
    before = flooder.lost(Loss.UNREAD)
    assert flooder.run(missing(100)) == []
    assert 100 <= flooder.lost(Loss.UNREAD) - before <= 150
    rule = RULE_KEY.struct.pack(TABLE, string_id(flooder.key, str(path)), 0, Class.FILE, RuleKind.EXACT)
    with flooder.map("rules") as rules:
        rules.put(rule, RULE.struct.pack(RuleAction.BLOCK, 0, 1, 0))
        try:
            flooder.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=TABLE)
            for _ in range(3):
                flooder.run(lambda: os.open(path, os.O_RDONLY), status=9)
        finally:
            rules.delete(rule)
    assert until() == 1


def test_where_nobody_asks_for_names_a_directory_is_told_and_counted_exactly(flooder: Any, tmp_path: Path) -> None:
    """`quiet` says of which directories; what is denied there, what has two paths and what lies elsewhere keeps its name."""
    quiet, other = tmp_path / "quiet", tmp_path / "other"
    for directory in (quiet, other):
        directory.mkdir()
        for number in range(600):
            (directory / f"{number}").touch()
    (quiet / "below").mkdir()
    (quiet / "below" / "file").touch()

    def act() -> None:
        for number in range(600):
            os.close(os.open(quiet / f"{number}", os.O_RDONLY))
        os.close(os.open(quiet / "below" / "file", os.O_RDONLY))
        os.close(os.open(quiet / f"{0}", os.O_RDONLY))
        os.rename(quiet / "599", quiet / "600")
        for number in range(40):
            os.close(os.open(other / f"{number}", os.O_RDONLY))

    fresh_window()
    key = QUIET_KEY.struct.pack(flooder.cgroup_id, string_id(flooder.key, f"{quiet}/"))
    with flooder.map("quiet") as table:
        table.put(key, struct.pack("=Q", 1))
        began = time.monotonic()
        try:
            events = of(flooder.run(act), flooder.cgroup_id)
        finally:
            table.delete(key)
    named = [event for event in events if event.resource.startswith(f"{quiet}/") and not event.access & Access.UNTOLD]
    whole = [event for event in events if event.resource == f"{quiet}/"]
    assert all(event.access & Access.UNTOLD for event in whole)
    assert len({event.id for event in whole}) == 1
    # A container's share in each window that there was.
    windows = (time.monotonic() - began) / (1 << 30) * 1e9 + 2
    assert PER_SECOND // 16 <= len({event.resource for event in named}) <= windows * PER_SECOND // 16
    assert len(named) + len(whole) >= 601
    assert len([event for event in named if event.resource == f"{quiet}/0"]) == 2, "what is known by name stays so"
    elsewhere = [event for event in events if event.resource.startswith(f"{other}/")]
    assert not any(event.access & Access.UNTOLD for event in elsewhere)
    assert {event.resource for event in elsewhere} == {f"{other}/{number}" for number in range(40)}

    def later() -> None:
        for number in range(200):
            (quiet / f"later-{number}").touch()

    events = of(flooder.run(later), flooder.cgroup_id, Operation.CREATE)
    assert len(events) == 200
    assert f"{quiet}/" not in {event.resource for event in events}, "taken back, so that no name is told so any more"
