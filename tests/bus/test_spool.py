# SPDX-License-Identifier: Apache-2.0
"""The spool keeps order, loses nothing under its caps, sheds in the order it says, and counts what it shed."""

from __future__ import annotations

import pytest

from bus.backoff import Backoff
from bus.contract import Record
from bus.memory import MemoryBus
from bus.spool import SpooledBus, SpoolSettings
from schemas.errors import Backpressure, Refused, Unavailable
from schemas.topics import ALERTS, SUMMARIES, TELEMETRY


def away(inner: MemoryBus, times: int = 10_000) -> None:
    inner.fail(Unavailable("no broker", 0.01), times=times)


def back(inner: MemoryBus) -> None:
    inner._failures.clear()


@pytest.fixture
async def spool(tmp_path):
    opened: list[SpooledBus] = []

    async def open_spool(inner: MemoryBus, **changes: object) -> SpooledBus:
        settings = {
            "directory": str(tmp_path / "spool"),
            "retry": Backoff(first_seconds=0.01, max_seconds=0.02),
        } | changes
        bus = await SpooledBus.open(inner, SpoolSettings(**settings))
        opened.append(bus)
        return bus

    yield open_spool
    for bus in opened:
        await bus.close()


def values(inner: MemoryBus, topic=ALERTS) -> list[int]:
    return [int(record.value.split()[0]) for record in inner.records(topic)]


def numbered(first: int, count: int, size: int = 0) -> list[Record]:
    return [Record(b"k", b"%d " % index + b"x" * size) for index in range(first, first + count)]


async def test_nothing_touches_the_disk_while_the_bus_answers(spool, tmp_path):
    inner = MemoryBus()
    bus = await spool(inner)
    await bus.publish(ALERTS, numbered(0, 3))
    assert values(inner) == [0, 1, 2]
    assert not (tmp_path / "spool" / "alerts").exists()


async def test_what_came_while_it_was_away_arrives_in_order_before_what_came_after(spool, until):
    inner = MemoryBus()
    bus = await spool(inner)
    away(inner)
    for index in range(50):
        await bus.publish(ALERTS, numbered(index, 1))
    assert (bus.stats.away, bus.stats.waiting, inner.records(ALERTS)) == (True, 50, [])
    back(inner)
    index = 50
    while bus.stats.waiting or index < 80:
        await bus.publish(ALERTS, numbered(index, 1))
        index += 1
    await until(lambda: bus.stats.waiting == 0)
    assert values(inner) == list(range(index))
    assert not bus.stats.away


async def test_the_oldest_goes_first_whatever_its_topic(spool, until):
    inner = MemoryBus()
    bus = await spool(inner)
    away(inner)
    order = [TELEMETRY, ALERTS, SUMMARIES, ALERTS, TELEMETRY]
    for index, topic in enumerate(order):
        await bus.publish(topic, [Record(b"k", b"%d" % index, (), 1000 + index)])
    seen = []
    publish = inner.publish

    async def watch(topic, records):
        await publish(topic, records)
        seen.append(topic.name)

    inner.publish = watch
    back(inner)
    await until(lambda: bus.stats.waiting == 0)
    assert seen == ["telemetry", "alerts", "summaries"]


async def test_a_new_process_drains_what_the_last_one_left(spool, until):
    inner = MemoryBus()
    bus = await spool(inner)
    away(inner)
    await bus.publish(ALERTS, numbered(0, 5))
    await bus.close()
    fresh = MemoryBus()
    again = await spool(fresh)
    await until(lambda: again.stats.waiting == 0 and len(fresh.records(ALERTS)) == 5)
    await again.publish(ALERTS, numbered(5, 1))
    assert values(fresh) == [0, 1, 2, 3, 4, 5]
    await again.close()
    third = await spool(MemoryBus())
    assert third.stats.waiting == 0


async def test_over_its_cap_it_sheds_telemetry_before_summaries_before_alerts(spool):
    inner = MemoryBus()
    cap = 4 << 20
    bus = await spool(inner, max_bytes=cap)
    away(inner)
    for index in range(40):
        await bus.publish(ALERTS, numbered(index, 1, 20_000))
        await bus.publish(SUMMARIES, numbered(index, 1, 20_000))
    for index in range(300):
        await bus.publish(TELEMETRY, numbered(index, 1, 20_000))
    assert set(bus.stats.shed) == {"telemetry"}
    assert bus.stats.bytes <= cap
    assert bus.stats.waiting + bus.stats.shed["telemetry"] == 380
    for index in range(40, 180):
        await bus.publish(SUMMARIES, numbered(index, 1, 20_000))
    assert set(bus.stats.shed) == {"telemetry", "summaries"}
    for index in range(40, 300):
        await bus.publish(ALERTS, numbered(index, 1, 20_000))
    assert set(bus.stats.shed) == {"telemetry", "summaries", "alerts"}
    assert bus.stats.bytes <= cap * 1.1


async def test_what_is_too_old_is_shed_and_counted(spool):
    inner = MemoryBus()
    bus = await spool(inner, max_age=3600.0)
    away(inner)
    old = [Record(b"k", b"0 " + b"x" * 100_000, (), 1000) for _ in range(10)]
    bus._segment_bytes = 65536
    for record in old:
        await bus.publish(ALERTS, [record])
    await bus.publish(ALERTS, numbered(1, 1))
    assert bus.stats.shed["alerts"] >= 9


async def test_a_bus_that_asks_for_less_is_not_away(spool):
    inner = MemoryBus()
    bus = await spool(inner)
    inner.fail(Backpressure("full"))
    with pytest.raises(Backpressure):
        await bus.publish(ALERTS, numbered(0, 1, 100))
    assert not bus.stats.away


async def test_a_record_the_bus_will_never_take_does_not_hold_up_the_rest(spool, until):
    inner = MemoryBus()
    publish = inner.publish

    async def refuse_three(topic, records):
        if any(record.value.startswith(b"3 ") for record in records):
            raise Refused("expected anything but 3")
        await publish(topic, records)

    bus = await spool(inner)
    away(inner)
    await bus.publish(ALERTS, numbered(0, 6))
    inner.publish = refuse_three
    back(inner)
    await until(lambda: bus.stats.waiting == 0)
    assert values(inner) == [0, 1, 2, 4, 5]
    assert bus.stats.refused == 1


async def test_reading_goes_to_the_bus_behind_it(spool, drain):
    bus = await spool(MemoryBus())
    async with bus.subscribe([ALERTS], "g") as subscription:
        await bus.publish(ALERTS, numbered(0, 2))
        assert len(await drain(subscription, 2)) == 2
    assert set(await bus.groups()) == {"g"}
