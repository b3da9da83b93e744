# SPDX-License-Identifier: Apache-2.0
"""Delivery: commit strictly after acceptance, retry what was put off, halve what is refused, dead-letter the culprit."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.backoff import Backoff
from bus.contract import Record
from bus.dead_letters import HEADERS
from bus.memory import MemoryBus
from schemas.alert import encode_alert
from schemas.errors import DiskFull, Permanent, SettingsError, Unavailable
from schemas.topics import ALERTS, DEAD, TELEMETRY
from sinks.delivery.consumer import SinkDelivery
from sinks.delivery.filters import Filter
from sinks.sink import ACCEPTED, BatchLimits, Item, RefusedItem, SendResult

QUICK = Backoff(first_seconds=0.001, max_seconds=0.005)
DRAIN = 0.05


class Scripted:
    """A sink that answers what it is told to: an honest one, in memory. `got`: what its far side has."""

    name = "scripted"
    topics = (ALERTS, TELEMETRY)
    live = False
    takes_json = False
    limits = BatchLimits(items=10, age_seconds=0.01)

    def __init__(self) -> None:
        self.got: list[int] = []
        self.calls: list[list[int]] = []
        self.script: list[object] = []
        self.poison: set[int] = set()
        self.opened = self.closed = self.idled = 0
        self.hold: asyncio.Event | None = None

    async def check(self) -> None:
        return None

    async def open(self) -> None:
        self.opened += 1
        if self.script and isinstance(self.script[0], tuple):
            raise self.script.pop(0)[0]

    async def send(self, items: Sequence[Item]) -> SendResult:
        numbers = [item.PID for item in items]
        self.calls.append(numbers)
        if self.hold is not None:
            await self.hold.wait()
        answer = self.script.pop(0) if self.script else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        if self.poison & set(numbers):
            raise Permanent(f"cannot take {sorted(self.poison & set(numbers))}")
        assert isinstance(answer, SendResult)
        held = {bad.index for bad in answer.refused} | set(answer.retry)
        self.got += [number for index, number in enumerate(numbers) if index not in held]
        return answer

    async def idle(self) -> None:
        self.idled += 1

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
async def sink():
    return Scripted()


@pytest.fixture
async def run(bus, sink):
    """Starts a delivery and stops it at the end of the test."""
    running = []

    def start(**options) -> SinkDelivery:
        delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN, **options)
        running.append((delivery, asyncio.create_task(delivery.run())))
        return delivery

    yield start
    for delivery, task in running:
        delivery.stop()
        await asyncio.wait_for(task, 60)


def dead(bus):
    return [(record, dict(record.headers)) for record in bus.records(DEAD)]


class Moody(Scripted):
    """Answers at random, but truthfully: what it did not take it does not have."""

    def __init__(self, mood: random.Random) -> None:
        super().__init__()
        self.mood = mood
        self.limits = BatchLimits(items=mood.randint(1, 12), age_seconds=0.0)

    async def send(self, items: Sequence[Item]) -> SendResult:
        mood = self.mood.random()
        if mood < 0.2:
            raise Unavailable("away")
        if mood < 0.4:
            raise Permanent("no")
        fates = [self.mood.choice(("take", "take", "take", "refuse", "retry")) for _ in items]
        self.got += [item.PID for item, fate in zip(items, fates, strict=True) if fate == "take"]
        return SendResult(
            refused=tuple(RefusedItem(index, "no") for index, fate in enumerate(fates) if fate == "refuse"),
            retry=tuple(index for index, fate in enumerate(fates) if fate == "retry"),
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers())
def test_whatever_the_far_side_answers_each_item_ends_in_one_place(make, count, seed):
    async def scenario() -> None:
        bus = MemoryBus()
        await bus.publish(ALERTS, [Record(b"k", encode_alert(make.alert(n))) for n in range(count)])
        sink = Moody(random.Random(seed))
        quick = Backoff(first_seconds=1e-6, max_seconds=1e-5)
        delivery = SinkDelivery(bus, sink, retry=quick)
        task = asyncio.create_task(delivery.run())
        async with asyncio.timeout(60):
            while delivery.stats.committed < count:  # noqa: ASYNC110 - counters have no event
                await asyncio.sleep(0)
        delivery.stop()
        await task
        letters = [int(dict(record.headers)["dead.offset"]) for record in bus.records(DEAD)]
        assert sorted(sink.got + letters) == list(range(count))
        assert (delivery.stats.accepted, delivery.stats.refused) == (len(sink.got), len(letters))

    asyncio.run(scenario())


async def test_everything_arrives_once_in_order(bus, sink, make, publish, run, until):
    await publish(*[make.alert(n) for n in range(35)])
    delivery = run()
    await until(lambda: delivery.stats.committed == 35)
    assert sink.got == list(range(35))
    assert all(len(call) <= 10 for call in sink.calls)
    assert delivery.stats.accepted == 35
    assert await bus.lag("sink.scripted") == {"alerts": 0, "telemetry": 0}


async def test_what_was_put_off_comes_again_and_nothing_else(sink, make, publish, run, until):
    sink.script = [SendResult(retry=(2, 3)), SendResult(retry=(1,), retry_after=0.001)]
    await publish(*[make.alert(n) for n in range(5)])
    delivery = run()
    await until(lambda: delivery.stats.committed == 5)
    assert sink.calls == [[0, 1, 2, 3, 4], [2, 3], [3]]
    assert sink.got == [0, 1, 4, 2, 3]
    assert (delivery.stats.accepted, delivery.stats.retries) == (5, 2)


async def test_a_flood_that_nobody_can_read_is_one_line_and_counted(bus, sink, make, publish, run, until, caplog):
    await bus.publish(ALERTS, [Record(b"k", b"{") for _ in range(200)])
    await publish(make.alert(1))
    delivery = run()
    await until(lambda: delivery.stats.committed == 201)
    assert (delivery.stats.undecodable, delivery.stats.dead, len(dead(bus))) == (200, 200, 200)
    assert sink.got == [1]
    lines = [record.getMessage() for record in caplog.records if "given up" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("sinks: 1 record given up, kept on `dead`; the first because: ")


async def test_what_is_refused_is_dead_lettered_with_its_bytes_and_reason(bus, sink, make, publish, run, until):
    sink.script = [SendResult(refused=(RefusedItem(1, "mapping says no"),))]
    await publish(*[make.alert(n) for n in range(3)])
    delivery = run()
    await until(lambda: delivery.stats.committed == 3)
    ((record, headers),) = dead(bus)
    assert record.value == bus.records(ALERTS)[1].value
    assert headers["dead.error"] == b"Refused: mapping says no"
    assert (headers["dead.topic"], headers["dead.offset"], headers["dead.group"]) == (b"alerts", b"1", b"sink.scripted")
    assert headers["dead.reason"] == b"refused"
    assert tuple(headers) == HEADERS
    assert (headers["dead.stage"], headers["dead.attempts"]) == (b"sinks", b"1")
    assert (delivery.stats.accepted, delivery.stats.refused, delivery.stats.dead) == (2, 1, 1)


async def test_a_permanent_error_is_halved_down_to_the_culprit(bus, sink, make, publish, run, until):
    sink.poison = {3, 6}
    await publish(*[make.alert(n) for n in range(9)])
    delivery = run()
    await until(lambda: delivery.stats.committed == 9)
    assert sink.got == [0, 1, 2, 4, 5, 7, 8]
    assert [headers["dead.offset"] for _, headers in dead(bus)] == [b"3", b"6"]
    assert [headers["dead.attempts"] for _, headers in dead(bus)] == [b"1", b"1"]


async def test_a_dead_letter_says_how_often_its_item_was_tried(bus, sink, make, publish, run, until):
    put_off = SendResult(retry=(0, 1), retry_after=0.001)
    sink.script = [put_off, put_off, SendResult(refused=(RefusedItem(1, "no"),))]
    await publish(make.alert(1), make.alert(2))
    delivery = run()
    await until(lambda: delivery.stats.committed == 2)
    ((_, headers),) = dead(bus)
    assert (headers["dead.offset"], headers["dead.attempts"]) == (b"1", b"3")


async def test_a_bug_in_a_sink_is_treated_as_a_refusal(bus, sink, make, publish, run, until, caplog):
    sink.script = [ValueError("oops"), ACCEPTED, ValueError("oops")]
    await publish(make.alert(1), make.alert(2))
    delivery = run()
    await until(lambda: delivery.stats.committed == 2)
    assert sink.got == [1]
    assert dead(bus)[0][1]["dead.error"] == b"ValueError: oops"
    assert "failed in a way it should not" in caplog.text


async def test_of_a_frame_only_the_refused_line_is_dead_lettered(bus, sink, make, publish, run, until):
    sink.script = [ACCEPTED, SendResult(refused=(RefusedItem(0, "no"),))]
    await publish(make.frame(25))
    delivery = run()
    await until(lambda: delivery.stats.committed == 1)
    assert [len(call) for call in sink.calls] == [10, 10, 5]
    ((record, headers),) = dead(bus)
    assert record.value is not None
    assert b'"EventID":"node-1:boot:10"' in record.value
    assert headers["dead.topic"] == b"telemetry"


async def test_temporary_errors_wait_and_repeat_the_same_batch(sink, make, publish, run, until, caplog):
    caplog.set_level(logging.INFO, "bus.attempts")
    sink.script = [Unavailable("server away"), DiskFull("disk full"), Unavailable("server away")]
    await publish(*[make.alert(n) for n in range(4)])
    delivery = run()
    await until(lambda: delivery.stats.committed == 4)
    assert sink.calls == [[0, 1, 2, 3]] * 4
    assert sink.got == [0, 1, 2, 3]
    assert (delivery.stats.retries, delivery.stats.failing, delivery.failure) == (3, 0, "")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["sink `scripted` waits, nothing is lost: server away", "sink `scripted` works again"]


async def test_a_hung_send_is_unavailable(sink, make, publish, run, until):
    sink.limits = BatchLimits(items=10, age_seconds=0.001, send_seconds=0.02)
    sink.hold = asyncio.Event()
    await publish(make.alert(1))
    delivery = run()
    await until(lambda: delivery.stats.retries >= 2)
    assert "expected an answer within 0.02 s, got none" in delivery.failure
    sink.hold.set()
    await until(lambda: delivery.stats.committed == 1)
    assert sink.got == [1]


async def test_cancelled_in_the_middle_the_batch_stays_uncommitted(bus, sink, make, publish, until):
    sink.hold = asyncio.Event()
    await publish(make.alert(1))
    task = asyncio.create_task(SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN).run())
    await until(lambda: sink.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await bus.lag("sink.scripted"))["alerts"] == 1
    assert (sink.got, sink.closed) == ([], 1)


async def test_stop_while_the_far_side_hangs_ends_in_time_and_leaves_the_batch(bus, sink, make, publish, until):
    sink.hold = asyncio.Event()
    await publish(make.alert(1))
    delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN)
    task = asyncio.create_task(delivery.run())
    await until(lambda: sink.calls)
    delivery.stop()
    # Well before `send_seconds`, which is when it would end by itself.
    await asyncio.wait_for(task, sink.limits.send_seconds / 2)
    assert (await bus.lag("sink.scripted"))["alerts"] == 1
    again = Scripted()
    second = SinkDelivery(bus, again, retry=QUICK, drain_seconds=DRAIN)
    task = asyncio.create_task(second.run())
    await until(lambda: again.got == [1])
    second.stop()
    await task


async def test_stop_sends_what_is_in_hand(bus, sink, make, publish, until):
    sink.limits = BatchLimits(items=100, age_seconds=3600)
    await publish(make.alert(1))
    delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN)
    task = asyncio.create_task(delivery.run())
    await until(lambda: delivery.stats.taken == 1)
    delivery.stop()
    await task
    assert (sink.got, delivery.stats.committed) == ([1], 1)


async def test_records_that_cannot_be_read_are_dead_lettered_and_the_rest_goes(bus, sink, make, publish, run, until):
    await bus.publish(ALERTS, [Record(b"k", b"{broken"), Record(b"k", None), Record(b"k", b'{"Timestamp": "x"}')])
    await bus.publish(TELEMETRY, [Record(b"k", b"\x00\x01")])
    await publish(make.alert(1))
    delivery = run()
    await until(lambda: delivery.stats.committed == 5)
    assert sink.got == [1]
    assert sorted(record.value for record, _ in dead(bus)) == [b"\x00\x01", b'{"Timestamp": "x"}', b"{broken"]
    assert {headers["dead.reason"] for _, headers in dead(bus)} == {b"decode"}
    assert {tuple(headers) for _, headers in dead(bus)} == {HEADERS}
    assert {headers["dead.attempts"] for _, headers in dead(bus)} == {b"1"}
    assert delivery.stats.undecodable == 3


async def test_filtered_records_are_committed_too(sink, make, publish, run, until):
    await publish(make.alert(1, Action="Audit"), make.alert(2, Action="Block"), make.frame(4))
    delivery = run(wanted=Filter(actions=("Block",), namespaces=("shop",), operations=("File",)))
    await until(lambda: delivery.stats.committed == 3)
    assert sorted(sink.got) == [2, 10, 10, 10, 10]
    assert delivery.stats.filtered == 1


async def test_a_bus_that_is_away_is_waited_for(bus, sink, make, publish, run, until):
    await publish(make.alert(1))
    bus.fail(Unavailable("no broker"), call="commit", times=2)
    delivery = run()
    await until(lambda: delivery.stats.committed == 1)
    bus.fail(Unavailable("no broker"), call="take", times=1)
    await publish(make.alert(2))
    await until(lambda: delivery.stats.committed == 2)
    assert sink.got == [1, 2]


async def test_dead_letters_wait_for_the_bus_before_the_commit(bus, sink, make, publish, run, until):
    sink.poison = {1}
    await publish(make.alert(1))
    bus.fail(Unavailable("no broker"), call="publish", times=2)
    delivery = run()
    await until(lambda: delivery.stats.committed == 1)
    assert len(dead(bus)) == 1


async def test_open_is_retried_when_temporary_and_final_when_not(bus, sink, run, until):
    sink.script = [(Unavailable("away"),), (Unavailable("away"),)]
    delivery = run()
    await until(lambda: delivery.stats.up)
    assert sink.opened == 3
    other = Scripted()
    other.script = [(SettingsError("wrong key"),)]
    with pytest.raises(SettingsError, match="wrong key"):
        await SinkDelivery(bus, other).run()
    assert other.closed == 1


async def test_an_idle_sink_is_told_so(sink, run, until):
    run()
    await until(lambda: sink.idled)


async def test_a_live_sink_sees_only_the_present_and_keeps_no_offsets(bus, sink, make, publish, run, until):
    sink.live = True
    await publish(make.alert(1))
    delivery = run()
    await until(lambda: delivery.stats.up)
    await asyncio.sleep(0)
    await publish(make.alert(2))
    await until(lambda: sink.got)
    assert sink.got == [2]
    assert await bus.groups() == {}


async def test_finish_sends_everything_there_is_and_then_ends(bus, sink, make, publish):
    # A batch that would wait for an hour to be filled.
    sink.limits = BatchLimits(items=100, age_seconds=3600)
    await publish(*[make.alert(n) for n in range(250)])
    delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN)
    await delivery.finish()
    await asyncio.wait_for(delivery.run(), 60)
    assert sink.got == list(range(250))
    assert await bus.lag("sink.scripted") == {"alerts": 0, "telemetry": 0}
    assert sink.closed == 1


async def test_finish_leaves_a_far_side_that_is_away(bus, sink, make, publish, caplog):
    sink.script = [Unavailable("away")] * 10_000
    await publish(make.alert(1))
    delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN)
    await delivery.finish()
    await asyncio.wait_for(delivery.run(), 60)
    assert (await bus.lag("sink.scripted"))["alerts"] == 1
    assert (sink.got, sink.closed, delivery.failure) == ([], 1, "away")
    assert "sink `scripted` stops with work in hand, which comes again after the next start: away" in caplog.text


async def test_finish_gives_a_slow_far_side_its_time(bus, sink, make, publish, until):
    sink.hold = asyncio.Event()
    await publish(make.alert(1))
    delivery = SinkDelivery(bus, sink, retry=QUICK, drain_seconds=DRAIN)
    task = asyncio.create_task(delivery.run())
    await until(lambda: sink.calls)
    await delivery.finish()
    await asyncio.sleep(4 * DRAIN)
    assert not task.done()
    sink.hold.set()
    await asyncio.wait_for(task, 60)
    assert (sink.got, len(sink.calls)) == ([1], 1)
    assert (await bus.lag("sink.scripted"))["alerts"] == 0
