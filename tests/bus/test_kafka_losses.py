# SPDX-License-Identifier: Apache-2.0
"""Records that readers without a group will never see are counted and told: those of followed tables once each, however often these are
read; those that retention deleted like those that cannot be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from kafka_topics import create_topics

from bus.contract import Gap, Record
from bus.kafka.batches import encoded
from bus.kafka.bus import KafkaBus
from bus.kafka.losses import GapList, GrouplessLosses
from bus.kafka.settings import KafkaSettings
from bus.kafka.stats import KafkaStats
from bus.record_size import KEY_BYTES
from schemas.topics import ENFORCEMENT_DESIRED, EVENTS_RAW, INVENTORY, POLICIES, SUMMARIES, Topic

BAD = b"k" * (KEY_BYTES + 1)
"""A key that is left out like a batch that cannot be read."""


@pytest.fixture
async def bus(kafka: Any, kafka_prefix: str) -> AsyncIterator[KafkaBus]:
    topics = (EVENTS_RAW, INVENTORY, POLICIES, ENFORCEMENT_DESIRED, SUMMARIES)
    await create_topics(kafka.bootstrap, kafka_prefix, 1, topics=topics)
    made = await KafkaBus.open(
        KafkaSettings(
            bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=30.0, call_seconds=30.0, away_seconds=30.0
        )
    )
    yield made
    await made.close()


async def write_bad(bus: KafkaBus, topic: Topic, count: int = 1) -> None:
    """What another client may write, in a batch each."""
    from aiokafka.protocol.produce import ProduceRequest

    client = await bus.link.client()
    channel = topic.named(bus.settings.prefix)
    for _ in range(count):
        data = encoded([Record(BAD, b"bad")], 0, (-1, -1), -1, 1)
        leader = await bus.link.leader(channel, 0)
        ((_, ((_, code, *_),)),) = (
            await client.send(leader, ProduceRequest(None, -1, 10_000, [(channel, [(0, data)])]))
        ).topics
        assert code == 0


async def delete_before(kafka: Any, channel: str, offset: int) -> None:
    """What retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(channel, 0): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


@pytest.mark.fault(
    "records of a followed topic (`policies`, plans, the inventory) that cannot be read",
    "left out, told, and counted once each in `hauberk_kafka_skipped_total`; every follower has them as gaps",
)
@pytest.mark.parametrize("topic", [POLICIES, INVENTORY, ENFORCEMENT_DESIRED], ids=lambda topic: topic.name)
async def test_what_is_left_out_of_a_table_is_counted(
    bus: KafkaBus, topic: Topic, until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await bus.publish(topic, [Record(b"a", b"before")])
    await write_bad(bus, topic)
    await bus.publish(topic, [Record(b"b", b"behind")])
    for reads in (1, 2):
        assert set(await bus.latest(topic)) == {b"a", b"b"}
        assert (bus.stats.reads, bus.stats.skipped) == (reads, 1), "met again at each reading, counted once"
    async with bus.subscribe([topic], None, "earliest") as one:
        for _ in range(2):
            await one.take(1, 30.0)
        await write_bad(bus, topic, 2)
        await until(lambda: one.skipped == 3)
        assert [(gap.first, gap.last) for gap in one.gaps] == [(1, 1), (3, 3), (4, 4)]
        async with bus.subscribe([topic], None, "earliest") as two:
            assert (two.skipped, two.gaps) == (one.skipped, one.gaps), "whoever comes later lacks them too"
    assert bus.stats.skipped == 3
    channel = topic.named(bus.settings.prefix)
    lines = [line for line in caplog.messages if channel in line]
    assert len(lines) == 1, "one at once, the others within half a minute"
    assert "partition 0, offsets 1 to 1" in lines[0]


@pytest.mark.parametrize("topic", [EVENTS_RAW, SUMMARIES], ids=lambda topic: topic.name)
async def test_what_retention_deleted_first_is_counted_and_told(
    bus: KafkaBus, kafka: Any, kafka_prefix: str, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a reader without a group that is slower than retention."""
    await bus.publish(topic, [Record(b"%d" % number, b"old") for number in range(10)])
    async with bus.subscribe([topic], None, "latest") as reader:
        # It was at offset 4 when it last asked.
        reader._drop()  # type: ignore[attr-defined]
        reader._kept = {(topic.name, 0): 4}  # type: ignore[attr-defined]
        await delete_before(kafka, topic.named(kafka_prefix), 8)
        found = []
        async with asyncio.timeout(60):
            while len(found) < 2:
                found += await reader.take(10, 1.0)
        assert [one.offset for one in found] == [8, 9]
        assert [(gap.first, gap.last) for gap in reader.gaps] == [(4, 7)]
    assert bus.stats.skipped == 4
    [line] = [line for line in caplog.messages if topic.named(kafka_prefix) in line]
    assert "offsets 4 to 7: retention deleted them first" in line


async def test_what_retention_took_of_a_table_is_counted_and_told(
    bus: KafkaBus, kafka: Any, kafka_prefix: str, until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Of a table whose reader was away meanwhile."""
    await bus.publish(SUMMARIES, [Record(b"%d" % number, b"old") for number in range(10)])
    async with bus.subscribe([SUMMARIES], None, "earliest") as view:
        while view.position != {(SUMMARIES.name, 0): 10}:
            await view.take(10, 30.0)
        await delete_before(kafka, SUMMARIES.named(kafka_prefix), 8)
        bus.tables.table(SUMMARIES.name).position[SUMMARIES.name, 0] = 4
        bus.tables._changed.set()
        await until(lambda: view.skipped == 4)
        assert [(gap.first, gap.last) for gap in view.gaps] == [(4, 7)]
    assert bus.stats.skipped == 4
    [line] = [line for line in caplog.messages if SUMMARIES.named(kafka_prefix) in line]
    assert "retention deleted them first" in line


async def test_what_a_group_misses_is_counted_by_its_pump_alone(bus: KafkaBus) -> None:
    await bus.publish(EVENTS_RAW, [Record(b"n", b"before")])
    await write_bad(bus, EVENTS_RAW)
    await bus.publish(EVENTS_RAW, [Record(b"n", b"behind")])
    async with asyncio.timeout(60), bus.subscribe([EVENTS_RAW], "g", "earliest") as reader:
        taken = 0
        while taken < 2:
            taken += len(await reader.take(10, 1.0))
        assert reader.skipped == 1
    assert bus.stats.skipped == 0


def test_a_gap_that_is_met_again_is_none() -> None:
    gaps = GapList()
    first = Gap("policies", 0, 5, 9, "x")
    assert gaps.add(first) == first
    assert gaps.add(first) is None
    assert gaps.add(Gap("policies", 0, 7, 12, "y")) == Gap("policies", 0, 10, 12, "y"), "what is further of it"
    assert gaps.add(Gap("policies", 1, 5, 5, "x")) is not None
    assert gaps.skipped == 9
    later = GapList()
    later.join(gaps)
    assert later.add(first) is None
    assert (later.skipped, list(later.newest)) == (gaps.skipped, list(gaps.newest))
    for number in range(200):
        gaps.add(Gap("policies", 2, number, number, "x"))
    assert (gaps.skipped, len(gaps.newest)) == (209, 100)
    gaps.clear()
    assert gaps.add(first) == first, "another topic of that name"


async def test_a_flood_in_one_topic_hides_no_line_of_another(caplog: pytest.LogCaptureFixture) -> None:
    stats = KafkaStats()
    losses = GrouplessLosses(stats, "hauberk.")
    for number in range(1000):
        losses.take(Gap("events.raw", 0, number, number, "unreadable"))
    losses.take(Gap("policies", 0, 3, 4, "unreadable"))
    assert stats.skipped == 1002
    assert [one.levelno for one in caplog.records] == [logging.ERROR] * 2
    assert "2 records of topic `hauberk.policies.v1` are left out here, partition 0, offsets 3 to 4" in caplog.text
