# SPDX-License-Identifier: Apache-2.0
"""A batch that unpacks to more than any of ours is left out and told, and what lies behind it is read: memory is not the sender's to fill."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c
from kafka_topics import create_topics

from bus.contract import Record
from bus.kafka.batches import encoded
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.kafka.unpacking import MOST_UNPACKED
from bus.record_size import KEY_BYTES
from schemas.topics import EVENTS_RAW, INVENTORY, Topic

pytestmark = pytest.mark.kafka


@pytest.fixture
async def bus(kafka: Any, kafka_prefix: str) -> AsyncIterator[KafkaBus]:
    await create_topics(kafka.bootstrap, kafka_prefix, 1, topics=(EVENTS_RAW, INVENTORY))
    made = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix))
    yield made
    await made.close()


async def send(kafka: Any, channel: str, codec: str, key: bytes, value: bytes, headers: Any = ()) -> None:
    """What another client writes, who keeps no limit of ours."""
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, compression_type=codec, max_request_size=1 << 30, max_batch_size=1 << 30,
        request_timeout_ms=60_000,
    )  # fmt: skip
    await producer.start()
    try:
        await producer.send_and_wait(channel, value, key, headers=list(headers))
    finally:
        await producer.stop()


async def send_batch(bus: KafkaBus, topic: Topic, data: bytes) -> int:
    """The broker's code for a batch of that content, with its sum made right."""
    data = data[:17] + struct.pack(">I", calc_crc32c(data[21:])) + data[21:]
    client = await bus.link.client()
    channel = topic.named(bus.link.settings.prefix)
    request = ProduceRequest(None, -1, 10_000, [(channel, [(0, data)])])
    ((_, ((_, code, *_),)),) = (await client.send(await bus.link.leader(channel, 0), request)).topics
    return int(code)


@pytest.mark.fault(
    "record with a header whose name is no UTF-8",
    "its batch is left out from there on, told and counted as a gap; what lies behind it is read",
)
async def test_a_header_whose_name_is_no_text(bus: KafkaBus) -> None:
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"before")])
    whole = encoded([Record(b"n1", b"good"), Record(b"n1", b"bad", (("NAME-OF-IT", b""),))], 0, (-1, -1), -1, 1)
    assert await send_batch(bus, EVENTS_RAW, whole.replace(b"NAME-OF-IT", b"NAME-OF-\xff\xfe")) == 0
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"behind")])
    found: list[Any] = []
    async with asyncio.timeout(120), bus.subscribe((EVENTS_RAW,), "readers", "earliest") as reader:
        while len(found) < 3:
            found += await reader.take(10, 1.0)
        assert [one.record.value for one in found] == [b"before", b"good", b"behind"]
        assert [(gap.first, gap.last) for gap in reader.gaps] == [(2, 2)]
        assert "utf-8" in reader.gaps[0].why


async def test_headers_that_others_write(bus: KafkaBus) -> None:
    """Values that are null, and times that no clock shows, in the header by which ours travel."""
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"before")])
    for headers in ((("name", None),), (("bus.time-ms", None),), (("bus.time-ms", b"999999999999999999"),)):
        one: Any = SimpleNamespace(key=b"n1", value=b"good", headers=headers, timestamp_ms=0)
        assert await send_batch(bus, EVENTS_RAW, encoded([one], 0, (-1, -1), -1, 1000)) == 0
    found: list[Any] = []
    async with asyncio.timeout(120), bus.subscribe((EVENTS_RAW,), "readers", "earliest") as reader:
        while len(found) < 4:
            found += await reader.take(10, 1.0)
    assert [one.record.headers for one in found[1:]] == [
        (("name", b""),), (("bus.time-ms", b""),), (("bus.time-ms", b"999999999999999999"),)
    ]  # fmt: skip
    assert [one.record.timestamp_ms for one in found[1:]] == [1000] * 3


@pytest.mark.fault(
    "batch of a few kilobytes that unpacks to more than 8 MiB, by any codec",
    "left out, told and counted as a gap; what lies before and behind it is read",
)
@pytest.mark.parametrize("codec", ["zstd", "gzip", "lz4", "snappy"])
async def test_a_batch_that_unpacks_to_too_much(bus: KafkaBus, kafka: Any, kafka_prefix: str, codec: str) -> None:
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"before")])
    await send(kafka, f"{kafka_prefix}events.raw.v1", codec, b"n1", bytes(MOST_UNPACKED))
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"behind")])
    found = []
    async with asyncio.timeout(120):
        async with bus.subscribe((EVENTS_RAW,), "readers", "earliest") as reader:
            while len(found) < 2:
                found += await reader.take(10, 1.0)
            assert [one.record.value for one in found] == [b"before", b"behind"]
            assert [(gap.first, gap.last) for gap in reader.gaps] == [(1, 1)]
            assert reader.skipped == 1
            assert "unpacks to more than" in reader.gaps[0].why
            await reader.commit()


@pytest.mark.fault(
    "records of another client with keys of a megabyte",
    "left out, told and counted as gaps; who follows the topic keeps none of them",
)
async def test_keys_that_nobody_here_writes(
    bus: KafkaBus, kafka: Any, kafka_prefix: str, until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await bus.publish(EVENTS_RAW, [Record(b"k" * KEY_BYTES, b"before")])
    await send(kafka, f"{kafka_prefix}events.raw.v1", "zstd", b"k" * (KEY_BYTES + 1), b"bad")
    await bus.publish(EVENTS_RAW, [Record(b"n1", b"behind")])
    found: list[Any] = []
    async with asyncio.timeout(120), bus.subscribe((EVENTS_RAW,), "readers", "earliest") as reader:
        while len(found) < 2:
            found += await reader.take(10, 1.0)
        assert [one.record.value for one in found] == [b"before", b"behind"]
        assert [(gap.first, gap.last) for gap in reader.gaps] == [(1, 1)]
        assert "4097 bytes, at most 4096" in reader.gaps[0].why
    for number in range(3):
        await send(kafka, f"{kafka_prefix}inventory.v1", "zstd", b"%d" % number + bytes(900_000), b"bad")
    await bus.publish(INVENTORY, [Record(b"small", b"behind")])

    async def known() -> bool:
        return (await bus.latest(INVENTORY)).keys() == {b"small"}

    assert await until(known)
    assert [one for one in caplog.messages if "at most 4096" in one and kafka_prefix in one]


async def test_a_table_goes_on_behind_it(
    bus: KafkaBus, kafka: Any, kafka_prefix: str, until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await send(kafka, f"{kafka_prefix}inventory.v1", "zstd", b"big", bytes(MOST_UNPACKED))
    await bus.publish(INVENTORY, [Record(b"small", b"behind")])

    async def known() -> bool:
        return (await bus.latest(INVENTORY)).keys() == {b"small"}

    assert await until(known)
    assert [one for one in caplog.messages if "unpacks to more than" in one and kafka_prefix in one]


async def test_the_end_is_reached_where_nothing_lies_behind_it(bus: KafkaBus, kafka: Any, kafka_prefix: str) -> None:
    """Who reads to the end as of its start would wait there for the next record, and a follower never be ready."""
    for topic in (EVENTS_RAW, INVENTORY):
        await bus.publish(topic, [Record(b"n1", b"before")])
        await send(kafka, topic.named(kafka_prefix), "zstd", b"k" * (KEY_BYTES + 1), b"bad")
        await bus.publish(topic, [Record(b"n1", b"between")])
        await send(kafka, topic.named(kafka_prefix), "zstd", b"k" * (KEY_BYTES + 1), b"bad")
    async with asyncio.timeout(60):
        assert (await bus.latest(INVENTORY))[b"n1"].value == b"between"
        for most in (1, 10):
            found: list[Any] = []
            async with bus.subscribe((EVENTS_RAW,), None, "earliest") as reader:
                while reader.position[EVENTS_RAW.name, 0] < (await bus.end(EVENTS_RAW))[0]:
                    found += await reader.take(most, 1.0)
                assert [one.record.value for one in found] == [b"before", b"between"]
                assert [(gap.first, gap.last) for gap in reader.gaps] == [(1, 1), (3, 3)]


async def test_what_we_publish_at_most_is_read(bus: KafkaBus, kafka: Any, kafka_prefix: str) -> None:
    """The largest record that settings allow fits, with a key and headers."""
    most = 4 << 20
    await bus.publish(EVENTS_RAW, [Record(b"n1", bytes(most - 10000), (("name", bytes(5000)),))])
    async with asyncio.timeout(120), bus.subscribe((EVENTS_RAW,), "readers", "earliest") as reader:
        found: list[Any] = []
        while not found:
            found = await reader.take(10, 1.0)
        assert len(found[0].record.value or b"") == most - 10000
        assert not reader.gaps
