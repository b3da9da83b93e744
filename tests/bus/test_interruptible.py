# SPDX-License-Identifier: Apache-2.0
"""A take that ends at an event: at once, and without losing a record."""

from __future__ import annotations

import asyncio

from bus.interruptible import take_or
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
