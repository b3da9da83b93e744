# SPDX-License-Identifier: Apache-2.0
"""A take that ends at an event: at once, and without losing a record."""

from __future__ import annotations

import asyncio

from bus.interruptible import Signal, take_or
from schemas.topics import ALERTS


async def test_it_ends_at_the_event_and_what_comes_later_is_handed_out_next(world, records):
    bus = await world.open()
    stop = asyncio.Event()
    async with bus.subscribe([ALERTS], "g") as subscription:
        asyncio.get_running_loop().call_later(0.02, stop.set)
        async with asyncio.timeout(60):
            assert await take_or(subscription, 10, 600.0, stop) == []
        await bus.publish(ALERTS, records(3))
        assert await take_or(subscription, 10, 60.0, stop) == []
        taken = await take_or(subscription, 10, 60.0, asyncio.Event())
        assert [delivery.record.value for delivery in taken] == [record.value for record in records(3)]


async def test_records_and_time_end_it_as_they_do_a_take(world, records):
    bus = await world.open()
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert await take_or(subscription, 10, 0.01, asyncio.Event()) == []
        await bus.publish(ALERTS, records(1))
        assert len(await take_or(subscription, 10, 60.0, asyncio.Event())) == 1


async def test_a_signal_ends_it_whenever_it_comes(world, records):
    """Before the take, during it, and again after it was cleared: no set is missed, and nothing listens on."""
    bus = await world.open()
    signal = Signal()
    async with bus.subscribe([ALERTS], "g") as subscription:
        for _ in range(3):
            signal.set()
            assert await take_or(subscription, 10, 600.0, signal) == []
            signal.clear()
            asyncio.get_running_loop().call_later(0.01, signal.set)
            async with asyncio.timeout(60):
                assert await take_or(subscription, 10, 600.0, signal) == []
            signal.clear()
        await bus.publish(ALERTS, records(2))
        assert len(await take_or(subscription, 10, 60.0, signal)) == 2
    signal.set()


async def test_a_reader_that_always_finds_something_lets_others_run(world, records):
    bus = await world.open()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with bus.subscribe([ALERTS], "g") as subscription:
        await bus.publish(ALERTS, records(20))
        beside = asyncio.create_task(other())
        for number in range(20):
            before = turns
            assert len(await take_or(subscription, 1, 60.0, Signal())) == 1, number
            assert turns > before
        beside.cancel()


async def test_an_interrupt_between_two_takes_of_the_log_is_not_the_next_ones(log, records):
    """What interrupts was heard: the next take waits again for what it was asked to wait for."""
    bus = await log.open()
    async with bus.subscribe([ALERTS], None, "latest") as subscription:
        subscription.interrupt()
        took = asyncio.create_task(subscription.take(10, 60.0))
        await asyncio.sleep(0)
        assert not took.done()
        await bus.publish(ALERTS, records(1))
        async with asyncio.timeout(60):
            assert len(await took) == 1
