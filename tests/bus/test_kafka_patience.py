# SPDX-License-Identifier: Apache-2.0
"""Records that may wait are handed out together, and what may not is never held up by them. On a real broker."""

from __future__ import annotations

import time

import pytest

from bus.contract import PATIENT, Record
from schemas.topics import EVENTS_RAW

pytestmark = pytest.mark.parametrize("world", ["kafka"], indirect=True)
LONG = 10.0
"""Seconds: nothing of a test waits for this by itself."""


def record(number: int, *, patient: bool) -> Record:
    return Record(b"n", b"%d" % number, ((PATIENT, b""),) if patient else ())


def values(batch) -> list[int]:
    return [int(one.record.value) for one in batch]


async def ready(bus, reader) -> None:
    """The reader is at the end of its partition, and whatever comes is fetched at once."""
    await bus.publish(EVENTS_RAW, [record(0, patient=False)])
    while values(await reader.take(100, 1.0)) != [0]:
        pass


async def test_records_that_may_wait_come_together(world) -> None:
    bus = await world.open(patience=0.5)
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        await ready(bus, reader)
        for number in (1, 2, 3):
            await bus.publish(EVENTS_RAW, [record(number, patient=True)])
        began = time.monotonic()
        assert values(await reader.take(100, LONG)) == [1, 2, 3]
        # From the first one's arrival on, which was before `began` or after it.
        assert time.monotonic() - began < LONG / 2


async def test_what_cannot_wait_takes_the_others_along(world) -> None:
    bus = await world.open(patience=LONG)
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        await ready(bus, reader)
        await bus.publish(EVENTS_RAW, [record(1, patient=True)])
        # Held, and not lost by a `take` that ends before they are due.
        assert values(await reader.take(100, 0.3)) == []
        await bus.publish(EVENTS_RAW, [record(2, patient=False), record(3, patient=True)])
        began, found = time.monotonic(), []
        while len(found) < 3:
            found += values(await reader.take(100, LONG))
        assert found == [1, 2, 3]
        assert time.monotonic() - began < LONG / 2


async def test_as_many_as_are_asked_for_do_not_wait(world) -> None:
    bus = await world.open(patience=LONG, take_bytes=4096)
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        await ready(bus, reader)
        await bus.publish(EVENTS_RAW, [record(number, patient=True) for number in range(1, 4)])
        began = time.monotonic()
        assert values(await reader.take(2, LONG)) == [1, 2]
        # What is left behind them waited as long as they did.
        assert values(await reader.take(2, LONG)) == [3]
        large = Record(b"n", b"x" * 5000, ((PATIENT, b""),))
        await bus.publish(EVENTS_RAW, [large])
        assert len(await reader.take(100, LONG)) == 1
        assert time.monotonic() - began < LONG / 2
        # A reader that pauses takes nothing and loses nothing.
        await bus.publish(EVENTS_RAW, [record(4, patient=True)])
        assert await reader.take(0, 0.3) == []


async def test_what_came_while_a_batch_was_handled_is_handed_out_at_once(world, until) -> None:
    bus = await world.open(patience=0.2)
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        await ready(bus, reader)
        await bus.publish(EVENTS_RAW, [record(1, patient=True)])
        assert values(await reader.take(100, LONG)) == [1]
        await bus.publish(EVENTS_RAW, [record(2, patient=False)])
        # Asked for before the batch was handed out, and answered since.
        await until(lambda: reader._fetch is None or reader._fetch.done())
        began = time.monotonic()
        assert values(await reader.take(100, LONG)) == [2]
        assert time.monotonic() - began < LONG / 4


async def test_without_patience_nothing_waits(world) -> None:
    bus = await world.open(patience=0.0)
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        await ready(bus, reader)
        await bus.publish(EVENTS_RAW, [record(1, patient=True)])
        began = time.monotonic()
        assert values(await reader.take(100, LONG)) == [1]
        assert time.monotonic() - began < LONG / 2
