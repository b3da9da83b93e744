# SPDX-License-Identifier: Apache-2.0
"""What the embedded log promises beyond the contract: disks that fill and rot, retention, neighbours, its caps."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time

import msgspec
import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedSettings
from bus.embedded.notify import LOOK_SECONDS_WITHOUT_HINTS
from schemas.errors import Backpressure, DiskFull, Refused, SettingsError
from schemas.topics import ALERTS, EVENTS_RAW, POLICIES, SUMMARIES, TELEMETRY

SMALL = {"segment_bytes": 65536, "housekeeping": 0.02}


def segments(world, topic):
    return sorted((world.directory / "topics" / f"{topic.name}.v1").glob("*.db"))


def big(index: int, size: int = 20_000) -> Record:
    return Record(b"k", b"%d " % index + b"x" * size)


async def fill(bus, topic, first: int, count: int) -> None:
    for index in range(first, first + count):
        await bus.publish(topic, [big(index)])


async def test_offsets_and_records_outlive_a_reopen(log, drain, records):
    bus = await log.open()
    await bus.publish(ALERTS, records(10))
    async with bus.subscribe([ALERTS], "g") as subscription:
        await subscription.commit((await drain(subscription, 10))[:6])
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", None)])
    await bus.close()
    bus = await log.open()
    assert await bus.lag("g") == {"alerts": 4}
    assert list(await bus.latest(POLICIES)) == [b"a"]
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert [d.offset for d in await drain(subscription, 4)] == [6, 7, 8, 9]


async def test_segments_every_group_has_passed_are_dropped(log, drain, until):
    bus = await log.open(**SMALL)
    async with bus.subscribe([EVENTS_RAW], "a") as one, bus.subscribe([EVENTS_RAW], "b") as two:
        await fill(bus, EVENTS_RAW, 0, 40)
        assert len(segments(log, EVENTS_RAW)) > 5
        await drain(one, 40)
        await one.commit()
        await asyncio.sleep(0.1)
        assert len(segments(log, EVENTS_RAW)) > 5
        got = await drain(two, 40)
        assert [d.offset for d in got] == list(range(40))
        await two.commit()
        await until(lambda: len(segments(log, EVENTS_RAW)) == 1)
    assert bus.stats.dropped == 0


async def test_what_is_read_may_be_kept_until_retention(log, drain):
    bus = await log.open(**SMALL, keep_read=("events.raw",))
    async with bus.subscribe([EVENTS_RAW], "a") as one:
        await fill(bus, EVENTS_RAW, 0, 20)
        await drain(one, 20)
        await one.commit()
        await asyncio.sleep(0.1)
    assert len(segments(log, EVENTS_RAW)) > 3


async def test_a_group_that_lags_behind_retention_is_told_what_it_lost(log, drain, until):
    bus = await log.open(**SMALL, retention_bytes_of={"telemetry": 300_000}, memory_bytes=0)
    async with bus.subscribe([TELEMETRY], "slow") as slow, bus.subscribe([TELEMETRY], "quick") as quick:
        for index in range(60):
            await bus.publish(TELEMETRY, [big(index)])
            got = await drain(quick, 1)
            await quick.commit()
            assert got[-1].offset == index
        await until(lambda: bus.stats.dropped > 0)
        found = []
        while batch := await slow.take(1000, 0.1):
            found += batch
        assert quick.skipped == 0
        assert 0 < slow.skipped == 60 - len(found)
        assert sum(gap.records for gap in slow.gaps) == slow.skipped
        assert found[-1].offset == 59
    # The files go before they are counted.
    await until(lambda: bus.stats.dropped >= slow.skipped)


async def test_records_older_than_retention_go(log, until):
    bus = await log.open(**SMALL, retention_hours_of={"alerts": 1})
    old = int((time.time() - 7200) * 1000)
    for _ in range(20):
        await bus.publish(ALERTS, [Record(b"k", b"x" * 20_000, (), old)])
    await until(lambda: len(segments(log, ALERTS)) == 1)


async def test_old_tombstones_and_old_summaries_are_swept_but_never_the_newest_row(log, until):
    bus = await log.open(**SMALL, tombstone_age=60.0)
    now = int(time.time() * 1000)
    old = now - 3_600_000
    await bus.publish(POLICIES, [Record(b"a", None, (), old), Record(b"b", None, (), now), Record(b"c", None, (), old)])
    await bus.publish(SUMMARIES, [Record(b"a", b"1", (), now - 721 * 3_600_000), Record(b"b", b"1", (), now)])

    async def keys(topic):
        async with bus.subscribe([topic], None, "earliest") as subscription:
            return [delivery.record.key for delivery in await subscription.take(10, 0.1)]

    deadline = time.monotonic() + 60
    while await keys(POLICIES) != [b"b", b"c"] or await keys(SUMMARIES) != [b"b"]:
        assert time.monotonic() < deadline
    assert await bus.end(POLICIES) == {0: 3}


async def test_a_full_queue_refuses_and_recovers(log):
    bus = await log.open(queue_bytes=200_000)
    results = await asyncio.gather(
        *(bus.publish(EVENTS_RAW, [big(index)]) for index in range(30)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert refused
    assert all(isinstance(result, Backpressure) and result.retry_after for result in refused)
    assert (await bus.end(EVENTS_RAW))[0] == 30 - len(refused)
    assert bus.stats.refused == len(refused)
    assert bus.stats.queue_bytes == 0
    await bus.publish(EVENTS_RAW, [big(0)])


async def test_a_record_that_is_too_large_is_refused(log):
    bus = await log.open(record_bytes=1000)
    with pytest.raises(Refused, match="record_bytes"):
        await bus.publish(EVENTS_RAW, [big(0)])


async def test_take_ends_early_at_its_byte_cap(log, drain):
    for memory in (0, 4 << 20):
        bus = await log.open(take_bytes=100_000, memory_bytes=memory)
        async with bus.subscribe([EVENTS_RAW], None, "latest") as subscription:
            await fill(bus, EVENTS_RAW, 0, 20)
            assert len(await subscription.take(1000, 1)) == 5
            assert len(await drain(subscription, 15)) == 15
        await bus.close()


async def test_readers_that_keep_up_are_served_from_memory_and_leave_nothing_there(log):
    bus = await log.open()
    reads = 0
    read = bus.read

    async def count(*arguments):
        nonlocal reads
        reads += 1
        return await read(*arguments)

    bus.read = count
    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        for index in range(20):
            await bus.publish(EVENTS_RAW, [big(index)])
            assert [d.offset for d in await subscription.take(10, 5)] == [index]
        assert not bus._channels["events.raw"]._recent
    assert reads == 0


async def test_the_unknown_topic_name_in_settings_is_named(tmp_path):
    from bus.registry import open_bus

    with pytest.raises(SettingsError, match="telemtry"):
        await open_bus(EmbeddedSettings(directory=str(tmp_path), retention_bytes_of={"telemtry": 1}))


def test_settings_are_told_apart_by_type():
    from bus.registry import BusSettings

    decoded = msgspec.convert({"type": "embedded", "directory": "/x"}, BusSettings)
    assert decoded == EmbeddedSettings(directory="/x")


async def test_a_directory_that_cannot_be_made_is_refused_with_its_name(tmp_path):
    from bus.registry import open_bus

    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="file"):
        await open_bus(EmbeddedSettings(directory=str(tmp_path / "file" / "bus")))


# Corruption


async def test_a_rotten_sealed_segment_is_put_aside_counted_and_told(log, drain):
    bus = await log.open(**SMALL)
    await fill(bus, EVENTS_RAW, 0, 20)
    await bus.close()
    victim = segments(log, EVENTS_RAW)[1]
    lost = int(segments(log, EVENTS_RAW)[2].stem) - int(victim.stem)
    victim.write_bytes(b"not a database" * 5000)
    bus = await log.open(**SMALL)
    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        got = await drain(subscription, 20 - lost)
        assert subscription.skipped == lost
        assert got[-1].offset == 19
    assert bus.stats.quarantined == 1
    assert len(list(victim.parent.glob("*.corrupt"))) == 1


async def test_a_segment_damaged_in_the_middle_gives_what_is_readable(log, drain):
    bus = await log.open(segment_bytes=1 << 20, housekeeping=60)
    await fill(bus, EVENTS_RAW, 0, 80)
    await bus.close()
    victim = segments(log, EVENTS_RAW)[0]
    end = int(segments(log, EVENTS_RAW)[1].stem)
    data = bytearray(victim.read_bytes())
    middle = len(data) // 2 // 8192 * 8192
    data[middle : middle + 8192 * 20] = os.urandom(8192 * 20)
    victim.write_bytes(bytes(data))
    bus = await log.open()
    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        found = []
        while batch := await subscription.take(1000, 0.2):
            found += batch
        assert found[-1].offset == 79
        assert len(found) + subscription.skipped == 80
        assert subscription.skipped <= end


async def test_a_rotten_live_segment_does_not_stop_writing_nor_reuse_offsets(log, drain):
    bus = await log.open()
    await fill(bus, ALERTS, 0, 10)
    async with bus.subscribe([ALERTS], "g") as subscription:
        await drain(subscription, 10)
        await subscription.commit()
    await bus.close()
    segments(log, ALERTS)[-1].write_bytes(b"rotten" * 9999)
    bus = await log.open()
    await bus.publish(ALERTS, [big(99)])
    async with bus.subscribe([ALERTS], "g") as subscription:
        (got,) = await drain(subscription, 1)
        assert got.record == msgspec.structs.replace(big(99), timestamp_ms=got.record.timestamp_ms)
        assert got.offset >= 10
    assert bus.stats.quarantined >= 1


async def test_rotten_offsets_mean_repeats_not_loss(log, drain, records):
    bus = await log.open()
    await bus.publish(ALERTS, records(5))
    async with bus.subscribe([ALERTS], "g") as subscription:
        await drain(subscription, 5)
        await subscription.commit()
    await bus.close()
    (log.directory / "groups.db").write_bytes(b"rotten" * 9999)
    bus = await log.open()
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert len(await drain(subscription, 5)) == 5


async def test_a_rotten_compacted_table_is_put_aside_and_offsets_go_on_above(log, drain):
    bus = await log.open()
    await bus.publish(POLICIES, [Record(b"a", b"1")])
    async with bus.subscribe([POLICIES], "g") as subscription:
        await drain(subscription, 1)
        await subscription.commit()
    await bus.close()
    (log.directory / "topics" / "policies.v1" / "compacted.db").write_bytes(b"rotten" * 9999)
    bus = await log.open()
    assert await bus.latest(POLICIES) == {}
    await bus.publish(POLICIES, [Record(b"b", b"2")])
    async with bus.subscribe([POLICIES], "g") as subscription:
        (got,) = await drain(subscription, 1)
    assert (got.record.key, bus.stats.quarantined >= 1) == (b"b", True)


async def test_a_log_that_lost_its_end_in_a_power_cut_never_reuses_offsets(log, drain, records):
    bus = await log.open()
    await bus.publish(EVENTS_RAW, records(10))
    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        await drain(subscription, 10)
        await subscription.commit()
    await bus.close()
    shutil.rmtree(log.directory / "topics" / "events.raw.v1")
    bus = await log.open()
    await bus.publish(EVENTS_RAW, records(1, first=10))
    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        (got,) = await drain(subscription, 1)
    assert (got.offset, got.record.value) == (10, b"10")


# Several processes

_TELL = """
import asyncio, sys
from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import ALERTS

async def main():
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=sys.argv[1]))
    for line in sys.stdin:
        await bus.publish(ALERTS, [Record(b"other", line.strip().encode())])
        print("done", flush=True)
    await bus.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("hints", [True, False])
async def test_what_another_process_writes_is_seen_soon(log, drain, children, hints):
    neighbour = children.start(_TELL, str(log.directory), stdin=subprocess.PIPE)
    bus = await log.open()
    bus._looking.cancel()
    if not hints:
        bus._wake.close()
        assert bus._wake.look_seconds == LOOK_SECONDS_WITHOUT_HINTS
        bus._looking = asyncio.create_task(bus._look_around())
    # With hints nobody looks around at all: without a hint, nothing would ever be seen.

    def tell(index: int) -> None:
        neighbour.stdin.write(b"%d\n" % index)
        neighbour.stdin.flush()
        neighbour.stdout.readline()

    async with bus.subscribe([ALERTS], "g") as subscription:
        tell(0)
        await drain(subscription, 1)
        for index in range(1, 20):
            telling = asyncio.create_task(asyncio.to_thread(tell, index))
            (got,) = await drain(subscription, 1)
            await telling
            assert got.record.value == b"%d" % index
            if index % 5 == 0:
                # Writers of both processes in turn: one log, one order.
                await bus.publish(ALERTS, [Record(b"mine", b"x")])
                assert [d.record.key for d in await drain(subscription, 1)] == [b"mine"]


async def test_many_processes_write_at_once_and_nothing_is_lost(log, drain, children):
    program = _TELL.replace("for line in sys.stdin:", "for line in map(str, range(150)):")
    processes = [children.start(program, str(log.directory), stdout=subprocess.DEVNULL) for _ in range(3)]
    bus = await log.open(segment_bytes=65536)
    async with bus.subscribe([ALERTS], "g") as subscription:
        for index in range(150):
            await bus.publish(ALERTS, [Record(b"mine", b"%d" % index + b" " * 1000)])
        got = await drain(subscription, 600)
        assert len(got) == 600
        assert subscription.skipped == 0
    assert [d.offset for d in got] == list(range(600))
    assert [int(d.record.value) for d in got if d.record.key == b"mine"] == list(range(150))
    for process in processes:
        assert await asyncio.to_thread(process.wait, 60) == 0


# A disk that fills up, in a mount namespace of its own so that nothing is left behind.

_FULL = """
import asyncio, os, sys
from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.errors import DiskFull
from schemas.topics import ALERTS, TELEMETRY, POLICIES

async def main():
    place = sys.argv[1]
    assert os.system(f"mount -t tmpfs -o size=8m,mode=700 tmpfs {place}") == 0
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=f"{place}/bus"))
    await bus.publish(ALERTS, [Record(b"k", b"0")])
    with open(f"{place}/ballast", "wb") as ballast:
        ballast.write(b"x" * (3 << 20))
    written = 0
    for _ in range(200):
        # Three times what there is: the oldest goes, so that this goes on.
        await bus.publish(TELEMETRY, [Record(b"k", b"%d " % written + b"x" * 100_000)])
        written += 1
    async with bus.subscribe([TELEMETRY], None, "earliest") as subscription:
        at = subscription.position["telemetry", 0]
        assert 100 < at < written
        found, tries = [], 0
        # What is oldest may go before it is read, as long as the disk is full.
        while not found or found[-1].offset < written - 1:
            try:
                batch = await subscription.take(10, 60)
            except DiskFull:
                # Opening a file of SQLite's needs a page beside it; the next try may find one, and nothing was skipped.
                tries += 1
                assert tries < 600
                await asyncio.sleep(0.1)
                continue
            assert batch
            found += batch
    offsets = [one.offset for one in found]
    assert offsets == sorted(set(offsets)) and offsets[0] >= at and offsets[-20:] == list(range(written - 20, written))
    assert found[-1].record.value.startswith(b"%d " % (written - 1))
    more = os.open(f"{place}/more", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(more, b"x" * 4096):
            pass
    except OSError:
        os.close(more)
    refused = 0
    for _ in range(5):
        try:
            await bus.publish(TELEMETRY, [Record(b"k", b"%d " % written + b"x" * 5_000_000)])
            written += 1
        except DiskFull as error:
            refused += 1
            assert "free some" in str(error) and error.retry_after
    assert refused == 5, "somebody else took the rest and there is no room for a record this large"
    os.unlink(f"{place}/more")
    os.unlink(f"{place}/ballast")
    for index in range(5):
        await bus.publish(TELEMETRY, [Record(b"k", b"%d " % written)])
        await bus.publish(ALERTS, [Record(b"k", b"1")])
        await bus.publish(POLICIES, [Record(b"k", b"1")])
    assert (await bus.end(TELEMETRY))[0] == written + 5
    assert bus.stats.quarantined == 0
    await bus.close()
    print("recovered")

asyncio.run(main())
"""


@pytest.mark.parametrize(("keeps", "tries"), [(True, 5), (False, 2)])
async def test_what_must_not_be_lost_is_tried_more_than_once_on_a_full_disk(log, keeps, tries):
    bus, asked = await log.open(), []

    def write() -> None:
        asked.append(keeps)
        raise DiskFull("expected room, there is none", retry_after=1.0)

    assert isinstance(bus._writer._with_room(write, keeps), DiskFull)
    assert len(asked) == tries

    def write_at_last() -> None:
        asked.append(keeps)
        if len(asked) < 2 * tries:
            raise DiskFull("expected room, there is none", retry_after=1.0)

    assert bus._writer._with_room(write_at_last, keeps) is None
    assert len(asked) == 2 * tries


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare to mount a tmpfs")
def test_a_full_disk_is_said_and_writing_resumes_when_there_is_room(tmp_path):
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert "recovered" in done.stdout
