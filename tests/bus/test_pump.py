# SPDX-License-Identifier: Apache-2.0
"""The pump: at least once, in order, back-off, bisection, dead letters, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.backoff import Backoff
from bus.contract import Record
from bus.memory import MemoryBus
from bus.pump import Pump, PumpSettings
from schemas.errors import DecodeError, Refused, Temporary, Unavailable
from schemas.topics import ALERTS, DEAD, EVENTS_RAW

RETRY = Backoff(first_seconds=0.01, max_seconds=0.02)
QUICK = PumpSettings(max_wait=0.05, retry=RETRY, drain_seconds=0.5)


class Doing:
    """A handler that does `work` with each batch and is done with it at once. `settled`, `released`: what it was asked."""

    def __init__(self, work) -> None:
        self.work = work
        self.done = []
        self.ticks = []
        self.settled = 0
        self.released_partitions = []

    async def handle(self, batch):
        await self.work(batch)
        self.done += batch

    async def tick(self, idle):
        self.ticks.append(idle)

    def wait(self):
        return 60.0

    def committable(self):
        done, self.done = self.done, []
        return done

    async def settle(self):
        self.settled += 1

    def released(self, partitions):
        self.released_partitions += partitions


@contextlib.asynccontextmanager
async def running(pump: Pump):
    task = asyncio.create_task(pump.run())
    try:
        yield
    finally:
        pump.stop()
        await asyncio.wait_for(task, 60)


async def test_it_hands_over_everything_in_order_and_commits(world, records, until):
    bus = await world.open()
    await bus.publish(EVENTS_RAW, records(1000))
    seen = []

    async def handle(batch):
        seen.extend(int(delivery.record.value) for delivery in batch)

    pump = Pump(bus, [EVENTS_RAW], "g", Doing(handle), stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: len(seen) == 1000)
    assert seen == list(range(1000))
    assert await bus.lag("g") == {"events.raw": 0}
    assert (pump.stats.records, pump.stats.dead, pump.stats.retries, pump.stats.lag) == (1000, 0, 0, 0)
    assert pump.stats.bytes == sum(len(b"k%d" % index) for index in range(1000))


async def test_temporary_means_the_same_batch_again(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(5))
    tries = []

    async def handle(batch):
        tries.append([delivery.offset for delivery in batch])
        if len(tries) < 4:
            raise Unavailable("not now")

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.records == 5)
    assert tries == [tries[0]] * 4
    assert pump.stats.retries == 3


async def test_retry_after_is_honoured(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(1))
    times = []

    async def handle(batch):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Temporary("busy", retry_after=0.15)

    async with running(Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK, random_part=lambda: 0.0)):
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.14


async def test_only_the_bad_record_dies(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, [*records(7), Record(b"k", b"7", (("h", b"1"),)), *records(8, first=8)])
    seen = []

    async def handle(batch):
        if any(delivery.record.headers for delivery in batch):
            raise DecodeError("expected JSON, got 7")
        seen.extend(int(delivery.record.value) for delivery in batch)

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="sinks", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.records == 16)
    assert seen == [index for index in range(16) if index != 7]
    assert pump.stats.dead == 1
    async with bus.subscribe([DEAD], None, "earliest") as subscription:
        (dead,) = await subscription.take(10, 60)
    headers = dict(dead.record.headers)
    assert (dead.record.key, dead.record.value, headers.pop("h")) == (b"k", b"7", b"1")
    assert int(headers.pop("dead.time")) > 0
    assert int(headers.pop("dead.partition")) >= 0
    assert headers == {
        "dead.topic": b"alerts",
        "dead.offset": b"7",
        "dead.group": b"g",
        "dead.stage": b"sinks",
        "dead.reason": b"decode",
        "dead.error": b"DecodeError: expected JSON, got 7",
        "dead.attempts": b"1",
    }
    assert await bus.lag("g") == {"alerts": 0}


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, 29)), unknown=st.sets(st.integers(0, 29)))
def test_whatever_is_bad_the_rest_is_handled_in_order_and_the_bad_are_dead(bad, unknown):
    async def scenario() -> None:
        bus = MemoryBus()
        await bus.publish(ALERTS, [Record(b"k", b"%d" % index) for index in range(30)])
        seen = []

        async def handle(batch):
            numbers = [int(delivery.record.value) for delivery in batch]
            if bad.intersection(numbers):
                raise Refused("never")
            if unknown.intersection(numbers):
                raise KeyError("a bug")
            seen.extend(numbers)

        quick = PumpSettings(max_wait=0.01, retry=Backoff(first_seconds=0.0001, max_seconds=0.0001), unknown_attempts=2)
        pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=quick)
        async with running(pump):
            while pump.stats.records < 30:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert seen == [index for index in range(30) if index not in bad | unknown]
        assert sorted(int(record.value) for record in bus.records(DEAD)) == sorted(bad | unknown)

    asyncio.run(scenario())


async def test_stop_finishes_the_batch_in_hand(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def handle(batch):
        entered.set()
        await leave.wait()

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)
    task = asyncio.create_task(pump.run())
    await entered.wait()
    pump.stop()
    leave.set()
    await asyncio.wait_for(task, 60)
    assert await bus.lag("g") == {"alerts": 0}


async def test_stop_during_back_off_leaves_the_batch_uncommitted(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))

    async def handle(batch):
        raise Unavailable("away", retry_after=600)

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.backing_off)
    assert await bus.lag("g") == {"alerts": 3}


async def test_a_commit_that_fails_for_now_is_tried_again(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))

    async def handle(batch):
        bus.fail(Unavailable("no broker"), call="commit", times=2)

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.commits == 1)
    assert await bus.lag("g") == {"alerts": 0}
    assert pump.stats.last_error_reason == "unavailable"


async def test_a_take_that_fails_for_now_is_tried_again(records, until):
    bus = MemoryBus()
    bus.fail(Unavailable("no broker"), call="take", times=3)
    await bus.publish(ALERTS, records(3))
    seen = []

    async def handle(batch):
        seen.extend(batch)

    async with running(Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)):
        await until(lambda: len(seen) == 3)


async def test_cancelling_the_pump_repeats_after_the_next_start(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    entered = asyncio.Event()

    async def hang(batch):
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Pump(bus, [ALERTS], "g", Doing(hang), stage="test", settings=QUICK).run())
    await asyncio.wait_for(entered.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    seen = []

    async def handle(batch):
        seen.extend(batch)

    async with running(Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK)):
        await until(lambda: len(seen) == 3)


class Keeping(Doing):
    """Keeps what it was given until it is asked to settle."""

    def __init__(self, work) -> None:
        super().__init__(work)
        self.kept = []

    async def handle(self, batch):
        await self.work(batch)
        self.kept += batch

    async def settle(self):
        await super().settle()
        self.done, self.kept = self.kept, []


async def test_what_a_handler_keeps_is_not_committed_before_it_is_done(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(5))
    seen = []

    async def handle(batch):
        seen.extend(batch)

    handler = Keeping(handle)
    pump = Pump(bus, [ALERTS], "g", handler, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: len(seen) == 5)
        handler.done, handler.kept = handler.kept[:2], handler.kept[2:]
        await until(lambda: pump.stats.commits == 1)
        assert await bus.lag("g") == {"alerts": 3}
    assert handler.settled == 1
    assert await bus.lag("g") == {"alerts": 0}
    assert pump.stats.committed == 5


async def test_finish_reads_to_the_mark_and_no_further(world, records, until):
    bus = await world.open()
    await bus.publish(ALERTS, records(50))
    seen = []

    async def handle(batch):
        seen.extend(batch)
        # A publisher that never ends must not keep it from ending.
        await bus.publish(ALERTS, records(len(batch)))

    # On a busy machine a broker takes seconds to let one into a group.
    patient = msgspec.structs.replace(QUICK, drain_seconds=30.0)
    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=patient)
    await pump.finish()
    await asyncio.wait_for(pump.run(), 60)
    assert 50 <= len(seen) < 550
    assert [delivery.offset for delivery in seen] == list(range(len(seen)))
    assert (await bus.lag("g"))["alerts"] == len(seen)


async def test_finish_does_not_wait_for_what_another_member_reads(world, records, until):
    bus = await world.open()
    entered = asyncio.Event()

    async def slow(batch):
        entered.set()

    first, second = (Pump(bus, [ALERTS], "g", Keeping(slow), stage="test", settings=QUICK) for _ in range(2))
    async with running(first):
        await bus.publish(ALERTS, records(3))
        await asyncio.wait_for(entered.wait(), 60)
        await second.finish()
        await asyncio.wait_for(second.run(), 60)
        assert second.stats.records == 0


class Late:
    """A place in a group that is changing: nothing is this reader's yet for so many looks."""

    def __init__(self, inner, looks) -> None:
        self._inner = inner
        self._looks = looks

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def joining(self):
        return self._looks > 0

    @property
    def position(self):
        return {} if self.joining else self._inner.position

    async def take(self, most, seconds):
        if self._looks > 1:
            self._looks -= 1
            await asyncio.sleep(0.01)
            return []
        batch = await self._inner.take(most, seconds)
        self._looks = 0
        return batch


@pytest.mark.parametrize(("looks", "handled"), [(3, 5), (1 << 30, 0)])
async def test_a_finish_waits_for_a_group_that_is_changing_but_not_for_ever(records, looks, handled):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(5))
    subscribe = bus.subscribe

    @contextlib.asynccontextmanager
    async def late(*given):
        async with subscribe(*given) as subscription:
            yield Late(subscription, looks)

    async def nothing(batch):
        return

    bus.subscribe = late
    settings = PumpSettings(max_wait=0.05, retry=RETRY, drain_seconds=0.5)
    pump = Pump(bus, [ALERTS], "g", Doing(nothing), stage="test", settings=settings)
    await pump.finish()
    await asyncio.wait_for(pump.run(), 60)
    assert pump.stats.records == handled


async def test_a_finish_waits_for_who_gets_on_and_leaves_who_is_stuck(records):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(12))
    calls = 0

    async def flaky(batch):
        nonlocal calls
        calls += 1
        if calls % 2:
            raise Unavailable("busy", retry_after=0.2)

    settings = PumpSettings(max_records=1, max_wait=0.05, retry=RETRY, drain_seconds=0.5)
    pump = Pump(bus, [ALERTS], "g", Doing(flaky), stage="test", settings=settings)
    await pump.finish()
    # 12 times 0.2 s: several times longer in all than a stop waits without progress.
    await asyncio.wait_for(pump.run(), 60)
    assert await bus.lag("g") == {"alerts": 0}

    async def never(batch):
        raise Unavailable("away")

    await bus.publish(ALERTS, records(1))
    stuck = Pump(bus, [ALERTS], "g", Doing(never), stage="test", settings=settings)
    await stuck.finish()
    await asyncio.wait_for(stuck.run(), 60)
    assert stuck.stats.retries > 1
    assert await bus.lag("g") == {"alerts": 1}


async def test_what_was_done_before_the_far_side_failed_is_committed_at_the_end(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))

    async def handle(batch):
        if batch[0].offset == 2:
            raise Unavailable("away", retry_after=600)

    settings = PumpSettings(max_records=1, max_wait=0.05, commit_seconds=3600, drain_seconds=0.1)
    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=settings)
    async with running(pump):
        await until(lambda: pump.stats.backing_off)
    assert await bus.lag("g") == {"alerts": 1}


async def test_a_handler_looks_at_what_waits_after_a_batch_when_nothing_comes_and_when_woken(records, until):
    bus = MemoryBus()
    handler = Doing(_nothing)
    pump = Pump(bus, [ALERTS], "g", handler, stage="test", settings=PumpSettings(max_wait=3600))
    async with running(pump):
        await until(lambda: pump.running)
        pump.wake()
        await until(lambda: handler.ticks == [True])
        await bus.publish(ALERTS, records(1))
        await until(lambda: False in handler.ticks)


async def test_a_bug_that_no_record_is_to_blame_for_ends_the_stage_and_buries_nothing(records):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(5))

    class Broken(Doing):
        async def tick(self, idle):
            raise ZeroDivisionError("a bug")

    pump = Pump(bus, [ALERTS], "g", Broken(_nothing), stage="test", settings=QUICK)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(pump.run(), 60)
    assert await bus.lag("g") == {"alerts": 5}
    assert not bus.records(DEAD)


async def test_what_another_member_is_to_have_is_settled_committed_and_released(shared, until):
    bus = await shared.open()
    first, second = Keeping(_nothing), Keeping(_nothing)
    records = [Record(b"k%d" % number, b"") for number in range(30)]
    pumps = [Pump(bus, [ALERTS], "g", handler, stage="test", settings=QUICK) for handler in (first, second)]
    async with running(pumps[0]):
        await bus.publish(ALERTS, records)
        await until(lambda: len(first.kept) == 30)
        async with running(pumps[1]):
            await until(lambda: first.released_partitions)
            assert (first.settled, sum((await bus.lag("g")).values())) == (1, 0)
            await bus.publish(ALERTS, records)
            await until(lambda: len(first.kept) + len(second.kept) == 30)
            assert second.kept
            theirs = {(one.topic.name, one.partition) for one in second.kept}
            assert theirs <= set(first.released_partitions)
            assert not theirs & {(one.topic.name, one.partition) for one in first.kept}
    assert (await bus.lag("g")) == {"alerts": 0}


async def test_what_was_lost_without_notice_is_forgotten_before_it_comes_again(shared, until):
    bus = await shared.open()
    seen = []

    async def handle(batch):
        seen.extend(batch)

    handler = Keeping(handle)
    pump = Pump(bus, [ALERTS], "g", handler, stage="test", settings=QUICK)
    await bus.publish(ALERTS, [Record(b"k", b"")])
    async with running(pump):
        await until(lambda: len(seen) == 1)
        assert not handler.released_partitions
        # A member that hung: the bus gave its partitions away, and gives them anew when it asks again.
        subscription = pump._subscription
        subscription._membership.leave(subscription._member, 0.0)
        await until(lambda: len(seen) == 2)
        assert handler.released_partitions
    assert pump.stats.disowned == 0


async def test_a_stage_in_back_off_keeps_its_place(world, until):
    bus = await world.open()
    asked = []

    async def away(batch):
        subscription = pump._subscription
        if not asked:
            take = subscription.take
            subscription.take = lambda most, wait: (asked.append(most), take(most, wait))[1]
        raise Unavailable("away")

    pump = Pump(bus, [ALERTS], "g", Doing(away), stage="test", settings=QUICK)
    await bus.publish(ALERTS, [Record(b"k", b"")])
    async with running(pump):
        await until(lambda: len(asked) > 1)
    assert set(asked) == {0}


async def _nothing(batch):
    return None


async def test_a_bus_that_is_away_at_the_start_is_waited_for_and_a_stop_ends_that(records, until):
    bus = MemoryBus()
    await bus.publish(ALERTS, records(3))
    bus.fail(Unavailable("no broker"), call="subscribe", times=3)
    handler = Doing(_nothing)
    pump = Pump(bus, [ALERTS], "g", handler, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.committed == 3)
    bus.fail(Unavailable("no broker", 600), call="subscribe")
    pump = Pump(bus, [ALERTS], "g", handler, stage="test", settings=QUICK)
    async with running(pump):
        await until(lambda: pump.stats.backing_off)


async def test_records_that_will_never_come_are_told(caplog, until):
    """To whoever runs it, and to the stage before what lies behind them."""
    bus, order = MemoryBus(), []
    await bus.publish(ALERTS, [Record(b"k", b"%d" % number) for number in range(10)])
    async with bus.subscribe([ALERTS], "g", "earliest") as before:
        await before.take(1, 1.0)
        await before.commit()
    bus.drop(ALERTS, 6)

    async def handle(batch):
        order.extend(int(delivery.record.value) for delivery in batch)

    def missed(many, gap):
        order.append((many, gap.first, gap.last))

    pump = Pump(bus, [ALERTS], "g", Doing(handle), stage="test", settings=QUICK, missed=missed)
    async with running(pump):
        await until(lambda: pump.stats.committed == 4)
    assert order == [(5, 1, 5), 6, 7, 8, 9]
    (line,) = [one.getMessage() for one in caplog.records if "never be read" in one.getMessage()]
    assert line.startswith(
        "stage `test`: 5 records will never be read, the newest of `alerts`, partition 0, offsets 1 to 5: retention"
    )
    assert pump.stats.skipped == 5


async def test_what_was_lost_is_counted_over_all_runs(until):
    """Each run has a subscription of its own, which counts from nothing: as many lost as in the run before are told too."""
    bus, told = MemoryBus(), []
    await bus.publish(ALERTS, [Record(b"k", b"%d" % number) for number in range(9)])
    async with bus.subscribe([ALERTS], "g", "earliest") as before:
        await before.take(1, 1.0)
        await before.commit()

    async def handle(batch):
        return

    pump = Pump(
        bus,
        [ALERTS],
        "g",
        Doing(handle),
        stage="test",
        settings=QUICK,
        missed=lambda many, gap: told.append((many, gap.last)),
    )
    # Read up to 1, lost 1 and 2, read 3 to 8; then three more come, of which the first two are lost before the next run.
    for base, end in ((3, 9), (11, 12)):
        bus.drop(ALERTS, base)
        task = asyncio.create_task(pump.run())
        await until(lambda: pump.position.get(("alerts", 0)) == end)  # noqa: B023
        await until(lambda: pump.stats.lag == 0)
        # As a stage that fails ends: a pump that was stopped stays so.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.publish(ALERTS, [Record(b"k", b"later")] * 3)
    assert told == [(2, 2), (2, 10)]
    assert pump.stats.skipped == 4
