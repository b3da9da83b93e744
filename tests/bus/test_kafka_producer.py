# SPDX-License-Identifier: Apache-2.0
"""Publishing to Kafka: what was given up is not sent later, what was refused harms nobody, what comes together goes together."""

from __future__ import annotations

import asyncio
import os

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as some
from kafka_topics import create_topics

from bus.contract import Record
from bus.kafka.batches import partition_of
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.errors import Backpressure, Refused, Unavailable
from schemas.topics import ALERTS, EVENTS_RAW


@pytest.fixture
async def bus(kafka, kafka_prefix):
    await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(ALERTS, EVENTS_RAW))
    bus = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=30.0))
    yield bus
    await bus.close()


@given(some.binary(max_size=40), some.integers(1, 200))
def test_a_key_lies_where_other_clients_look_for_it(key, count):
    assert partition_of(key, count) == DefaultPartitioner()(key, list(range(count)), list(range(count)))


async def read(bus, topic, count, drain) -> list[bytes]:
    async with bus.subscribe([topic], None, "earliest") as subscription:
        return [delivery.record.value for delivery in await drain(subscription, count)]


async def test_what_is_published_in_parallel_goes_out_together(bus, drain):
    await asyncio.gather(*(bus.publish(ALERTS, [Record(b"k", b"%d" % index)]) for index in range(300)))
    # How many depends on how fast the broker answers; one publication each would be 300.
    assert bus.stats.batches < 150
    assert sorted(map(int, await read(bus, ALERTS, 300, drain))) == list(range(300))


async def test_one_that_is_too_large_takes_nobody_with_it(bus, drain):
    large = Record(b"k", os.urandom(1_500_000))
    said = await asyncio.gather(
        *(bus.publish(ALERTS, [large if index == 5 else Record(b"k", b"%d" % index)]) for index in range(10)),
        return_exceptions=True,
    )
    assert [type(one) for one in said if one is not None] == [Refused]
    assert [int(value) for value in await read(bus, ALERTS, 9, drain)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_publication_larger_than_a_batch_goes_in_pieces(bus, drain):
    values = [os.urandom(300_000) for _ in range(8)]
    await bus.publish(ALERTS, [Record(b"k", value) for value in values])
    assert bus.stats.batches >= 3
    assert await read(bus, ALERTS, 8, drain) == values


async def test_more_than_may_wait_is_refused_for_now(kafka, kafka_prefix):
    await create_topics(kafka.bootstrap, kafka_prefix, 1, topics=(ALERTS,))
    bus = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, queue_bytes=1 << 20))
    try:
        first = asyncio.create_task(bus.publish(ALERTS, [Record(b"k", bytes(900_000))]))
        await asyncio.sleep(0)
        with pytest.raises(Backpressure, match="queue_bytes"):
            await bus.publish(ALERTS, [Record(b"k", bytes(900_000))])
        await first
        await bus.publish(ALERTS, [Record(b"k", bytes(900_000))])
    finally:
        await bus.close()


async def test_what_was_given_up_is_not_sent_later(kafka_clusters, drain, until):
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "p.", 1, topics=(ALERTS,))
    bus = await KafkaBus.open(
        KafkaSettings(bootstrap=cluster.bootstrap, prefix="p.", publish_seconds=60.0, call_seconds=60.0)
    )
    try:
        await bus.publish(ALERTS, [Record(b"k", b"first")])
        cluster.pause()
        # One is on its way, in the broker's hands for all we know; the others wait behind it.
        (queue,) = bus.producer._queues.values()
        tasks = [asyncio.create_task(bus.publish(ALERTS, [Record(b"k", b"a0")]))]
        await until(lambda: len(queue.under_way) == 1)
        tasks += [asyncio.create_task(bus.publish(ALERTS, [Record(b"k", b"a%d" % index)])) for index in range(1, 10)]
        await until(lambda: len(queue.waiting) == 9)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert not any(one.waiting or one.under_way for one in bus.producer._queues.values())
        cluster.resume()
        for index in range(10):
            await bus.publish(ALERTS, [Record(b"k", b"b%d" % index)])
        values = await read(bus, ALERTS, 11, drain)
        assert values[0] == b"first"
        assert [value for value in values if value.startswith(b"b")] == [b"b%d" % index for index in range(10)]
        assert {value for value in values if value.startswith(b"a")} <= {b"a0"}
        assert bus.stats.renewed == 1
    finally:
        await bus.close()


async def test_a_deadline_gives_up_for_certain_and_says_so(kafka_clusters, until):
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "d.", 1, topics=(ALERTS,))
    bus = await KafkaBus.open(
        KafkaSettings(bootstrap=cluster.bootstrap, prefix="d.", publish_seconds=1.0, call_seconds=30.0)
    )
    try:
        await until(lambda: _published(bus))
        cluster.pause()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await bus.publish(ALERTS, [Record(b"k", b"v")])
        assert not any(one.waiting or one.under_way for one in bus.producer._queues.values())
        cluster.resume()
        await until(lambda: _published(bus))
    finally:
        await bus.close()


async def _published(bus) -> bool:
    try:
        await bus.publish(ALERTS, [Record(b"k", b"v")])
    except Unavailable:
        return False
    return True
