# SPDX-License-Identifier: Apache-2.0
"""Following a compacted topic: everything first, then each change; whole or not at all; again from the start after a failure."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bus.backoff import Backoff
from bus.contract import Record
from bus.follow import Changes, Follower, opened, whole
from schemas.errors import Refused, Unavailable
from schemas.topics import INVENTORY, POLICIES

SOON = Backoff(first_seconds=0.001, max_seconds=0.002)


class View:
    """What a follower was given, applied to a dict; `changes`: each call that was not empty."""

    def __init__(self) -> None:
        self.now: dict[bytes, bytes] = {}
        self.changes: list[Changes] = []
        self.errors: list[BaseException] = []

    async def apply(self, changes: Changes) -> None:
        if self.errors:
            raise self.errors.pop(0)
        if changes.records or changes.whole:
            self.changes.append(changes)
        if changes.whole:
            self.now = {}
        for _, record in changes.records:
            if record.value is None:
                self.now.pop(record.key, None)
            else:
                self.now[record.key] = record.value


@contextlib.asynccontextmanager
async def running(follower: Follower, view: View, **options):
    task = asyncio.create_task(follower.run(view.apply, **options))
    try:
        await asyncio.wait_for(follower.ready.wait(), 60)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_everything_comes_first_and_then_each_change(world, until):
    bus = await world.open()
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1"), Record(b"a", b"2"), Record(b"c", b"1")])
    await bus.publish(POLICIES, [Record(b"c", None)])
    view, follower = View(), Follower(bus, (POLICIES,))
    async with running(follower, view):
        (first,) = view.changes
        assert first.whole
        assert len(first.records) == 3, "the newest of each key alone, tombstones too"
        assert view.now == {b"a": b"2", b"b": b"1"}
        await bus.publish(POLICIES, [Record(b"b", None), Record(b"d", b"1")])
        await until(lambda: view.now == {b"a": b"2", b"d": b"1"})
        assert not any(one.whole for one in view.changes[1:])
        ends = {(POLICIES.name, number): end for number, end in (await bus.end(POLICIES)).items()}
        await until(lambda: follower.position == ends)


async def test_only_what_is_wanted_is_given(world, until):
    bus = await world.open()
    await bus.publish(INVENTORY, [Record(b"n1/a", b"1"), Record(b"n2/a", b"1")])
    view = View()
    async with running(Follower(bus, (INVENTORY,), wanted=lambda key: key.startswith(b"n1/")), view):
        await bus.publish(INVENTORY, [Record(b"n2/b", b"1"), Record(b"n1/b", b"1")])
        await until(lambda: view.now == {b"n1/a": b"1", b"n1/b": b"1"})


async def test_after_an_outage_everything_comes_again(until):
    from bus.memory import MemoryBus

    bus = MemoryBus()
    await bus.publish(POLICIES, [Record(b"a", b"1")])
    view, failed = View(), []
    follower = Follower(bus, (POLICIES,), backoff=SOON, failed=failed.append)
    async with running(follower, view, wait=lambda: 0.001):
        bus.fail(Unavailable("the bus is away"), call="take", times=3)
        await until(lambda: sum(one.whole for one in view.changes) >= 2)
        await until(lambda: follower.problem == "")
        assert follower.failures == len(failed) >= 2
        assert [one.vanished for one in view.changes if one.whole] == [{POLICIES.name: set()}] * 2
        bus.fail(Refused("nobody may read this"), call="take")
        await until(lambda: "nobody may" in follower.problem)
        assert view.now == {b"a": b"1"}


async def test_what_apply_could_not_do_comes_again(world, until):
    bus = await world.open()
    view = View()
    async with running(Follower(bus, (POLICIES,), backoff=SOON), view):
        view.errors = [Unavailable("cannot publish now"), Unavailable("cannot publish now")]
        await bus.publish(POLICIES, [Record(b"a", b"1")])
        await until(lambda: view.now == {b"a": b"1"})


async def test_a_permanent_error_ends_who_wants_that_and_a_bug_ends_everybody(world):
    bus = await world.open()
    for error, keep in ((Refused("broken"), False), (ValueError("a bug"), True)):
        view = View()
        view.errors = [error]
        with pytest.raises(type(error)):
            await asyncio.wait_for(Follower(bus, (POLICIES,), retry_permanent=keep).run(view.apply), 60)


async def test_changes_that_come_together_are_one(world, until):
    bus = await world.open()
    view = View()
    async with running(Follower(bus, (POLICIES,)), view, together=(0.5, 60.0)):
        for index in range(10):
            await bus.publish(POLICIES, [Record(b"k%d" % index, b"1")])
        await until(lambda: len(view.now) == 10)
        assert len(view.changes) <= 4


async def test_it_stops_and_is_woken(world, until):
    bus = await world.open()
    stopping, wake = asyncio.Event(), asyncio.Event()
    calls = []

    async def apply(changes: Changes) -> None:
        calls.append(changes)
        wake.clear()

    follower = Follower(bus, (POLICIES,), stopping=stopping)
    task = asyncio.create_task(follower.run(apply, wait=lambda: 600.0, wake=wake))
    await asyncio.wait_for(follower.ready.wait(), 60)
    wake.set()
    await until(lambda: len(calls) == 2)
    stopping.set()
    await asyncio.wait_for(task, 60)


async def test_a_key_that_moves_while_the_table_is_read_is_not_missing(world, monkeypatch):
    """Written anew, it goes from where it was not read yet to behind the end that was asked for."""
    bus = await world.open()
    monkeypatch.setattr("bus.follow._MOST", 10)
    await bus.publish(POLICIES, [Record(b"k%02d" % index, b"1") for index in range(50)])
    reading = asyncio.create_task(whole(bus, POLICIES))
    for index in range(49, 0, -1):
        await bus.publish(POLICIES, [Record(b"k%02d" % index, b"2")])
    assert len(await asyncio.wait_for(reading, 60)) == 50


async def test_whole_has_tombstones_and_latest_has_not(world):
    bus = await world.open()
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1")])
    await bus.publish(POLICIES, [Record(b"a", None)])
    assert {key: record.value for key, record in (await whole(bus, POLICIES)).items()} == {b"a": None, b"b": b"1"}
    assert set(await bus.latest(POLICIES)) == {b"b"}


async def test_opened_hands_out_what_comes_after(world, drain):
    bus = await world.open()
    await bus.publish(POLICIES, [Record(b"a", b"1")])
    async with opened(bus, (POLICIES,)) as (subscription, found):
        assert set(found[POLICIES.name]) == {b"a"}
        await bus.publish(POLICIES, [Record(b"b", b"1")])
        assert [one.record.key for one in await drain(subscription, 1)] == [b"b"]


async def test_a_table_damaged_while_it_is_followed_is_read_again_and_what_it_lost_is_listed(log, until):
    bus = await log.open()
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1")])
    view, follower = View(), Follower(bus, (POLICIES,), backoff=SOON)
    async with running(follower, view, wait=lambda: 0.01):
        # As any read or write does that finds the file damaged.
        await bus._read_thread(bus._log(POLICIES).quarantine)
        await until(lambda: follower.damaged == 1 and view.changes[-1].whole and len(view.changes) > 1)
        assert view.changes[-1].vanished == {POLICIES.name: {b"a", b"b"}}
        await bus.publish(POLICIES, [Record(b"b", b"2")])
        await until(lambda: view.now == {b"b": b"2"})


async def test_a_read_that_meets_damage_is_not_applied(log, until, monkeypatch):
    bus = await log.open()
    await bus.publish(POLICIES, [Record(b"a", b"1")])
    counts = iter([0, 1])
    monkeypatch.setattr(bus, "damaged", lambda: next(counts, 1))
    view, follower = View(), Follower(bus, (POLICIES,), backoff=SOON)
    async with running(follower, view):
        assert follower.damaged == 1
        assert [one.whole for one in view.changes] == [True]
