# SPDX-License-Identifier: Apache-2.0
"""What breaks between stages on Kafka, with frames in == frames accounted for; docs/bus.md has the table of these tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest
from kafka_load import Keep, Load, account, numbers, pump
from kafka_topics import create_topics, delete_topics

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.errors import Refused, Temporary, Unavailable
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, POLICIES

FEW = (EVENTS_RAW, DEAD, ALERTS, POLICIES)


@pytest.fixture(scope="module")
def breakable(kafka_clusters_of_the_run):
    """A broker that the tests of this file kill, move and empty; it runs when a test begins."""
    cluster = kafka_clusters_of_the_run()
    yield cluster
    cluster.close()


@pytest.fixture
async def broker(breakable):
    await asyncio.to_thread(breakable.start)
    breakable.prefix = f"f{uuid.uuid4().hex[:8]}."
    await create_topics(breakable.bootstrap, breakable.prefix, 3, topics=FEW)
    yield breakable
    breakable.resume()


@pytest.fixture
async def opened():
    """opened(cluster, **settings): a bus, closed in the end."""
    made = []

    async def opened(cluster, **settings) -> KafkaBus:
        settings = {
            "session_seconds": 6.0, "publish_seconds": 5.0, "call_seconds": 5.0, "away_seconds": 4.0, "prefix": cluster.prefix,
        } | settings  # fmt: skip
        bus = await KafkaBus.open(KafkaSettings(bootstrap=settings.pop("bootstrap", cluster.bootstrap), **settings))
        made.append(bus)
        return bus

    yield opened
    for bus in made:
        await bus.close()


async def finished(bus, one, running: asyncio.Task, until) -> None:
    """Everything published is handled and committed, then the reader ends."""

    async def committed() -> bool:
        try:
            return (await bus.lag("processors")).get(EVENTS_RAW.name) == 0
        except Temporary:
            return False

    await until(committed, 100)
    await one.finish()
    await asyncio.wait_for(running, 120)


@pytest.mark.fault(
    "broker stopped in order and started again, under load",
    "nothing lost; repeats at most what was published again after an error",
)
async def test_a_broker_that_restarts(broker, opened, until):
    bus, handler = await opened(broker), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(50, until)
    await asyncio.to_thread(broker.stop)
    await asyncio.to_thread(broker.start)
    await load.more(50, until)
    await load.stop()
    await finished(bus, one, running, until)
    assert account(load, handler) <= load.tries - len(load.sent)


@pytest.mark.fault(
    "broker killed (-9) under load, away for longer than any deadline",
    "nothing lost; repeats at most what was published again after an error; at most six log lines in all",
)
async def test_a_broker_that_is_killed(broker, opened, until, caplog):
    bus, handler = await opened(broker, publish_seconds=2.0), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(50, until)
    await asyncio.to_thread(broker.kill)
    await until(lambda: bus.link.away is not None)
    # Several looks for a broker that is not there.
    await until(lambda: bus.link._attempt >= 4)
    await asyncio.to_thread(broker.start)
    await load.more(50, until)
    await load.stop()
    await finished(bus, one, running, until)
    assert account(load, handler) <= load.tries - len(load.sent)
    lines = [one.getMessage() for one in caplog.records if one.name.startswith(("bus.kafka", "aiokafka"))]
    assert [line for line in lines if "away" in line]
    assert len(lines) <= 6, lines


@pytest.mark.fault(
    "broker that takes connections and answers nothing",
    "told as away, with that as the reason; nothing lost; repeats at most what was published again",
)
async def test_a_broker_that_hangs(broker, opened, until):
    bus, handler = await opened(broker, publish_seconds=2.0), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(20, until)
    broker.pause()
    await until(lambda: bus.link.away is not None)
    assert "nothing answers" in str(bus.link.away) or "no answer" in str(bus.link.away)
    broker.resume()
    await load.more(20, until)
    await load.stop()
    await finished(bus, one, running, until)
    assert account(load, handler) <= load.tries - len(load.sent)


async def test_a_reader_that_opens_while_brokers_are_given_up(broker, opened):
    """The process ends, the broker hangs: a consumer that starts just then is not waited for either."""
    bus = await opened(broker, call_seconds=60.0)
    async with bus.subscribe([EVENTS_RAW], None, "latest") as reader:
        await reader.take(1, 0.1)
        broker.pause()
        try:
            reader._drop()
            asking = asyncio.create_task(reader.take(1, 60.0))
            await bus.last_look()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(asking, 5.0)
        finally:
            broker.resume()


@pytest.mark.fault(
    "broker under a new address (the old one is gone)",
    "found again without a restart once `bootstrap` leads there (the test changes it; a name that resolves anew was not tried); nothing lost",
)
async def test_a_broker_that_moves(broker, opened, until):
    bus, handler = await opened(broker, publish_seconds=2.0), Keep()
    load = Load(bus)
    await load.more(20, until)
    await asyncio.to_thread(broker.kill)
    await until(lambda: bus.link.away is not None)
    broker.move()
    await asyncio.to_thread(broker.start)
    # A name that resolves to the new address: what a client asks again each time it opens.
    bus.link.settings = bus.producer._settings = _at(bus.settings, broker.bootstrap)
    one = pump(bus, handler)
    running = asyncio.create_task(one.run())
    await load.more(20, until)
    await load.stop()
    await finished(bus, one, running, until)
    account(load, handler)


def _at(settings: KafkaSettings, bootstrap: str) -> KafkaSettings:
    import msgspec

    return msgspec.structs.replace(settings, bootstrap=bootstrap)


@pytest.mark.fault(
    "another, empty cluster under the same address",
    "told by name; readers and tables begin anew; what is published goes on",
)
async def test_another_cluster_answers(broker, opened, until, caplog):
    bus, handler = await opened(broker, publish_seconds=2.0), Keep()
    await bus.publish(POLICIES, [Record(b"old", b"1")])
    async with bus.subscribe([POLICIES], None, "earliest") as follower:
        await until(lambda: follower.take(10, 0.1))
        load = Load(bus)
        await load.more(20, until)
        await asyncio.to_thread(broker.kill)
        broker.empty()
        await asyncio.to_thread(broker.start)
        await create_topics(broker.bootstrap, broker.prefix, 3, topics=FEW)
        before = len(load.sent)
        one = pump(bus, handler)
        running = asyncio.create_task(one.run())
        await load.more(20, until)
        await load.stop()
        await finished(bus, one, running, until)
        assert set(load.sent[before:]) <= set(numbers(handler.handled))
        assert await bus.latest(POLICIES) == {}
        # A broker that was away only briefly is recognised by the next look at all of its metadata.
        await until(lambda: any("another cluster" in one.getMessage() for one in caplog.records))


@pytest.mark.fault(
    "topic deleted and made again", "what is published waits, readers begin at its start, their commits count"
)
async def test_a_topic_that_is_made_anew(broker, opened, until):
    bus, handler = await opened(broker), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(50, until)
    await load.stop()
    await until(lambda: set(load.sent) <= set(numbers(handler.handled)))
    account(load, handler)
    await delete_topics(broker.bootstrap, broker.prefix, (EVENTS_RAW,))
    again = Load(bus)
    await until(lambda: again.tries > 2)
    await create_topics(broker.bootstrap, broker.prefix, 3, topics=(EVENTS_RAW,))
    await again.more(50, until)
    await again.stop()
    seen = len(handler.handled)
    await until(lambda: set(again.sent) <= set(numbers(handler.handled)), 60, f"all after {seen}")
    await finished(bus, one, running, until)
    assert (await bus.lag("processors"))[EVENTS_RAW.name] == 0


@pytest.mark.fault(
    "a member hangs that once met an error of reading, such as an offset that retention deleted",
    "the others take its partitions over",
)
async def test_a_member_that_met_an_error_and_hangs(broker, opened, until):
    bus = await opened(broker, member_seconds=4.0)
    async with bus.subscribe([EVENTS_RAW], "g", "earliest") as hanging:

        async def owns() -> bool:
            await hanging.take(1, 0.05)
            return bool(hanging.owned)

        await until(owns)
        for place in hanging._consumer.assignment():
            hanging._consumer.seek(place, 1_000_000)
        await bus.publish(EVENTS_RAW, [Record(b"node-%d" % number, b"") for number in range(12)])
        found: list[Any] = []
        while len(found) < 12:
            found += await hanging.take(12, 1.0)
        async with bus.subscribe([EVENTS_RAW], "g", "earliest") as other:

            async def others() -> bool:
                await other.take(1, 0.05)
                return len(other.owned) == 3

            await until(others)


@pytest.mark.fault(
    "clock of a node two hours ahead", "frames travel without a broker's time and keep their own; told once"
)
async def test_a_clock_that_is_ahead(broker, opened, until, caplog):
    bus, handler = await opened(broker), Keep()
    ahead = time.time_ns() // 1_000_000 + 2 * 3600 * 1000
    one, load = pump(bus, handler), Load(bus, stamp_ms=ahead)
    running = asyncio.create_task(one.run())
    await load.more(20, until)
    await load.stop()
    await bus.publish(ALERTS, [Record(b"k", b"now")])
    await finished(bus, one, running, until)
    assert account(load, handler) == 0
    assert {delivery.record.timestamp_ms for delivery in handler.handled} == {ahead}
    assert {delivery.record.headers for delivery in handler.handled} == {()}
    assert len([one for one in caplog.records if "clock" in one.getMessage()]) == 1
    assert bus.stats.timeless >= 1


@pytest.mark.fault(
    "frame over the topic's limit", "`Refused` for that one, the next goes through on the same partition"
)
async def test_a_frame_over_the_limit(broker, opened):
    bus = await opened(broker, compression="none")
    large = Record(b"node-1", b"x" * 2_000_000)
    for index in range(3):
        with pytest.raises(Refused, match=r"max\.message\.bytes"):
            await bus.publish(EVENTS_RAW, [large])
        await bus.publish(EVENTS_RAW, [Record(b"node-1", b"%d" % index)])
    with pytest.raises(Refused, match="record_bytes"):
        await bus.publish(EVENTS_RAW, [Record(b"node-1", b"x" * (5 << 20))])
    assert sum((await bus.end(EVENTS_RAW)).values()) == 3


@pytest.mark.fault("poison frame among good ones", "it alone goes to `dead`, everything else is handled")
async def test_a_poison_frame(broker, opened, until):
    bus, handler = await opened(broker), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(20, until)
    await bus.publish(EVENTS_RAW, [Record(b"node-1", b"poison")])
    await load.more(20, until)
    await load.stop()
    await finished(bus, one, running, until)
    account(load, handler)
    assert one.dead.written == 1
    assert sum((await bus.end(DEAD)).values()) == 1


@pytest.mark.fault("slow sink", "lag grows and is told, the group keeps its place, nothing is lost or repeated")
async def test_a_slow_sink(broker, opened, until):
    bus, handler = await opened(broker, member_seconds=20.0), Keep(slow=0.5)
    load = Load(bus, pause=0.001)
    one = pump(bus, handler, max_records=20)
    running = asyncio.create_task(one.run())
    await load.more(150, until)
    await load.stop()
    await until(lambda: one.stats.lag > 20)
    handler.slow = 0.0
    await finished(bus, one, running, until)
    assert account(load, handler) == 0
    assert one.stats.disowned == 0


@pytest.mark.fault(
    "members of a group that come and go every half second", "nothing lost, order per node within each member"
)
async def test_a_rebalance_storm(broker, opened, until):
    bus = await opened(broker)
    load = Load(bus)
    keeper = Keep()
    steady = pump(bus, keeper)
    running = asyncio.create_task(steady.run())
    others: list[Keep] = []
    for _ in range(4):
        handler = Keep()
        others.append(handler)
        other = pump(bus, handler)
        task = asyncio.create_task(other.run())
        await load.more(40, until)
        other.stop()
        await asyncio.wait_for(task, 60)
    await load.stop()
    await finished(bus, steady, running, until)
    account(load, keeper, *others)
    assert keeper.released_often >= 2
    assert (await bus.lag("processors"))[EVENTS_RAW.name] == 0


READER = """
import asyncio, sys
from kafka_load import Keep, pump
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings

class Say(Keep):
    async def handle(self, batch):
        # Before its place can be committed: what is committed and not said would look lost when this is killed.
        for delivery in batch:
            print(delivery.record.value.split(b" ")[0].decode(), flush=True)
        await super().handle(batch)

async def main(bootstrap, prefix):
    bus = await KafkaBus.open(KafkaSettings(bootstrap=bootstrap, prefix=prefix, session_seconds=6.0))
    await pump(bus, Say()).run()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.fault(
    "reader killed (-9) under load",
    "another member takes over; nothing lost",
)
async def test_a_reader_that_is_killed(broker, opened, until):
    bus, handler = await opened(broker), Keep()
    load = Load(bus)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, broker.bootstrap, broker.prefix, stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )  # fmt: skip
    try:
        theirs = [int(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(20)]
        one = pump(bus, handler)
        running = asyncio.create_task(one.run())
        await load.more(20, until)
        process.kill()
        theirs += [int(line) for line in (await process.stdout.read()).split()]
        await process.wait()
        await load.more(100, until)
        await load.stop()
        await until(lambda: set(load.sent) <= set(numbers(handler.handled)) | set(theirs), 60)
        await finished(bus, one, running, until)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert set(load.sent) <= set(numbers(handler.handled)) | set(theirs)


@pytest.mark.fault(
    "one of three brokers killed (-9) under load",
    "the others take over before a publication fails (`publish_seconds` 20 there); nothing lost",
)
async def test_one_of_three_brokers_is_gone(kafka_clusters, opened, until):
    cluster = kafka_clusters(brokers=3)
    await asyncio.to_thread(cluster.start)
    cluster.prefix = "three."
    await create_topics(cluster.bootstrap, cluster.prefix, 3, copies=3, topics=FEW)
    bus, handler = await opened(cluster, away_seconds=20.0, publish_seconds=20.0, call_seconds=20.0), Keep()
    one, load = pump(bus, handler), Load(bus)
    running = asyncio.create_task(one.run())
    await load.more(50, until)
    await asyncio.to_thread(cluster.kill, 1)
    await load.more(100, until)
    await load.stop()
    await finished(bus, one, running, until)
    assert account(load, handler) <= load.tries - len(load.sent)
    assert not load.refused
