# SPDX-License-Identifier: Apache-2.0
"""The bus within its bytes: the oldest goes first, what cannot be made again last, and every drop is counted and said."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3

import pytest

from bus.contract import Record
from bus.embedded.compacted import CompactedLog
from schemas.errors import DiskFull, SettingsError
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, INVENTORY, SUMMARIES, TELEMETRY

# A segment holds some ten records of 20 KB.
SMALL = {"segment_bytes": 200_000, "housekeeping": 0.02, "retention_bytes": 1 << 40, "memory_bytes": 15_000}


def on_disk(world, *topics):
    """Bytes of the files, as `du` would say."""
    rooms = [world.directory / "topics" / f"{topic.name}.v1" for topic in topics]
    return sum(path.stat().st_size for room in rooms for path in room.glob("*.db*") if path.suffix != ".db-shm")


async def fill(bus, topic, count, size=20_000, first=0):
    for index in range(first, first + count):
        await bus.publish(topic, [Record(b"%d" % index, b"x" * size)])


@pytest.fixture
def capped(log, until):
    """Opens what `filled` left with a cap and waits for the first look that finds it within."""

    async def capped(cap):
        bus = await log.open(**SMALL, total_bytes=cap)
        await until(lambda: bus.stats.capped_bytes > 0 and bus.stats.disk_bytes <= cap)
        return bus

    return capped


@pytest.fixture
def filled(log):
    """A bus without a cap, left with (topic, records) in this order."""

    async def filled(*topics, group=None):
        bus = await log.open(**SMALL | {"housekeeping": 3600.0}, total_bytes=0)
        if group is not None:
            async with bus.subscribe([topics[0][0]], group):
                pass
        for topic, count in topics:
            await fill(bus, topic, count)
        await bus.close()

    return filled


async def oldest(bus, topic):
    async with bus.subscribe([topic], None, "earliest") as everything:
        return everything.position[(topic.name, 0)]


async def test_the_oldest_segments_go_whichever_topic_they_are_of(log, filled, capped, drain, caplog):
    caplog.set_level(logging.WARNING)
    await filled((TELEMETRY, 40), (EVENTS_RAW, 40), group="slow")
    cap = 1_500_000
    assert on_disk(log, TELEMETRY, EVENTS_RAW) > cap
    bus = await capped(cap)
    # The group had not read the telemetry: told, as retention tells it.
    assert 0 < bus.stats.dropped < 30
    async with bus.subscribe([TELEMETRY], "slow") as slow:
        taken = await drain(slow, 40 - bus.stats.dropped)
        assert taken[0].offset == slow.skipped == bus.stats.dropped
    assert await oldest(bus, EVENTS_RAW) == 0, "the younger topic lost something while the older one had more"
    assert "over `bus.total_bytes`" in caplog.text
    assert "telemetry" in caplog.text
    await bus.close()
    assert on_disk(log, TELEMETRY, EVENTS_RAW) <= cap


async def test_alerts_and_dead_letters_go_last(filled, capped):
    await filled((ALERTS, 40), (DEAD, 10), (EVENTS_RAW, 120))
    bus = await capped(2_000_000)
    assert await oldest(bus, ALERTS) == await oldest(bus, DEAD) == 0
    assert await oldest(bus, EVENTS_RAW) > 60
    await bus.close()


async def test_alerts_go_when_nothing_else_is_left(filled, capped):
    await filled((ALERTS, 120))
    bus = await capped(2_000_000)
    assert 0 < await oldest(bus, ALERTS) < 100


async def test_state_is_never_dropped_and_summaries_by_row(filled, capped):
    await filled((INVENTORY, 20), (SUMMARIES, 300))
    cap = 1_500_000
    bus = await capped(cap)
    assert len(await bus.latest(INVENTORY)) == 20
    left = sorted(int(key) for key in await bus.latest(SUMMARIES))
    assert left == list(range(left[0], 300))
    assert 300 - cap // 20_000 < left[0] < 300 - cap // 60_000
    assert (await bus.end(SUMMARIES))[0] == 300


@pytest.mark.parametrize("asked", ["size", "oldest_ms", "drop_oldest"])
async def test_a_table_that_finds_no_room_keeps_no_file_from_going(filled, capped, monkeypatch, asked):
    await filled((SUMMARIES, 30), (EVENTS_RAW, 60))

    def no_room(*_):
        raise DiskFull("expected room to look at a table or to delete from it, there is none", retry_after=1.0)

    monkeypatch.setattr(CompactedLog, asked, no_room)
    bus = await capped(1_400_000 if asked != "size" else 900_000)
    assert await oldest(bus, SUMMARIES) == 0
    assert await oldest(bus, EVENTS_RAW) > 0


async def test_a_topic_that_forgets_by_age_has_its_own_cap_too(log, until):
    bus = await log.open(segment_bytes=200_000, housekeeping=0.02, retention_bytes_of={"summaries": 1_000_000})
    async with bus.subscribe([SUMMARIES], "slow"):
        await fill(bus, SUMMARIES, 200)
        await until(lambda: bus.stats.dropped >= 150)
    assert 20 < len(await bus.latest(SUMMARIES)) <= 50


def test_rows_that_go_shrink_the_file(tmp_path):
    log = CompactedLog(tmp_path / "t", durable=False)
    log.append([Record(b"%d" % index, b"x" * 20_000) for index in range(300)])
    lost, freed = log.drop_oldest(4_000_000, 100)
    assert freed >= 4_000_000
    assert lost == pytest.approx(100, abs=5)
    log.checkpoint(0)
    assert os.stat(tmp_path / "t" / "compacted.db").st_size < 2_800_000
    assert log.span()[1] == 300
    # The newest row stays: the next offset is counted from it.
    assert log.drop_oldest(1 << 40, 0)[0] == len(range(300)) - 1 - lost - 100
    assert log.span() == (299, 300)
    assert log.drop_oldest(1 << 40, 0) == (0, 0)
    log.close()


def test_a_table_of_an_older_version_is_measured_by_what_it_holds(tmp_path):
    (tmp_path / "t").mkdir()
    old = sqlite3.connect(tmp_path / "t" / "compacted.db")
    old.execute("PRAGMA page_size=8192")
    old.execute("PRAGMA journal_mode=WAL")
    old.close()
    log = CompactedLog(tmp_path / "t", durable=False)
    log.append([Record(b"%d" % index, b"x" * 20_000) for index in range(100)])
    before = log.size()
    log.drop_oldest(1_000_000, 0)
    assert log.size() < before - 900_000
    log.close()


async def test_a_cap_that_the_newest_segments_alone_may_reach_is_refused(log):
    with pytest.raises(SettingsError, match=r"`bus.total_bytes`: expected 0 or at least 4 times `segment_bytes`"):
        await log.open(segment_bytes=1 << 20, total_bytes=3 << 20)
    bus = await log.open(segment_bytes=1 << 20, total_bytes=0)
    assert bus.stats.capped_bytes == 0


async def test_a_damaged_table_does_not_switch_the_cap_off(log, filled, capped):
    await filled((TELEMETRY, 60), (SUMMARIES, 5))
    table = log.directory / "topics/summaries.v1/compacted.db"
    table.write_bytes(b"no database" * 1000)
    for left in ("-wal", "-shm"):
        table.with_name(table.name + left).unlink(missing_ok=True)
    bus = await capped(900_000)
    assert bus.stats.quarantined == 1
    await bus.close()


async def test_what_keeps_the_cap_from_being_held_is_said_once(log, filled, until, caplog):
    await filled((TELEMETRY, 60), (SUMMARIES, 5))
    table = log.directory / "topics/summaries.v1/compacted.db"
    for left in ("", "-wal", "-shm"):
        table.with_name(table.name + left).unlink(missing_ok=True)
    table.mkdir()
    bus = await log.open(**SMALL, total_bytes=900_000)
    said = "what is old could not be dropped from summaries:"
    try:
        await until(lambda: said in caplog.text)
        passed = asyncio.get_running_loop().time() + 0.2
        await until(lambda: asyncio.get_running_loop().time() > passed)
        assert caplog.text.count(said) == 1
    finally:
        await bus.close()
