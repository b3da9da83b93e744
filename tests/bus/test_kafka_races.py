# SPDX-License-Identifier: Apache-2.0
"""What may happen on the Kafka bus between a question to the brokers and its answer. The moments are chosen here, which no broker
lets one do; everything else of this bus is tested on real ones."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition, errors

from bus.contract import Delivery, Record
from bus.kafka import tables
from bus.kafka.connection import BrokerLink
from bus.kafka.group import GroupSubscription
from bus.kafka.offsets import BEGIN
from bus.kafka.settings import KafkaSettings
from bus.kafka.stats import KafkaStats
from bus.kafka.tables import SharedTables
from schemas.errors import Unavailable
from schemas.topics import EVENTS_RAW, POLICIES

RAW = (EVENTS_RAW.name, 0)
SETTINGS = KafkaSettings(bootstrap="nowhere:9092")
CHANNEL = EVENTS_RAW.named(SETTINGS.prefix)


class Link:
    """The half of `BrokerLink` that asks nobody."""

    def __init__(self) -> None:
        self.settings = SETTINGS
        self.stats = KafkaStats()
        self.closed = False
        self.away = None
        self.opened = 1
        self.readers = set()

    async def partitions(self, channel, doing="read"):
        return [0]


class Reader:
    """A broadcast reader whose `join` waits for `opening`, and which hands out `found` once."""

    opening: asyncio.Event
    found: list[Delivery]
    fails: list[Unavailable]

    def __init__(self, link, offsets, topics, start, wanted, kept) -> None:
        self.remade = 0
        self.position = {}
        self._left = [] if kept else list(self.found)

    async def join(self) -> None:
        await self.opening.wait()
        self.position = {(POLICIES.name, 0): 0}

    async def take(self, most, seconds):
        if self.fails:
            self.remade = 1
            raise self.fails.pop()
        batch, self._left = self._left, []
        if batch:
            self.position = {(POLICIES.name, 0): batch[-1].offset + 1}
        else:
            await asyncio.sleep(0.01)
        return batch

    async def leave(self) -> None:
        return


@pytest.fixture
async def shared(monkeypatch):
    Reader.opening, Reader.fails = asyncio.Event(), []
    Reader.found = [Delivery(POLICIES, 0, number, Record(b"p%d" % number, b"1")) for number in range(3)]
    monkeypatch.setattr(tables, "BroadcastSubscription", Reader)
    shared = SharedTables(Link(), None)
    yield shared
    await shared.close()


async def keys(view, count, until) -> set[bytes]:
    found: set[bytes] = set()

    async def enough() -> bool:
        found.update(one.record.key for one in await view.take(10, 0.05))
        return len(found) >= count

    await until(enough)
    return found


async def test_who_follows_a_table_that_is_being_opened_does_not_take_it_for_an_empty_one(shared, until):
    first = asyncio.ensure_future(shared.view([POLICIES], None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.ensure_future(shared.view([POLICIES], None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not second.done(), "nobody knows yet where the table begins"
    Reader.opening.set()
    for view in (await first, await second):
        assert await keys(view, 3, until) == {b"p0", b"p1", b"p2"}
        assert view.position == {(POLICIES.name, 0): 3}
    assert shared._link.stats.reads == 1


async def test_who_comes_after_a_topic_was_made_anew_waits_until_it_is_read_again(shared, until):
    Reader.opening.set()
    old = await shared.view([POLICIES], None)
    await keys(old, 3, until)
    Reader.opening.clear()
    Reader.fails = [Unavailable("made anew", 0.01)]
    with pytest.raises(Unavailable):
        await old.take(10, 30.0)
    # The other follower has not looked yet, so the table is still somebody's.
    new = asyncio.ensure_future(shared.view([POLICIES], None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not new.done()
    Reader.opening.set()
    assert await keys(await new, 3, until) == {b"p0", b"p1", b"p2"}


async def test_who_wants_no_key_waits_for_nobody(shared):
    view = await shared.view([POLICIES], ())
    assert (view.position, await view.take(1, 0.0)) == ({}, [])


class Offsets:
    """A group's offsets; `before_answer` is awaited while a commit is on its way."""

    def __init__(self) -> None:
        self.known = {}
        self.refuses: list[Exception] = []
        self.before_answer = None

    async def committed(self, group, doing="read"):
        return dict(self.known)

    async def at(self, places, when):
        return dict.fromkeys(places, 0 if when == BEGIN else 100)

    async def commit(self, group, offsets, generation=-1, member=""):
        if self.before_answer is not None:
            act, self.before_answer = self.before_answer, None
            await act()
        if self.refuses:
            raise self.refuses.pop()
        self.known |= offsets


class Consumer:
    """What a subscription touches of aiokafka's."""

    def __init__(self) -> None:
        self.sought = {}
        self._fetcher = SimpleNamespace(_records={})
        self._subscription = SimpleNamespace(_fetch_count=0, _last_fetch_ended=0.0)
        self._coordinator = SimpleNamespace(generation=1, member_id="me")
        self.left: list[int] = []

    def seek(self, place, offset) -> None:
        self.sought[place] = offset
        self.left = list(range(offset, 20))

    async def getmany(self, timeout_ms, max_records):
        part, self.left = self.left[:max_records], self.left[max_records:]
        if not part:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        return {
            TopicPartition(CHANNEL, 0): [
                SimpleNamespace(partition=0, offset=offset, key=b"n", value=b"%d" % offset, headers=(), timestamp=1)
                for offset in part
            ]
        }


def member() -> tuple[GroupSubscription, Offsets, Consumer]:
    offsets, consumer = Offsets(), Consumer()
    subscription = GroupSubscription(Link(), offsets, [EVENTS_RAW], "g", "earliest")
    subscription._consumer, subscription._opened = consumer, 1
    return subscription, offsets, consumer


async def give(subscription, consumer) -> None:
    await subscription.assigned(consumer, [TopicPartition(CHANNEL, 0)])


async def test_what_the_library_fetched_before_a_partition_was_given_leaves_nothing_out():
    subscription, _, consumer = member()
    # The library begins where the group has committed, before this side knows that it has the partition.
    consumer.left = list(range(20))
    assert await subscription.take(10, 0.0) == []
    subscription._ask(10)
    await subscription._fetch
    await subscription._collect()
    subscription._ask(10)
    await subscription._fetch
    await give(subscription, consumer)
    got = []
    while len(got) < 20:
        batch = await subscription.take(10, 1.0)
        assert batch, f"after {[one.offset for one in got]} nothing comes any more"
        got += batch
    assert [one.offset for one in got] == list(range(20))


async def test_a_commit_that_is_refused_late_takes_no_newer_grant_away():
    subscription, offsets, consumer = member()
    await give(subscription, consumer)
    batch = await subscription.take(5, 1.0)

    async def lost_and_given_anew() -> None:
        subscription._lost_all()
        consumer._coordinator.generation = 2
        await give(subscription, consumer)

    offsets.before_answer = lost_and_given_anew
    offsets.refuses = [errors.IllegalGenerationError()]
    await subscription.commit([batch[-1]])
    assert subscription.disowned == 1
    assert subscription.owned == {RAW: 2}
    assert [one.offset for one in await subscription.take(5, 1.0)] == [0, 1, 2, 3, 4]


async def test_a_commit_that_is_refused_takes_what_the_member_had():
    subscription, offsets, consumer = member()
    await give(subscription, consumer)
    batch = await subscription.take(5, 1.0)
    offsets.refuses = [errors.IllegalGenerationError()]
    await subscription.commit([batch[-1]])
    assert (subscription.disowned, subscription.owned) == (1, {})


async def test_a_member_says_when_it_does_not_know_yet_what_it_gets():
    subscription, _, consumer = member()
    assert subscription.joining
    await subscription.assigned(consumer, [])
    assert not subscription.joining, "it stands by, and knows it"
    await subscription.revoked(consumer)
    assert subscription.joining
    await give(subscription, consumer)
    assert not subscription.joining
    consumer._coordinator.generation = -1
    await subscription.revoked(consumer)
    assert (subscription.joining, subscription.owned) == (True, {})


async def test_the_look_for_brokers_outlives_a_bug_below_it(until, caplog):
    link = BrokerLink(KafkaSettings(bootstrap="127.0.0.1:1"))

    async def refresh():
        raise ValueError("a field that nobody expected")

    async def end():
        return

    link._client = SimpleNamespace(refresh=refresh, end=end, changed=False)
    link.watch()
    try:
        await until(lambda: link.away is not None)
        assert "a field that nobody expected" in str(link.away)
        assert not link._watch.done()
        assert "that is a bug" in caplog.text
    finally:
        await link.close()
