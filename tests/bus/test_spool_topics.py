# SPDX-License-Identifier: Apache-2.0
"""A topic that the bus does not take waits by itself: the others of the node go on, and it is told by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import errors

from bus import topic_troubles
from bus.backoff import Backoff
from bus.contract import Record
from bus.kafka.failures import translated
from bus.memory import MemoryBus
from bus.spool import SpooledBus
from bus.spool_settings import SpoolSettings
from schemas.errors import NotGranted, Refused, Unavailable, Unserved
from schemas.topics import ALERTS, DEAD, ENFORCEMENT_STATUS, EVENTS_RAW, Topic

NAMED = Unserved("expected topic `events.raw` on the brokers, it is not there", 0.01)


class Picky(MemoryBus):
    """`broken`: topic name -> the error of each publication to it. `tries`: topic names in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, Exception] = {}
        self.tries: list[str] = []

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        self.tries.append(topic.name)
        if (error := self.broken.get(topic.name)) is not None:
            raise error
        await super().publish(topic, records)


@pytest.fixture
async def inner() -> Picky:
    return Picky()


@pytest.fixture
async def bus(inner: Picky, tmp_path: Path) -> AsyncIterator[SpooledBus]:
    made = await SpooledBus.open(inner, settings(tmp_path))
    yield made
    await made.close()


def settings(directory: Path, **changes: Any) -> SpoolSettings:
    usual: dict[str, Any] = {
        "directory": str(directory / "spool"), "retry": Backoff(first_seconds=0.01, max_seconds=0.02),
    }  # fmt: skip
    return SpoolSettings(**usual | changes)


def numbers(inner: MemoryBus, topic: Topic) -> list[int]:
    return [int(record.value or b"") for record in inner.records(topic)]


async def publish(bus: SpooledBus, topic: Topic, which: range) -> None:
    for number in which:
        await bus.publish(topic, [Record(b"k", b"%d" % number)])


@pytest.mark.parametrize("error", [NAMED, NotGranted("expected to have the grant Write", 0.01)])
async def test_a_topic_that_is_not_served_holds_up_no_other(inner, bus, until, caplog, error):
    inner.broken = {"events.raw": error}
    for number in range(10):
        await publish(bus, EVENTS_RAW, range(number, number + 1))
        await publish(bus, ALERTS, range(number, number + 1))
        await publish(bus, ENFORCEMENT_STATUS, range(number, number + 1))
    assert numbers(inner, ALERTS) == numbers(inner, ENFORCEMENT_STATUS) == list(range(10)), "straight through"
    assert not bus.stats.away
    assert (bus.stats.unserved, bus.stats.waiting) == ({"events.raw": 1}, 10)
    assert list(bus.unserved) == ["events.raw"]
    assert str(error) in bus.unserved["events.raw"]
    await until(lambda: bus.stats.unserved_tries["events.raw"] > 5)
    told = [one.getMessage() for one in caplog.records if "events.raw" in one.getMessage()]
    assert len(told) == 1, told
    assert str(error) in told[0]
    inner.broken = {}
    await until(lambda: bus.stats.waiting == 0)
    await publish(bus, EVENTS_RAW, range(10, 12))
    assert numbers(inner, EVENTS_RAW) == list(range(12)), "in order, each once"
    assert (bus.stats.unserved, bus.unserved) == ({"events.raw": 0}, {})
    assert len([one for one in caplog.records if "events.raw" in one.getMessage()]) == 2


async def test_what_was_kept_of_other_topics_follows_an_outage(inner, bus, until):
    """The oldest line is the one that the bus, when it is back, does not take any more."""
    away = Unavailable("no broker", 0.01)
    inner.broken = dict.fromkeys(("events.raw", "alerts", "enforcement.status"), away)
    for topic in (EVENTS_RAW, ALERTS, ENFORCEMENT_STATUS):
        await publish(bus, topic, range(10))
    assert bus.stats.away
    inner.broken = {"events.raw": NAMED}
    await until(lambda: numbers(inner, ALERTS) == numbers(inner, ENFORCEMENT_STATUS) == list(range(10)))
    assert not bus.stats.away
    await until(lambda: bus.stats.waiting == 10)


async def test_while_the_whole_bus_is_away_there_is_one_look(inner, bus, until):
    away = Unavailable("no broker", 0.01)
    names = ("events.raw", "alerts", "enforcement.status")
    inner.broken = dict.fromkeys(names, away)
    for topic in (EVENTS_RAW, ALERTS, ENFORCEMENT_STATUS):
        await publish(bus, topic, range(3))
    await until(lambda: len(inner.tries) > 6)
    assert set(inner.tries) == {"events.raw"}, "one line is looked with, nobody else asks"
    assert bus.stats.away
    assert bus.unserved == {}


@pytest.mark.parametrize("error", [Unavailable("no answer", 0.01), KeyError("a bug")])
async def test_an_error_that_names_no_topic_is_found_out(inner, bus, until, monkeypatch, error):
    """Silence about one topic looks like a bus that is away, until another topic gets through."""
    monkeypatch.setattr(topic_troubles, "DOUBT", 0.05)
    inner.broken = {"events.raw": error if isinstance(error, Unavailable) else Unavailable("no answer", 0.01)}
    await publish(bus, EVENTS_RAW, range(3))
    inner.broken = {"events.raw": error}
    await publish(bus, ALERTS, range(10))
    await until(lambda: numbers(inner, ALERTS) == list(range(10)) and "events.raw" in bus.unserved)
    assert not bus.stats.away
    before = len(inner.tries)
    await publish(bus, ALERTS, range(10, 20))
    assert numbers(inner, ALERTS) == list(range(20))
    assert inner.tries[before:].count("alerts") == 10, "straight through from then on"
    inner.broken = {}
    await until(lambda: bus.stats.waiting == 0)
    assert numbers(inner, EVENTS_RAW) == [0, 1, 2]


async def test_a_topic_that_does_not_answer_in_time(inner, tmp_path, until, monkeypatch):
    monkeypatch.setattr(topic_troubles, "DOUBT", 0.05)
    bus = await SpooledBus.open(inner, settings(tmp_path, publish_timeout=0.05))
    hangs, take = True, inner.publish

    async def slow(topic, records):
        if topic is EVENTS_RAW and hangs:
            await asyncio.sleep(60)
        await take(topic, records)

    inner.publish = slow
    await publish(bus, EVENTS_RAW, range(3))
    await publish(bus, ALERTS, range(3))
    await until(lambda: "events.raw" in bus.unserved and numbers(inner, ALERTS) == [0, 1, 2])
    hangs = False
    await until(lambda: bus.stats.waiting == 0)
    assert numbers(inner, EVENTS_RAW) == [0, 1, 2]
    await bus.close()


async def test_dead_letters_that_are_not_taken_hold_up_their_topic_alone(inner, bus, until):
    take = inner.publish

    async def refusing(topic, records):
        if topic is EVENTS_RAW and any(one.value == b"1" for one in records):
            raise Refused("expected anything but 1")
        await take(topic, records)

    inner.publish = refusing
    inner.broken = dict.fromkeys(("events.raw", "alerts"), Unavailable("no broker", 0.01))
    await publish(bus, EVENTS_RAW, range(3))
    await publish(bus, ALERTS, range(3))
    inner.broken = {"dead": Unserved("expected topic `dead` on the brokers, it is not there", 0.01)}
    await until(lambda: numbers(inner, ALERTS) == [0, 1, 2] and "events.raw" in bus.unserved)
    assert "`dead`" in bus.unserved["events.raw"]
    await until(lambda: inner.tries.count("dead") > 3)
    assert numbers(inner, EVENTS_RAW) == [0], "once, and nothing overtakes"
    inner.broken = {}
    await until(lambda: bus.stats.waiting == 0)
    assert numbers(inner, EVENTS_RAW) == [0, 2]
    assert [one.value for one in inner.records(DEAD)] == [b"1"]


async def test_a_file_that_cannot_be_read_holds_up_its_topic_alone(inner, bus, until):
    inner.broken = dict.fromkeys(("events.raw", "alerts"), Unavailable("no broker", 0.01))
    await publish(bus, EVENTS_RAW, range(3))
    await publish(bus, ALERTS, range(3))
    log = bus._lines.get(EVENTS_RAW).log
    read, log.read = log.read, _unreadable
    inner.broken = {}
    await until(lambda: numbers(inner, ALERTS) == [0, 1, 2] and "events.raw" in bus.unserved)
    log.read = read
    await until(lambda: bus.stats.waiting == 0)
    assert numbers(inner, EVENTS_RAW) == [0, 1, 2]


def _unreadable(*_: object) -> None:
    raise Unavailable("expected the segment to be readable, SQLite said: disk I/O error", 0.01)


async def test_a_loss_is_not_told_to_alerts_that_wait(inner, tmp_path, until, caplog):
    """Each batch of a line that lost something would have to wait for the answer."""
    bus = await SpooledBus.open(
        inner,
        settings(tmp_path, max_age=0.5, drain_bytes=1),
        notice=lambda shed: Record(b"node", b"%d" % shed.records),
    )
    bus._lines._segment_bytes = 4096
    inner.broken = {"events.raw": Unavailable("no broker", 0.01)}
    for number in range(5):
        await bus.publish(EVENTS_RAW, [Record(b"k", b"%d " % number + b"x" * 8000)])
    await until(lambda: bus.stats.shed.get("events.raw", 0) >= 4)
    bus._lines._max_age = 3600.0
    inner.broken["alerts"] = Unserved("expected topic `alerts` on the brokers, it is not there", 60.0)
    await publish(bus, EVENTS_RAW, range(10))
    del inner.broken["events.raw"]
    await until(lambda: len(inner.records(EVENTS_RAW)) >= 10)
    await publish(bus, EVENTS_RAW, range(10, 20))
    await until(lambda: numbers_of(inner)[-1] == 19)
    found = numbers_of(inner)
    assert found[found.index(0) :] == list(range(20)), "in order, nothing twice"
    assert inner.tries.count("alerts") == 1
    assert len([one for one in caplog.records if "were shed" in one.getMessage()]) == 1
    await bus.close()


def numbers_of(inner: MemoryBus) -> list[int]:
    return [int((record.value or b"").split()[0]) for record in inner.records(EVENTS_RAW)]


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (errors.UnknownTopicOrPartitionError(), True),
        (errors.TopicAuthorizationFailedError(), True),
        (errors.LeaderNotAvailableError(), True),
        (errors.NotEnoughReplicasError(), True),
        (errors.KafkaConnectionError(), False),
        (errors.GroupCoordinatorNotAvailableError(), False),
        (errors.SaslAuthenticationFailed(), False),
        (TimeoutError(), False),
    ],
)
def test_what_brokers_say_of_one_topic_is_told_from_what_they_say_of_all(error, alone):
    found = translated(error, "write to", "hauberk.alerts.v1")
    assert isinstance(found, Unavailable)
    assert isinstance(found, Unserved) == alone
