# SPDX-License-Identifier: Apache-2.0
"""Frames in memory between the stages of one process: in order, bounded, spilled when nobody keeps up or somebody else reads."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.contract import Delivery, Record, Subscription
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.embedded.handed import NAME, PARTITION, HandedOverFile
from bus.handover import HandoverBus
from bus.interruptible import Signal, take_or
from schemas.topics import ALERTS, EVENTS_RAW, TELEMETRY

RAW = ("events.raw", 0)
HANDED = ("events.raw", PARTITION)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[HandoverBus]:
    made = HandoverBus(await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"))), 1000)
    yield made
    await made.close()


def record(number: int, size: int = 10) -> Record:
    return Record(b"n", str(number).encode().ljust(size - 1))


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.record.value or b"") for delivery in deliveries]


async def taken(reader: Subscription, many: int) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(found) < many:
            found += await reader.take(100, 1.0)
    return found


async def settle(reader: Subscription) -> None:
    """Have the reader notice that the log is read to its end."""
    assert await reader.take(1, 0.0) == []


def in_log(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "bus" / "topics").rglob("events.raw*/*"))


async def test_in_memory_while_the_reader_keeps_up(bus: HandoverBus, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    bus.outstanding = lambda end, committed: told.append((end, committed))
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        before = in_log(tmp_path)
        await bus.publish(EVENTS_RAW, [record(0), record(1)])
        found = await taken(reader, 2)
        assert [(one.partition, one.offset) for one in found] == [(PARTITION, 0), (PARTITION, 1)]
        assert reader.position[HANDED] == 2
        assert all(one.record.timestamp_ms > 1_600_000_000_000 for one in found)
        assert await bus.lag("g") == {"events.raw": 2}
        assert await bus.count(EVENTS_RAW) == 2, "no more is behind than there is"
        await reader.commit(found[:1])
        assert await bus.lag("g") == {"events.raw": 1}
        assert await bus.count(EVENTS_RAW) == 1, "no more is behind than there is"
        await reader.commit()
        assert bus.handover.waiting_bytes == 0
        assert told[0] == (2, 0)
        assert told[-1] == (2, 2)
        assert (await bus.end(EVENTS_RAW))[PARTITION] == 2
        assert (await bus.groups())["g"]["events.raw"] == 2
    assert in_log(tmp_path) == before
    assert (bus.handover.handed, bus.handover.spilled) == (2, 0)


async def test_what_has_no_room_goes_to_the_log_and_order_holds(bus: HandoverBus) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        for number in range(20):
            await bus.publish(EVENTS_RAW, [record(number, 100)])
        assert bus.handover.handed == 10
        assert bus.handover.spilled == 10
        found = await taken(reader, 10)
        await reader.commit(found)
        # There is room again, but what lies in the log is older.
        await bus.publish(EVENTS_RAW, [record(20, 100)])
        assert bus.handover.handed == 10
        found += await taken(reader, 11)
        assert numbers(found) == list(range(21))
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(21, 100)])
        assert bus.handover.handed == 11
        assert numbers(await taken(reader, 1)) == [21]


async def test_what_was_not_committed_comes_again_in_this_process(bus: HandoverBus) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(number) for number in range(3)])
        await reader.commit((await taken(reader, 3))[:1])
    # Nobody reads: to the log, behind what is in memory.
    await bus.publish(EVENTS_RAW, [record(3)])
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        assert numbers(await taken(reader, 3)) == [1, 2, 3]


async def test_what_is_left_at_the_end_is_there_at_the_next_start(bus: HandoverBus, tmp_path: Path) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(number) for number in range(3)])
        await reader.commit((await taken(reader, 3))[:1])
    await bus.spill()
    assert bus.handover.waiting_bytes == 0
    await bus.close()
    assert not (tmp_path / "bus" / NAME).exists()
    again = HandoverBus(await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"))), 1000)
    async with again.subscribe([EVENTS_RAW], "g") as reader:
        assert numbers(await taken(reader, 2)) == [1, 2]
        await settle(reader)
        await again.publish(EVENTS_RAW, [record(3)])
        assert (await taken(reader, 1))[0].partition == PARTITION
    await again.close()


@pytest.mark.parametrize("read", [0, 30, 70, 115])
async def test_what_memory_had_no_room_for_comes_after_what_it_held_at_the_next_start(
    bus: HandoverBus, tmp_path: Path, read: int
) -> None:
    """Frames that came in another order would be told as lost."""
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        for number in range(120):
            await bus.publish(EVENTS_RAW, [record(number)])
        assert 0 < bus.handover.handed < 120
        if read:
            assert numbers(await taken(reader, read))[:read] == list(range(read))
            # The first ten: what was taken and not committed comes again too.
            await reader.commit([Delivery(EVENTS_RAW, PARTITION, 9, record(9))])
    await bus.spill()
    await bus.close()
    again = HandoverBus(await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"))), 1000)
    async with again.subscribe([EVENTS_RAW], "g") as reader:
        left = list(range(10 if read else 0, 120))
        assert numbers(await taken(reader, len(left))) == left
        await settle(reader)
    await again.close()


async def test_too_much_to_be_written_again_is_told(
    bus: HandoverBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bus.handover._REWRITTEN", 100)
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        for number in range(120):
            await bus.publish(EVENTS_RAW, [record(number)])
    await bus.spill()
    assert "after newer ones" in caplog.text
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        assert sorted(numbers(await taken(reader, 120))) == list(range(120))


async def test_a_hole_in_the_log_is_not_passed_over_by_the_end(
    bus: HandoverBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What memory held is written behind what the log has, and that again behind it: a hole in between would be told to nobody."""
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        for number in range(120):
            await bus.publish(EVENTS_RAW, [record(number)])
    handed = bus.handover.handed
    with sqlite3.connect(next((tmp_path / "bus" / "topics").glob("events.raw*/*.db"))) as database:
        database.execute("UPDATE record SET key = 'no bytes' WHERE offset = 5")
    database.close()
    await bus.spill()
    assert "some of those are lost" in caplog.text
    await bus.close()
    again = HandoverBus(await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"))), 1000)
    async with again.subscribe([EVENTS_RAW], "g") as reader:
        found = numbers(await taken(reader, 119))
        assert sorted(found) == [number for number in range(120) if number != handed + 5]
        assert [(gap.first, gap.records) for gap in reader.gaps] == [(5, 1)]
        assert reader.skipped == 1
    await again.close()


async def test_a_record_too_large_for_memory_goes_to_the_log(bus: HandoverBus) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(0, 2000)])
        assert (await taken(reader, 1))[0].partition == 0
        assert reader.position[RAW] == 1


READER = """
import asyncio, sys
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import BY_NAME

async def main():
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=sys.argv[1]))
    async with bus.subscribe([BY_NAME[sys.argv[2]]], None, "latest") as reader:
        print("reading", await bus.lag("g"), flush=True)
        found = []
        while not found:
            found = await reader.take(1, 1.0)
        print(found[0].record.value.decode().strip(), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    await bus.close()

asyncio.run(main())
"""


async def test_a_reader_in_another_process_is_served_from_the_log(bus: HandoverBus, tmp_path: Path) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(0)])
        assert bus.handover.handed == 1
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path / "bus"), "events.raw"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            assert child.stdin is not None
            try:
                # It is told of what is in memory, too.
                assert await asyncio.to_thread(child.stdout.readline) == "reading {'events.raw': 1}\n"
                await bus.publish(EVENTS_RAW, [record(1)])
                assert (bus.handover.handed, bus.handover.spilled) == (1, 1)
                assert await asyncio.to_thread(child.stdout.readline) == "1\n"
                assert numbers(await taken(reader, 2)) == [0, 1]
            finally:
                child.kill()
        # Killed, it stands there no more; whether it left a group is asked first.
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(2)])
        await taken(reader, 1)
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(3)])
        assert (bus.handover.handed, bus.handover.spilled) == (2, 2)
        assert numbers(await taken(reader, 1)) == [3]


async def test_a_reader_of_another_bus_is_noticed_also_while_the_log_is_read(bus: HandoverBus, tmp_path: Path) -> None:
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(0, 2000)])
        other = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
        async with other.subscribe([EVENTS_RAW], None, "latest"):
            await bus.publish(EVENTS_RAW, [record(1)])
            assert bus.handover.spilled == 2, "not read to its end"
            assert bus.watched, "whoever reads there is to have every event by its name"
        await other.close()


async def test_a_group_that_is_away_finds_what_it_missed(bus: HandoverBus, tmp_path: Path) -> None:
    other = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
    async with other.subscribe([EVENTS_RAW], "second"):
        pass
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(0)])
        assert (bus.handover.handed, bus.handover.spilled) == (0, 1)
        await taken(reader, 1)
        await bus.forget("second")
        await settle(reader)
        await bus.publish(EVENTS_RAW, [record(1)])
        assert (bus.handover.handed, bus.handover.spilled) == (1, 1)
    await other.close()


async def test_a_frame_and_a_signal_each_end_the_wait(bus: HandoverBus) -> None:
    signal = Signal()
    loop = asyncio.get_running_loop()
    async with bus.subscribe([EVENTS_RAW], "g") as reader:
        await settle(reader)
        loop.call_later(0.01, lambda: asyncio.ensure_future(bus.publish(EVENTS_RAW, [record(7)])))
        async with asyncio.timeout(60):
            assert numbers(await take_or(reader, 10, 600.0, signal)) == [7]
        assert (bus.handover.handed, bus.handover.spilled) == (1, 0)
        loop.call_later(0.01, signal.set)
        async with asyncio.timeout(60):
            assert await take_or(reader, 10, 600.0, signal) == []


async def test_other_topics_are_the_logs(bus: HandoverBus) -> None:
    async with bus.subscribe([ALERTS], "g") as reader:
        await bus.publish(ALERTS, [record(0)])
        (found,) = await taken(reader, 1)
        assert (found.topic, found.partition) == (ALERTS, 0)


async def test_telemetry_is_wanted_by_whoever_reads_or_has_read_it(bus: HandoverBus) -> None:
    assert bus.logged()
    async with bus.subscribe([EVENTS_RAW], "g"):
        assert not bus.logged()
        async with bus.subscribe([TELEMETRY], None):
            assert bus.logged()
        assert not bus.logged()
        async with bus.subscribe([TELEMETRY], "sink.file"):
            assert bus.logged()
        await bus.look()
        assert bus.logged()


def test_who_looks_at_what_a_killed_process_left_keeps_no_other_from_starting(tmp_path: Path) -> None:
    """A verb that asks for the lag holds the file's lock for a moment."""
    (tmp_path / NAME).write_bytes(bytes(32))
    with open(tmp_path / NAME, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        done = threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        try:
            HandedOverFile(tmp_path).close()
        finally:
            done.join()
