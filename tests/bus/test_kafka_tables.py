# SPDX-License-Identifier: Apache-2.0
"""Compacted topics on Kafka: one consumer per process whoever follows, only what is wanted, and never an older value again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest
from kafka_topics import create_topics, delete_topics

from bus.contract import Delivery, Record
from bus.kafka.administration import Administration
from bus.kafka.batches import partition_of
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.kafka.tables import _FollowedTable
from schemas.errors import Unavailable
from schemas.topics import ENFORCEMENT_DESIRED, EVENTS_RAW, INVENTORY, POLICIES

NODES = [b"node-%d" % number for number in range(20)]


@pytest.fixture
async def bus(kafka, kafka_prefix):
    await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(INVENTORY, POLICIES, ENFORCEMENT_DESIRED, EVENTS_RAW))
    bus = await KafkaBus.open(
        KafkaSettings(
            bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=30.0, call_seconds=30.0, away_seconds=30.0
        )
    )
    yield bus
    await bus.close()


async def state(view, count, until) -> dict[bytes, bytes | None]:
    """What a follower knows when it has been told of so many keys."""
    found: dict[bytes, bytes | None] = {}

    async def enough() -> bool:
        for delivery in await view.take(100, 0.05):
            found[delivery.record.key] = delivery.record.value
        return len(found) >= count

    await until(enough)
    return found


async def test_followers_of_a_process_share_one_consumer(bus, until):
    await bus.publish(POLICIES, [Record(b"p%d" % index, b"1") for index in range(50)])
    async with bus.subscribe([POLICIES], None, "earliest") as one:
        first = await state(one, 50, until)
        async with bus.subscribe([POLICIES], None, "earliest") as two:
            assert await state(two, 50, until) == first
            assert bus.stats.reads == 1
            await bus.publish(POLICIES, [Record(b"p7", b"2")])
            assert (await state(one, 1, until), await state(two, 1, until)) == ({b"p7": b"2"}, {b"p7": b"2"})
            assert len(await bus.latest(POLICIES)) == 50
            assert bus.stats.reads == 1
            assert one.position == two.position
    await until(lambda: bus.tables._task.done())


async def test_who_wants_one_key_has_its_partition_read_alone(bus, until):
    await bus.publish(ENFORCEMENT_DESIRED, [Record(node, b"1") for node in NODES])
    async with bus.subscribe([ENFORCEMENT_DESIRED], None, "earliest", keys={NODES[3]}) as mine:
        assert set(mine.owned) == {(ENFORCEMENT_DESIRED.name, partition_of(NODES[3], 3))}
        assert await state(mine, 1, until) == {NODES[3]: b"1"}
        assert set(bus.tables.table(ENFORCEMENT_DESIRED.name).rows) == {NODES[3]}
        async with bus.subscribe([ENFORCEMENT_DESIRED], None, "earliest") as everything:
            assert set(await state(everything, 20, until)) == set(NODES)
            assert bus.stats.reads == 2
            assert await mine.take(10, 0.2) == [], "nothing older comes again"
            await bus.publish(ENFORCEMENT_DESIRED, [Record(node, b"2") for node in NODES])
            assert await state(mine, 1, until) == {NODES[3]: b"2"}
            assert set((await state(everything, 20, until)).values()) == {b"2"}


async def test_partitions_that_are_added_are_read_too(kafka, kafka_prefix, bus, until):
    """`topic alter` refuses it for topics with keys that mean something, and somebody may do it by hand."""
    mine = next(node for node in NODES if partition_of(node, 3) != partition_of(node, 8))
    await bus.publish(ENFORCEMENT_DESIRED, [Record(node, b"1") for node in NODES])
    await bus.publish(EVENTS_RAW, [Record(node, b"1") for node in NODES])
    administration = Administration(bus.settings)
    try:
        async with (
            bus.subscribe([ENFORCEMENT_DESIRED], None, "earliest", keys={mine}) as one,
            bus.subscribe([POLICIES, ENFORCEMENT_DESIRED], None, "earliest") as everything,
            bus.subscribe([EVENTS_RAW], None, "latest") as raw,
        ):
            assert await state(one, 1, until) == {mine: b"1"}
            assert len(await state(everything, 20, until)) == 20
            for topic in (ENFORCEMENT_DESIRED, EVENTS_RAW):
                await administration.grow(topic.named(kafka_prefix), 8)
                # From anywhere: what this bus publishes goes to the new ones once it has heard of them.
                channel = topic.named(kafka_prefix)
                await until(lambda: bus.link.known_partitions(channel) == 8)  # noqa: B023
                await bus.publish(topic, [Record(node, b"2") for node in NODES])
            assert await state(one, 1, until) == {mine: b"2"}
            assert set((await state(everything, 20, until)).values()) == {b"2"}
            assert set((await state(raw, 20, until)).values()) == {b"2"}, "nothing of before, everything since"
    finally:
        await administration.close()


async def test_a_follower_of_a_topic_that_is_made_anew_begins_anew(kafka, kafka_prefix, bus, until):
    await bus.publish(INVENTORY, [Record(b"c%d" % index, b"1") for index in range(30)])
    async with bus.subscribe([INVENTORY], None, "earliest") as view:
        await state(view, 30, until)
        await delete_topics(kafka.bootstrap, kafka_prefix, (INVENTORY,))
        await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(INVENTORY,))

        async def told() -> bool:
            try:
                await view.take(10, 0.1)
            except Unavailable:
                return True
            return False

        await until(told)

    async def only_new() -> bool:
        try:
            await bus.publish(INVENTORY, [Record(b"new", b"1")])
            return set(await bus.latest(INVENTORY)) == {b"new"}
        except Unavailable:
            return False

    await until(only_new)


def test_tombstones_that_nobody_needs_go():
    table = _FollowedTable(INVENTORY)
    table.keys = None
    now = int(time.time() * 1000)
    for index in range(3000):
        table.put(Delivery(INVENTORY, 0, index, Record(b"c%d" % index, None, (), now - 2 * 86_400_000)))
    table.put(Delivery(INVENTORY, 0, 3000, Record(b"young", None, (), now)))
    table.put(Delivery(INVENTORY, 0, 3001, Record(b"alive", b"1", (), 1)))
    assert {b"young", b"alive"} <= set(table.rows)
    assert len(table.rows) < 1100
    assert table.tombstones == sum(row.record.value is None for row in table.rows.values())


READER = """
import asyncio, resource, sys
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.topics import EVENTS_RAW

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(bootstrap, prefix, count):
    settings = KafkaSettings(bootstrap=bootstrap, prefix=prefix, call_seconds=60.0, away_seconds=60.0, fetch_bytes=1 << 20, take_bytes=2 << 20)
    bus = await KafkaBus.open(settings)
    async with bus.subscribe([EVENTS_RAW], "g", "earliest") as subscription:
        while not subscription.owned:
            await subscription.take(0, 0.1)
        before, taken = peak(), 0
        while taken < count:
            batch = await subscription.take(500, 1.0)
            assert sum(one.record.size for one in batch) <= (3 << 20)
            taken += len(batch)
            await subscription.commit(batch)
    await bus.close()
    print(peak() - before)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_reading_large_frames_takes_bounded_memory(kafka, kafka_prefix, bus):
    frame = b"".join(os.urandom(10) + bytes(54) for _ in range(6400))
    for _ in range(12):
        await bus.publish(EVENTS_RAW, [Record(node, frame) for node in NODES[:10]])
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", READER, kafka.bootstrap, kafka_prefix, "120"],
        capture_output=True, text=True, timeout=120, env={"PYTHONPATH": ":".join(filter(None, sys.path))}, check=True,
    )  # fmt: skip
    # 49 MB of frames in all; without bounds all of it is here at once, and twice.
    assert int(done.stdout) < 30, f"{done.stdout} MB"
