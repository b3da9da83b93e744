# SPDX-License-Identifier: Apache-2.0
"""The pump: at least once, in order, back-off, bisection, dead letters, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.contract import Record
from bus.memory import MemoryBus
from bus.pump import Pump, PumpSettings
from schemas.errors import DecodeError, Refused, Temporary, Unavailable
from schemas.topics import ALERTS, DEAD, EVENTS_RAW

QUICK = PumpSettings(max_wait=0.05, retry_first=0.01, retry_most=0.02)


@contextlib.asynccontextmanager
async def running(pump: Pump):
    task = asyncio.create_task(pump.run())
    try:
        yield
    finally:
        pump.stop()
        await asyncio.wait_for(task, 60)


async def test_it_hands_over_everything_in_order_and_commits(world, records, until):
    bus = await world.open()
    await bus.publish(EVENTS_RAW, records(1000))
    seen = []

    async def handle(batch):
        seen.extend(int(delivery.record.value) for delivery in batch)

    pump = Pump(bus, [EVENTS_RAW], "g", handle, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: len(seen) == 1000)
    assert seen == list(range(1000))
    assert await bus.lag("g") == {"events.raw": 0}
    assert (pump.stats.records, pump.stats.dead, pump.stats.retries, pump.stats.lag) == (1000, 0, 0, 0)
    assert pump.stats.bytes == sum(len(b"k%d" % index) for index in range(1000))


async def test_temporary_means_the_same_batch_again(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(5))
    tries = []

    async def handle(batch):
        tries.append([delivery.offset for delivery in batch])
        if len(tries) < 4:
            raise Unavailable("not now")

    pump = Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.records == 5)
    assert tries == [tries[0]] * 4
    assert pump.stats.retries == 3


async def test_retry_after_is_honoured(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(1))
    times = []

    async def handle(batch):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Temporary("busy", retry_after=0.15)

    async with running(Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK, random_part=lambda: 0.0)):
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.14


async def test_only_the_bad_record_dies(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, [*records(7), Record(b"bad", b"7", (("h", b"1"),)), *records(8, first=8)])
    seen = []

    async def handle(batch):
        if any(delivery.record.key == b"bad" for delivery in batch):
            raise DecodeError("expected JSON, got 7")
        seen.extend(int(delivery.record.value) for delivery in batch)

    pump = Pump(bus, [ALERTS], "g", handle, stage="sinks", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.records == 16)
    assert seen == [index for index in range(16) if index != 7]
    assert pump.stats.dead == 1
    async with bus.subscribe([DEAD], None, "earliest") as subscription:
        (dead,) = await subscription.take(10, 60)
    headers = dict(dead.record.headers)
    assert (dead.record.key, dead.record.value, headers.pop("h")) == (b"bad", b"7", b"1")
    assert int(headers.pop("dead.time")) > 0
    assert headers == {
        "dead.topic": b"alerts",
        "dead.partition": b"0",
        "dead.offset": b"7",
        "dead.group": b"g",
        "dead.stage": b"sinks",
        "dead.reason": b"decode",
        "dead.error": b"DecodeError: expected JSON, got 7",
        "dead.attempts": b"1",
    }
    assert await bus.lag("g") == {"alerts": 0}


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, 29)), unknown=st.sets(st.integers(0, 29)))
def test_whatever_is_bad_the_rest_is_handled_in_order_and_the_bad_are_dead(bad, unknown):
    async def scenario() -> None:
        bus = MemoryBus()
        await bus.publish(ALERTS, [Record(b"k", b"%d" % index) for index in range(30)])
        seen = []

        async def handle(batch):
            numbers = [int(delivery.record.value) for delivery in batch]
            if bad.intersection(numbers):
                raise Refused("never")
            if unknown.intersection(numbers):
                raise KeyError("a bug")
            seen.extend(numbers)

        quick = PumpSettings(max_wait=0.01, retry_first=0.0001, retry_most=0.0001, unknown_attempts=2)
        pump = Pump(bus, [ALERTS], "g", handle, stage="test", settings=quick)
        async with running(pump):
            while pump.stats.records < 30:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert seen == [index for index in range(30) if index not in bad | unknown]
        assert sorted(int(record.value) for record in bus.records(DEAD)) == sorted(bad | unknown)

    asyncio.run(scenario())


async def test_stop_finishes_the_batch_in_hand(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def handle(batch):
        entered.set()
        await leave.wait()

    pump = Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)
    task = asyncio.create_task(pump.run())
    await entered.wait()
    pump.stop()
    leave.set()
    await asyncio.wait_for(task, 60)
    assert await bus.lag("g") == {"alerts": 0}


async def test_stop_during_back_off_leaves_the_batch_uncommitted(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))

    async def handle(batch):
        raise Unavailable("away", retry_after=600)

    pump = Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.backing_off)
    assert await bus.lag("g") == {"alerts": 3}


async def test_with_flush_the_commit_waits_for_it(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    flushed = asyncio.Event()
    may = asyncio.Event()

    async def handle(batch):
        return None

    async def flush():
        flushed.set()
        if not may.is_set():
            raise Unavailable("disk is slow")

    pump = Pump(bus, [ALERTS], "g", handle, stage="test", flush=flush, flush_seconds=0.05, settings=QUICK)
    async with running(pump):
        await asyncio.wait_for(flushed.wait(), 60)
        assert (await bus.lag("g"))["alerts"] == 3
        may.set()
        await until(lambda: pump.stats.commits > 0)
    assert await bus.lag("g") == {"alerts": 0}


async def test_a_commit_that_fails_for_now_is_tried_again(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))

    async def handle(batch):
        bus.fail(Unavailable("no broker"), call="commit", times=2)

    pump = Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.commits == 1)
    assert await bus.lag("g") == {"alerts": 0}
    assert pump.stats.last_error_reason == "unavailable"


async def test_a_take_that_fails_for_now_is_tried_again(records, until):
    bus = MemoryBus()
    bus.fail(Unavailable("no broker"), call="take", times=3)
    await bus.publish(ALERTS, records(3))
    seen = []

    async def handle(batch):
        seen.extend(batch)

    async with running(Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)):
        await until(lambda: len(seen) == 3)


async def test_cancelling_the_pump_repeats_after_the_next_start(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    entered = asyncio.Event()

    async def hang(batch):
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Pump(bus, [ALERTS], "g", hang, stage="test", settings=QUICK).run())
    await asyncio.wait_for(entered.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    seen = []

    async def handle(batch):
        seen.extend(batch)

    async with running(Pump(bus, [ALERTS], "g", handle, stage="test", settings=QUICK)):
        await until(lambda: len(seen) == 3)
