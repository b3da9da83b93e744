# SPDX-License-Identifier: Apache-2.0
"""The spool keeps order, loses nothing under its caps, sheds in the order it says, and counts what it shed."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from bus.backoff import Backoff
from bus.contract import Record
from bus.memory import MemoryBus
from bus.spool import SpooledBus
from bus.spool_lines import Shed, SpoolLines
from bus.spool_settings import SpoolSettings
from schemas.errors import Backpressure, Refused, Unavailable
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, SUMMARIES, TELEMETRY


def away(inner: MemoryBus, times: int = 10_000) -> None:
    inner.fail(Unavailable("no broker", 0.01), times=times)


def back(inner: MemoryBus) -> None:
    inner._failures.clear()


@pytest.fixture
async def spool(tmp_path):
    opened: list[SpooledBus] = []

    async def open_spool(inner: MemoryBus, notice=None, **changes: object) -> SpooledBus:
        settings = {
            "directory": str(tmp_path / "spool"),
            "retry": Backoff(first_seconds=0.01, max_seconds=0.02),
        } | changes
        bus = await SpooledBus.open(inner, SpoolSettings(**settings), notice=notice)
        if "max_bytes" in changes:
            # A new segment is some fsyncs, and takes as long as the disk of the test wants.
            bus._lines._segment_bytes = changes["max_bytes"] // 8
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
    cap = 20 << 20
    # Looks for the bus would each read a batch of a megabyte.
    bus = await spool(inner, max_bytes=cap, retry=Backoff(first_seconds=30.0))
    away(inner)
    for index in range(40):
        await bus.publish(ALERTS, numbered(index, 1, 100_000))
        await bus.publish(SUMMARIES, numbered(index, 1, 100_000))
    for index in range(300):
        await bus.publish(TELEMETRY, numbered(index, 1, 100_000))
    assert set(bus.stats.shed) == {"telemetry"}
    assert bus.stats.bytes <= cap
    assert bus.stats.waiting + bus.stats.shed["telemetry"] == 380
    for index in range(40, 180):
        await bus.publish(SUMMARIES, numbered(index, 1, 100_000))
    assert set(bus.stats.shed) == {"telemetry", "summaries"}
    for index in range(40, 300):
        await bus.publish(ALERTS, numbered(index, 1, 100_000))
    assert set(bus.stats.shed) == {"telemetry", "summaries", "alerts"}
    assert bus.stats.bytes <= cap * 1.1


async def test_what_is_too_old_is_shed_and_counted(spool):
    inner = MemoryBus()
    bus = await spool(inner, max_age=3600.0)
    away(inner)
    old = [Record(b"k", b"0 " + b"x" * 100_000, (), 1000) for _ in range(10)]
    bus._lines._segment_bytes = 65536
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
        if topic is ALERTS and any(record.value.startswith(b"3 ") for record in records):
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
    (letter,) = inner.records(DEAD)
    assert letter.value == b"3 "
    assert dict(letter.headers)["dead.stage"] == b"spool"
    assert dict(letter.headers)["dead.topic"] == b"alerts"


async def test_reading_goes_to_the_bus_behind_it(spool, drain):
    bus = await spool(MemoryBus())
    async with bus.subscribe([ALERTS], "g") as subscription:
        await bus.publish(ALERTS, numbered(0, 2))
        assert len(await drain(subscription, 2)) == 2
    assert set(await bus.groups()) == {"g"}


def told(shed: Shed) -> Record:
    return Record(b"node", json.dumps([shed.topic, shed.records, shed.first, shed.why]).encode())


def notices(inner: MemoryBus) -> list[list]:
    return [json.loads(one.value) for one in inner.records(ALERTS) if one.key == b"node"]


async def test_what_was_shed_is_told_once_the_bus_is_back_and_adds_up(spool, until):
    inner = MemoryBus()
    bus = await spool(inner, told, max_bytes=8 << 20)
    away(inner)
    for index in range(200):
        await bus.publish(EVENTS_RAW, numbered(index, 1, 100_000))
    await bus.publish(ALERTS, numbered(0, 1))
    assert bus.stats.shed["events.raw"] > 50
    back(inner)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    arrived = values(inner, EVENTS_RAW)
    ((topic, records, first, why),) = notices(inner)
    assert (topic, first) == ("events.raw", 0)
    assert why == "the spool was over its 8 MiB"
    assert records == bus.stats.shed["events.raw"]
    assert arrived == list(range(records, 200)), "the oldest went, the rest is whole and in order"


_CHILD = """
import asyncio, sys
from bus.contract import Record
from bus.memory import MemoryBus
from bus.spool import SpooledBus
from bus.spool_settings import SpoolSettings
from schemas.errors import Unavailable
from schemas.topics import ALERTS, EVENTS_RAW

async def main():
    inner = MemoryBus()
    inner.fail(Unavailable("no broker", 60.0), times=1000000)
    bus = await SpooledBus.open(inner, SpoolSettings(directory=sys.argv[1], max_bytes=int(sys.argv[2])))
    bus._lines._segment_bytes = int(sys.argv[2]) // 8
    for index in range(100000):
        await bus.publish(EVENTS_RAW, [Record(b"k", b"%d " % index + b"x" * 100000)])
        await bus.publish(ALERTS, [Record(b"k", b"%d " % index)])
        print(index, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("cap", [64 << 20, 8 << 20])
async def test_a_full_spool_outlives_sigkill(spool, until, children, tmp_path, cap):
    child = children.start(_CHILD, str(tmp_path / "spool"), str(cap))
    last = -1
    while last < 150:
        last = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.wait()
    # What is still in the pipe was acknowledged too.
    last = max([last, *(int(line) for line in child.stdout.read().split())])
    inner = MemoryBus()
    bus = await spool(inner, told, max_bytes=cap)
    shed = bus.stats.shed.get("events.raw", 0)
    await until(lambda: bus.stats.waiting == 0 and (not shed or notices(inner)))
    frames = values(inner, EVENTS_RAW)
    alerts = [int(one.value) for one in inner.records(ALERTS) if one.key == b"k"]
    assert (shed > 0) == (cap < 64 << 20), "below the cap nothing is lost"
    assert frames == list(range(shed, frames[-1] + 1)), "in order, nothing twice, no hole that was not counted"
    assert frames[-1] >= last
    assert alerts == list(range(alerts[-1] + 1)), "alerts are shed last"
    assert alerts[-1] >= last
    if shed:
        ((topic, records, first, why),) = notices(inner)
        assert (topic, records, first) == ("events.raw", shed, 0), "what the killed process shed is told by the next"
        assert "the process before this one" in why
    await bus.close()
    again = await spool(MemoryBus(), told, max_bytes=cap)
    assert (again.stats.waiting, again.stats.shed) == (0, {}), "told once"


async def test_what_is_shed_while_it_is_published_is_not_lost(tmp_path):
    """The batch under way goes out of the spool's window while the bus is writing it."""
    lines = SpoolLines(tmp_path / "spool", 1 << 20, 1e9, lambda: 1000.0)
    lines._segment_bytes = 1 << 18
    line = lines.open(EVENTS_RAW)
    for index in range(20):
        line.end = lines.append(line, numbered(index, 1, 20_000))
    _, first, records, past = lines.oldest()
    assert (first, len(records)) == (0, past)
    for index in range(20, 100):
        line.end = lines.append(line, numbered(index, 1, 20_000))
    assert lines.shed == {}, "not known yet"
    low = line.position
    assert low > past
    lines.published(line, first, past)
    assert lines.shed == {"events.raw": low - past}
    assert (line.untold.first, line.untold.records) == (past, low - past)
    lines.close()


async def shed_some(bus: SpooledBus, inner: MemoryBus) -> None:
    """Eighty raw frames in a spool that holds some forty of them."""
    away(inner)
    for index in range(80):
        await bus.publish(EVENTS_RAW, numbered(index, 1, 20_000))
    assert bus.stats.shed["events.raw"] > 0


async def test_what_is_shed_while_an_earlier_loss_is_told_is_told_too(spool, until):
    inner = MemoryBus()
    bus = await spool(inner, told, max_bytes=1 << 20)
    await shed_some(bus, inner)
    publish, telling, go_on = inner.publish, asyncio.Event(), asyncio.Event()

    async def slow(topic, records):
        if topic is ALERTS and not go_on.is_set():
            telling.set()
            await go_on.wait()
        await publish(topic, records)

    inner.publish = slow
    back(inner)
    await telling.wait()
    before = bus.stats.shed["events.raw"]
    for index in range(80, 240):
        await bus.publish(EVENTS_RAW, numbered(index, 1, 20_000))
    assert bus.stats.shed["events.raw"] > before
    go_on.set()
    await until(lambda: bus.stats.waiting == 0 and len(notices(inner)) > 1)
    frames = values(inner, EVENTS_RAW)
    assert sum(one[1] for one in notices(inner)) == bus.stats.shed["events.raw"] == 240 - len(frames)
    assert frames == sorted(set(frames))


@pytest.mark.parametrize("error", [Unavailable("no leader", 0.01), Refused("too large")])
async def test_a_loss_that_cannot_be_told_has_nothing_sent_twice(spool, until, error):
    inner = MemoryBus()
    bus = await spool(inner, told, max_bytes=1 << 20)
    await shed_some(bus, inner)
    publish, tries, failing = inner.publish, [], True

    async def without_alerts(topic, records):
        if topic is ALERTS and failing:
            tries.append(records)
            raise error
        await publish(topic, records)

    inner.publish = without_alerts
    back(inner)
    permanent = isinstance(error, Refused)
    await until(lambda: bus.stats.waiting == 0 if permanent else len(tries) > 3)
    failing = False
    await until(lambda: bus.stats.waiting == 0 and (permanent or notices(inner)))
    frames = values(inner, EVENTS_RAW)
    assert frames == list(range(80 - len(frames), 80)), "each once"
    assert bus.stats.refused == permanent


async def test_a_bug_below_the_spool_does_not_end_its_drain(spool, until, caplog):
    inner = MemoryBus()
    bus = await spool(inner)
    away(inner)
    await bus.publish(ALERTS, numbered(0, 3))
    back(inner)
    inner.fail(KeyError("a bug"))
    await until(lambda: bus.stats.waiting == 0)
    assert values(inner) == [0, 1, 2]
    assert "that is a bug" in caplog.text


async def test_a_publisher_is_not_held_up_for_as_long_as_the_spool_drains(spool, until):
    """A sensor that waits drains no rings."""
    inner = MemoryBus()
    bus = await spool(inner, drain_bytes=1)
    away(inner)
    for index in range(30):
        await bus.publish(EVENTS_RAW, numbered(index, 1))
    slow = inner.publish

    async def publish(topic, records):
        await asyncio.sleep(0.2)
        await slow(topic, records)

    inner.publish = publish
    back(inner)
    await until(lambda: not bus.stats.away)
    async with asyncio.timeout(5):  # the drain takes six seconds at least
        await bus.publish(EVENTS_RAW, numbered(30, 1))
    assert bus.stats.waiting > 1
    inner.publish = slow
    await until(lambda: bus.stats.waiting == 0)
    assert values(inner, EVENTS_RAW) == list(range(31))


async def test_what_becomes_too_old_is_shed_while_nothing_is_written(spool, until):
    inner = MemoryBus()
    bus = await spool(inner, told, max_age=0.5)
    away(inner)
    bus._lines._segment_bytes = 4096
    for index in range(5):
        await bus.publish(TELEMETRY, numbered(index, 1, 8_000))
    await until(lambda: bus.stats.shed.get("telemetry", 0) >= 4)
    back(inner)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    assert "older than 0.5 s" in notices(inner)[0][3]


def test_what_is_shed_beside_a_batch_under_way_keeps_its_reason(tmp_path):
    now = [1000.0]
    lines = SpoolLines(tmp_path / "spool", 1 << 20, 0.5, lambda: now[0])
    line = lines.open(TELEMETRY)
    for index in range(4):
        line.end = lines.append(line, [Record(b"k", b"%d" % index, timestamp_ms=1_000_000)])
        line.log.rotate(now[0], force=True)
    assert lines.oldest()
    now[0] += 60.0
    lines.tidy()
    assert line.gaps, "shed beside the batch, which may yet be published"
    lines.tidy()
    lines.settle(line)
    assert "older than 0.5 s" in line.untold.why
    lines.close()


async def test_a_loss_that_cannot_be_told_holds_up_no_other_topic(spool, until):
    inner = MemoryBus()
    publish = inner.publish

    async def no_alerts(topic, records):
        if topic is ALERTS:
            raise Unavailable("expected `alerts`, nobody has it", 0.01)
        await publish(topic, records)

    bus = await spool(inner, told, max_age=0.5)
    away(inner)
    bus._lines._segment_bytes = 4096
    for index in range(5):
        await bus.publish(SUMMARIES, numbered(index, 1, 8_000))
    await until(lambda: bus.stats.shed.get("summaries", 0) >= 4)
    bus._lines._max_age = 3600.0
    for number in range(3):
        await bus.publish(EVENTS_RAW, numbered(number, 1))
    inner.publish = no_alerts
    back(inner)
    await until(lambda: values(inner, EVENTS_RAW) == [0, 1, 2])
    assert not notices(inner)
    inner.publish = publish
    await until(lambda: notices(inner))
    assert notices(inner)[0][:2] == ["summaries", bus.stats.shed["summaries"]]
