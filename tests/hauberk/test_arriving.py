# SPDX-License-Identifier: Apache-2.0
"""A verb that reads the store waits for what lies on the bus: both groups, bounded, not for a reader that stands still."""

from __future__ import annotations

import asyncio

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from hauberk import arriving
from schemas.topics import EVENTS_RAW, SUMMARIES, Topic


async def read_one(bus: MemoryBus, group: str, topic: Topic) -> None:
    async with bus.subscribe([topic], group, "earliest") as subscription:
        await subscription.commit(await subscription.take(1, 10.0))


@pytest.fixture
async def bus() -> MemoryBus:
    """One frame and one summary were read, one of each lies there."""
    made = MemoryBus()
    for group, topic in (("processors", EVENTS_RAW), ("sink.store", SUMMARIES)):
        await made.publish(topic, [Record(b"a", b"1"), Record(b"b", b"2")])
        await read_one(made, group, topic)
    return made


async def test_both_groups_are_waited_for(bus: MemoryBus) -> None:
    seen: list[int] = []
    waiting = asyncio.create_task(arriving.arrived(bus, "processors", "sink.store", 60.0, seen.append))
    while not seen:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await read_one(bus, "processors", EVENTS_RAW)
    for _ in range(200):
        await asyncio.sleep(0)
    assert not waiting.done()
    await read_one(bus, "sink.store", SUMMARIES)
    assert await waiting
    assert seen[0] == 1


async def test_what_comes_later_is_not_waited_for(bus: MemoryBus) -> None:
    seen: list[int] = []
    waiting = asyncio.create_task(arriving.arrived(bus, "processors", "sink.store", 60.0, seen.append))
    while not seen:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await bus.publish(EVENTS_RAW, [Record(b"c", b"3")])
    await read_one(bus, "processors", EVENTS_RAW)
    await read_one(bus, "sink.store", SUMMARIES)
    assert await waiting


async def test_a_group_that_stands_still_is_given_up(bus: MemoryBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "STANDS_SECONDS", 0.2)
    assert not await arriving.arrived(bus, "processors", "sink.store", 60.0, lambda left: None)


async def test_the_wait_is_bounded(bus: MemoryBus) -> None:
    assert not await arriving.arrived(bus, "processors", "sink.store", 0.4, lambda left: None)


async def test_without_readers_there_is_nothing_to_wait_for() -> None:
    assert await arriving.arrived(MemoryBus(), "processors", "sink.store", 60.0, lambda left: None)
