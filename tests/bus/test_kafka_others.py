# SPDX-License-Identifier: Apache-2.0
"""Others in a group of ours, answers that are lost, a spool whose disk is full or whose topic is gone: on the broker of the run. See `test_kafka_faults`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.produce import ProduceRequest
from kafka_load import Keep, Load, account, numbers, pump
from kafka_topics import create_topics, delete_topics

from bus.backoff import Backoff
from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.client import QuietClient
from bus.kafka.settings import KafkaSettings
from bus.spool import SpooledBus
from bus.spool_settings import SpoolSettings
from schemas.errors import Unavailable, Unserved
from schemas.topics import ALERTS, DEAD, EVENTS_RAW

SCRIPT = Path(__file__).with_name("full_spool.py")


@pytest.fixture
async def bus(kafka: Any, kafka_prefix: str) -> AsyncIterator[KafkaBus]:
    await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(EVENTS_RAW, ALERTS, DEAD))
    made = await KafkaBus.open(
        KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, session_seconds=6.0, publish_seconds=60.0)
    )
    yield made
    await made.close()


@asynccontextmanager
async def another(bus: KafkaBus, assignor: type) -> AsyncIterator[AIOKafkaConsumer]:
    """A member of the group `processors` that is no reader of ours."""
    settings = bus.settings
    consumer = AIOKafkaConsumer(
        EVENTS_RAW.named(settings.prefix), bootstrap_servers=settings.bootstrap, group_id=f"{settings.prefix}processors",
        partition_assignment_strategy=(assignor,), auto_offset_reset="earliest", enable_auto_commit=False,
    )  # fmt: skip

    async def read() -> None:
        await consumer.start()
        while True:
            await consumer.getmany(timeout_ms=200)

    reading = asyncio.create_task(read())
    try:
        yield consumer
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(consumer.stop(), 30)


async def _taken(place: Any) -> None:
    """Ask for records until that fails."""
    while True:
        await place.take(10, 1.0)


@pytest.mark.fault(
    "group with members that share its partitions in another way",
    "one sentence with the group's name; nothing hangs; works without a restart once they are gone",
)
async def test_a_group_of_another_protocol(bus: KafkaBus, until: Any) -> None:
    handler = Keep()
    load = Load(bus)
    async with another(bus, RangePartitionAssignor) as other:
        await until(lambda: len(other.assignment()) == 3)
        async with bus.subscribe([EVENTS_RAW], "processors", "earliest") as place:
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await _taken(place)
            assert time.monotonic() - began < 30
        assert f"members of group `{bus.settings.prefix}processors` to share its partitions" in str(caught.value)
        assert "choose another group" in str(caught.value)
        assert "\n" not in str(caught.value)
        one = pump(bus, handler)
        running = asyncio.create_task(one.run())
        await until(lambda: "another version of Hauberk" in one.stats.failure)
        await load.more(10, until)
    await load.more(10, until)
    await load.stop()
    await until(lambda: set(load.sent) <= set(numbers(handler.handled)))
    one.stop()
    await asyncio.wait_for(running, 60)
    assert account(load, handler) == 0


class OtherVersion(StickyPartitionAssignor):
    """Its members say what they had in words that ours cannot read."""

    @classmethod
    def metadata(cls, topics: Any) -> Any:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), b"\x00\x09of another version")


@pytest.mark.fault(
    "member whose metadata is of another version, joining while ours leads the group",
    "each has its share; nothing hangs, nothing is lost",
)
async def test_a_member_of_another_version(bus: KafkaBus, until: Any) -> None:
    handler = Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await until(lambda: one.stats.partitions == 3)
    async with another(bus, OtherVersion) as other:
        await until(lambda: one.stats.partitions == 2 and len(other.assignment()) == 1, 60)
        await load.more(20, until)
    # It committed nothing, so what it was handed comes here.
    await until(lambda: one.stats.partitions == 3, 60)
    await load.stop()
    await until(lambda: set(load.sent) <= set(numbers(handler.handled)), 60)
    one.stop()
    await asyncio.wait_for(running, 60)
    account(load, handler)


@pytest.mark.fault("answer of the broker lost, so that a batch is sent again", "recognised by the broker: written once")
async def test_an_answer_that_is_lost(bus: KafkaBus, drain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = 0
    send = QuietClient.send

    async def deaf(client: QuietClient, node: Any, request: Any, **options: Any) -> Any:
        nonlocal lost
        answer = await send(client, node, request, **options)
        if isinstance(request, ProduceRequest) and lost < 5:
            # The broker has written it, and nobody here knows.
            lost += 1
            client.cut(node)
            raise KafkaConnectionError("the connection ended before the answer")
        return answer

    monkeypatch.setattr(QuietClient, "send", deaf)
    for number in range(10):
        await bus.publish(EVENTS_RAW, [Record(b"node-1", b"%d" % number)])
    assert lost == 5
    assert sum((await bus.end(EVENTS_RAW)).values()) == 10
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        assert [int(one.record.value or b"") for one in await drain(reader, 10)] == list(range(10))


@pytest.mark.kernel
@pytest.mark.fault(
    "disk of the spool full while the brokers are away",
    "the oldest raw frames are shed and told; what finds no room even so is an error to who publishes; the rest arrives in order",
)
async def test_a_full_disk_below_the_spool(bus: KafkaBus, tmp_path: Path) -> None:
    size, room = 24 << 20, 6 << 20
    inside = f'mount -t tmpfs -o size={size} none {tmp_path} && exec {sys.executable} {SCRIPT} "$@"'
    words = [str(tmp_path), str(size - room), bus.settings.bootstrap, bus.settings.prefix]
    done = await asyncio.to_thread(
        subprocess.run, ["unshare", "-m", "sh", "-c", inside, "sh", *words], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    arrived = []
    async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
        ends = await bus.end(EVENTS_RAW)
        while any(reader.position.get((EVENTS_RAW.name, number), 0) < end for number, end in ends.items()):
            arrived += [int((one.record.value or b"").split(b" ")[0]) for one in await reader.take(100, 1.0)]
    assert told["shed"].get("events.raw", 0) + told["failed"] > 0, "the disk was full"
    assert len(set(arrived)) + told["shed"].get("events.raw", 0) + told["failed"] == 200, told
    assert arrived == sorted(arrived), "one node, in order"
    assert told["notices"] == told["shed"].get("events.raw", 0)
    assert told["full"] > 0


async def _published_for_ever(bus: KafkaBus) -> None:
    """A broker that has yet to hear of it takes some."""
    while True:
        await bus.publish(EVENTS_RAW, [Record(b"node-1", b"gone with its topic")])


@pytest.mark.fault(
    "topic that a node writes is deleted, and made again later",
    "its frames wait in the spool by themselves, told by name and in order; alerts go straight through meanwhile",
)
async def test_a_topic_that_is_gone_holds_up_no_other(
    kafka: Any, kafka_prefix: str, tmp_path: Path, until: Any
) -> None:
    await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(EVENTS_RAW, ALERTS))
    inner = await KafkaBus.open(
        KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=5.0, call_seconds=20.0)
    )
    settings = SpoolSettings(
        directory=str(tmp_path / "spool"), publish_timeout=30.0, retry=Backoff(first_seconds=0.2, max_seconds=1.0)
    )
    bus = await SpooledBus.open(inner, settings)
    try:
        await bus.publish(EVENTS_RAW, [Record(b"node-1", b"before")])
        await delete_topics(kafka.bootstrap, kafka_prefix, (EVENTS_RAW,))
        with pytest.raises(Unserved):
            await _published_for_ever(inner)
        for number in range(10):
            await bus.publish(EVENTS_RAW, [Record(b"node-1", b"%d" % number)])
            await bus.publish(ALERTS, [Record(b"shop", b"%d" % number)])
        assert sum((await bus.end(ALERTS)).values()) == 10, "straight through"
        assert (bus.stats.away, bus.stats.waiting, inner.link.away) == (False, 10, None)
        await until(lambda: "it is not there; make it with `hauberk topic create`" in bus.unserved["events.raw"])
        await create_topics(kafka.bootstrap, kafka_prefix, 3, topics=(EVENTS_RAW,))
        await until(lambda: bus.stats.waiting == 0, 60)
        assert bus.unserved == {}
        found: list[int] = []
        async with bus.subscribe([EVENTS_RAW], None, "earliest") as reader:
            while len(found) < 10:
                found += [int(one.record.value or b"") for one in await reader.take(100, 1.0)]
        assert found == list(range(10))
    finally:
        await bus.close()
