# SPDX-License-Identifier: Apache-2.0
"""What the memory bus does on request: fail, forget, fill up."""

from __future__ import annotations

import pytest

from bus.contract import Record
from bus.memory import MemoryBus, MemorySettings
from schemas.errors import Backpressure, Refused, Unavailable
from schemas.topics import ALERTS, POLICIES


async def test_it_refuses_what_a_group_has_not_read_and_forgets_what_it_has(drain):
    bus = MemoryBus(MemorySettings(max_bytes=1000))
    async with bus.subscribe([ALERTS], "g") as subscription:
        for _ in range(9):
            await bus.publish(ALERTS, [Record(b"k", b"x" * 100)])
        with pytest.raises(Backpressure):
            await bus.publish(ALERTS, [Record(b"k", b"x" * 100)])
        await drain(subscription, 9)
        await subscription.commit()
        await bus.publish(ALERTS, [Record(b"k", b"x" * 100)])
        assert [d.offset for d in await drain(subscription, 1)] == [9]
        assert subscription.skipped == 0


async def test_forgetting_keeps_the_newest_of_each_key_of_a_compacted_topic():
    bus = MemoryBus(MemorySettings(max_bytes=1000))
    for index in range(50):
        await bus.publish(POLICIES, [Record(b"k%d" % (index % 3), b"%d" % index + b"x" * 98)])
    assert {record.value[:2] for record in (await bus.latest(POLICIES)).values()} == {b"47", b"48", b"49"}


async def test_it_fails_as_often_as_asked():
    bus = MemoryBus()
    bus.fail(Unavailable("away"), times=2)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await bus.publish(ALERTS, [Record(b"k", b"v")])
    await bus.publish(ALERTS, [Record(b"k", b"v")])
    assert len(bus.records(ALERTS)) == 1


async def test_dropped_records_are_a_gap(drain):
    bus = MemoryBus()
    async with bus.subscribe([ALERTS], "g") as subscription:
        await bus.publish(ALERTS, [Record(b"k", b"%d" % index) for index in range(10)])
        bus.drop(ALERTS, before=4)
        assert [d.offset for d in await drain(subscription, 6)] == [4, 5, 6, 7, 8, 9]
        assert (subscription.skipped, subscription.gaps[0].first, subscription.gaps[0].last) == (4, 0, 3)


async def test_anything_but_bytes_is_refused():
    with pytest.raises(Refused, match="expected key and value as bytes, got bytes and str"):
        await MemoryBus().publish(ALERTS, [Record(b"k", "text")])
