# SPDX-License-Identifier: Apache-2.0
"""Drives a stage from the bus: take, handle, commit what is done; at least once.

::

    take ─► handle (tried, split, given up: see `attempts`) ─► tick ─► committable ─► commit
      └ nothing came ──────────────────────────────────────────┘

A handler may keep what it was given: an offset is committed only once its handler says that everything up to it is done, or
it lies on `dead`. A handler never sleeps, retries or counts tries: that is done here, once. The end is one idea: read to a
mark, settle, stop. Neighbours: `handler`; `contract`; `attempts`; `dead_letters`; every stage and every sink has one pump per group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec

from bus.attempts import Attempts, AttemptStats, Stopped
from bus.backoff import Backoff
from bus.contract import Bus, Delivery, Gap, Partition, Start, Subscription
from bus.dead_letters import DeadLetters, letter
from bus.handler import Handler
from bus.interruptible import Signal, take_or
from bus.paced_log import PacedLog
from schemas.errors import HauberkError, Temporary
from schemas.stats import Gauge, Level
from schemas.topics import Topic

log = logging.getLogger(__name__)

# Each look is a round trip to the log's reading thread or to the broker.
LAG_SECONDS = 2.0
LAG_SECONDS_AT_REST = 30.0
"""Between looks when nothing was taken nor committed since the last: then nothing has moved but what this reader misses."""
DRAIN_WAIT = 0.25
"""Seconds that a stop waits for records at a time: longer than the log or a broker takes to hand out what it has."""


class PumpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stage takes from the bus. Times in seconds."""

    max_records: Annotated[
        int, msgspec.Meta(ge=1, le=(1 << 31) - 1, description="Records per batch.", examples=[500])
    ] = 500
    max_wait: Annotated[
        float,
        msgspec.Meta(gt=0, le=315_360_000, description="Longest wait for a record, seconds.", examples=[1.0]),
    ] = 1.0
    commit_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=315_360_000,
            description="Least seconds between commits; a crash repeats at most what was handled since the last.",
            examples=[0.1],
        ),
    ] = 0.1
    retry: Annotated[Backoff, msgspec.Meta(description="Back-off when the far side is away.", examples=[{}])] = (
        Backoff()
    )
    drain_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=315_360_000,
            description="Once stopped: seconds without progress after which what is in hand is left for the next start.",
            examples=[5.0],
        ),
    ] = 5.0
    unknown_attempts: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=(1 << 31) - 1, description="Tries before an unforeseen error counts as permanent.", examples=[3]
        ),
    ] = 3


class PumpStats(AttemptStats):
    """Plain counts since start, for whoever renders metrics. `disowned`: commits that came too late, another member handles the
    records again; `committed`: deliveries that their handler was done with and
    whose offset is committed; `dead_lost`: given up and refused by `dead` too; `lag`: records not committed, as of the
    last look; `partitions`: that are this reader's now; `rebalances`: times that partitions came or went; `work_seconds`: spent in the handler, waits for far sides included;
    `late_seconds`: age of the oldest record of the latest batch when it was taken."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    dead: int = 0
    dead_lost: int = 0
    skipped: int = 0
    disowned: int = 0
    commits: int = 0
    committed: int = 0
    lag: Gauge = 0
    partitions: Gauge = 0
    rebalances: int = 0
    work_seconds: float = 0.0
    late_seconds: Level = 0.0


class Pump:
    """`await run()` until `stop()` or `finish()`; or use `task = create_task(pump.run())`.

    `group` None reads as a broadcast reader: same care, no offsets. `who`: for log lines. `missed`: called, before the batch behind
    them is handled, with how many records will never come and the newest gap. `position`: (topic name,
    partition) -> offset after the newest record that was handled.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[Topic],
        group: str | None,
        handler: Handler,
        *,
        stage: str,
        start: Start = "committed",
        settings: PumpSettings | None = None,
        who: str = "",
        random_part: Callable[[], float] = random.random,
        missed: Callable[[int, Gap], None] | None = None,
    ) -> None:
        self._bus = bus
        self._topics = tuple(topics)
        self._group = group
        self._handler = handler
        self._start: Start = start
        self._settings = used = settings or PumpSettings()
        self.stats = PumpStats()
        self._who = who or f"stage `{stage}`"
        self._missed = missed
        self._gap_log = PacedLog(log)
        self._skipped = 0
        self.attempts = Attempts(
            self._who,
            used.retry,
            used.drain_seconds,
            used.unknown_attempts,
            self.stats,
            random_part,
            self._keep_place,
        )
        self.dead = DeadLetters(bus, stage, group, self.attempts)
        self.position: dict[Partition, int] = {}
        self.running = False
        self._mark: Mapping[Partition, int] | None = None
        self._wake = Signal()
        self._subscription: Subscription | None = None
        self._grants: dict[Partition, int] = {}
        self._done: dict[Partition, Delivery] = {}
        self._done_count = 0
        self._unburied: dict[Partition, int] = {}
        self._next_commit = 0.0

    @property
    def halted(self) -> bool:
        """Whether `stop` was called without a mark: nothing more of the batch in hand need be begun."""
        return self.attempts.stopping.is_set() and self._mark is None

    def stop(self, mark: Mapping[Partition, int] | None = None) -> None:
        """Ask `run` to read to `mark` (None: no further), settle, commit and end. Returns at once; the last call counts."""
        self._mark = mark
        self.attempts.stop(cut=mark is None)

    async def finish(self) -> None:
        """Ask `run` to end once everything is read that is on the topics now. Returns at once, as `stop` does."""
        mark: dict[Partition, int] = {}
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                for topic in self._topics:
                    ends = await self._bus.end(topic)
                    mark |= {(topic.name, partition): end for partition, end in ends.items()}
        except (HauberkError, TimeoutError) as error:
            self.attempts.note(error)
            self.stop()
        else:
            self.stop(mark)

    def wake(self) -> None:
        """Have `tick` called soon: something that the handler waits for has happened."""
        self._wake.set()

    async def woken(self, seconds: float) -> None:
        """For a handler that cannot go on: wait for `wake`, `seconds` at most. Raises `Stopped` when a stop leaves no time."""
        if self.attempts.left <= 0:
            raise Stopped
        await self._keep_place()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def run(self) -> None:
        """Pump until the end that was asked for. Cancelling it stops in the middle: what was not committed comes again after
        the next start."""
        self._done, self._done_count, self._grants, self._unburied = {}, 0, {}, {}
        # Of each subscription from 0 on, and this run has a new one.
        self._skipped = 0
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._left)
            try:
                self._subscription = subscription = await self.attempts.insist(
                    lambda: stack.enter_async_context(self._bus.subscribe(self._topics, self._group, self._start))
                )
                self.running = True
                await self._pump(subscription)
                await self._handler.settle()
            except Stopped:
                # What is done is committed all the same.
                held = (
                    "with work in hand, which comes again after the next start"
                    if self.stats.records
                    else "and has read nothing"
                )
                log.warning("%s stops %s: %s", self._who, held, self.stats.failure)
            finally:
                self.running = False
            with contextlib.suppress(Stopped):
                await self.commit(now=True)
            await self._look_at_lag()

    def _left(self) -> None:
        self._subscription = None

    async def _pump(self, subscription: Subscription) -> None:
        next_lag = 0.0
        seen = -1
        dry = failures = 0
        while not self._at_the_end(subscription, dry > 0):
            try:
                batch = await self._take(subscription)
            except Temporary as error:
                await self.attempts.pause(failures, error)
                failures += 1
                continue
            if failures:
                self.attempts.progress()
                failures = 0
            # Before the batch: a partition that was lost and given anew begins again at its committed offset.
            self._forget_lost(subscription)
            dry = 0 if batch else dry + 1
            self.stats.disowned = subscription.disowned
            if subscription.skipped != self._skipped:
                self._tell_missed(subscription)
            if batch:
                began = time.monotonic()
                self.stats.late_seconds = max(0.0, time.time() - min(one.record.timestamp_ms for one in batch) / 1000)
                await self.attempts.work(batch, self._handle, self._bury)
                self.stats.work_seconds += time.monotonic() - began
                self.stats.batches += 1
                self.stats.records += len(batch)
                self.stats.bytes += sum(delivery.record.size for delivery in batch)
            if not self.halted:
                await self.attempts.insist(lambda: self._handler.tick(not batch))  # noqa: B023
            self.position = dict(subscription.position)
            await self.commit()
            if subscription.revoking:
                await self._release(subscription)
            moved = self.stats.records + self.stats.commits
            if (now := time.monotonic()) >= next_lag + (0 if moved != seen else LAG_SECONDS_AT_REST):
                await self._look_at_lag()
                next_lag, seen = now + LAG_SECONDS, moved

    def _tell_missed(self, subscription: Subscription) -> None:
        more = subscription.skipped - self._skipped
        self._skipped = subscription.skipped
        self.stats.skipped += more
        gap = subscription.gaps[-1]
        self._gap_log.say(
            logging.ERROR,
            f"{self._who}: {more} records will never be read, the newest of `{gap.topic}`, partition {gap.partition}, offsets "
            f"{gap.first} to {gap.last}: {gap.why}",
        )
        if self._missed is not None:
            self._missed(more, gap)

    def _at_the_end(self, subscription: Subscription, dry: bool) -> bool:
        if not self.attempts.stopping.is_set() or self._mark is None:
            return self.attempts.stopping.is_set()
        position = subscription.position
        behind = [place for place, end in self._mark.items() if position.get(place, 0) < end]
        if not behind or (dry and self.attempts.left <= 0):
            return True
        # After a take, a partition without a position is another member's, unless the group is changing.
        return dry and not subscription.joining and not any(place in position for place in behind)

    async def _take(self, subscription: Subscription) -> list[Delivery]:
        most, wait = self._settings.max_records, self._settings.max_wait
        if self.attempts.stopping.is_set():
            return await subscription.take(most, min(wait, DRAIN_WAIT))
        wait = min(wait, self._handler.wait())
        if self._done:
            wait = min(wait, self._next_commit - time.monotonic())
        batch = await take_or(subscription, most, max(0.0, wait), self.attempts.stopping, self._wake)
        self._wake.clear()
        return batch

    async def _handle(self, part: list[Delivery]) -> None:
        await self._handler.handle(part)

    async def _bury(self, given_up: list[tuple[Delivery, Exception, int]]) -> None:
        # A handler may be done with what it refused; the pump is not until the letter is durable.
        for delivery, *_ in given_up:
            place = (delivery.topic.name, delivery.partition)
            self._unburied[place] = min(delivery.offset, self._unburied.get(place, delivery.offset))
        await self.dead.write([letter(*one) for one in given_up])
        self._unburied.clear()

    async def commit(self, *, now: bool = False) -> None:
        """Commit what is done, at most each `commit_seconds` unless `now`. A handler that works on one batch for long calls
        it itself. Raises `Stopped`."""
        for delivery in self._handler.committable():
            place = (delivery.topic.name, delivery.partition)
            if delivery.offset >= self._unburied.get(place, delivery.offset + 1):
                continue
            self._done_count += 1
            known = self._done.get(place)
            if known is None or known.offset < delivery.offset:
                self._done[place] = delivery
        self.stats.dead, self.stats.dead_lost = self.dead.written, self.dead.lost
        if self._subscription is None or not self._done or (not now and time.monotonic() < self._next_commit):
            return
        subscription, done = self._subscription, list(self._done.values())
        await self.attempts.insist(lambda: subscription.commit(done))
        self.stats.commits += 1
        self.stats.committed += self._done_count
        self._done, self._done_count = {}, 0
        self._next_commit = time.monotonic() + self._settings.commit_seconds

    async def _release(self, subscription: Subscription) -> None:
        """Another member is to have partitions: finish and commit what is in hand, then let go of them."""
        await self._handler.settle()
        await self.commit(now=True)
        await self.attempts.insist(subscription.release)
        self._forget_lost(subscription)

    def _forget_lost(self, subscription: Subscription) -> None:
        owned = dict(subscription.owned)
        self.stats.rebalances += owned != self._grants
        self.stats.partitions = len(owned)
        lost = {partition for partition, grant in self._grants.items() if owned.get(partition) != grant}
        self._grants = owned
        if lost:
            self._done = {partition: one for partition, one in self._done.items() if partition not in lost}
            self._handler.released(lost)

    async def _keep_place(self) -> None:
        """A bus takes the partitions of a member that does not ask for records for long: ask, and take none."""
        if self._subscription is not None:
            try:
                await self._subscription.take(0, 0.0)
            except HauberkError as error:
                self.attempts.note(error)

    async def _look_at_lag(self) -> None:
        if self._group is None:
            return
        try:
            lags = await self._bus.lag(self._group)
        except HauberkError as error:
            self.attempts.note(error)
            return
        self.stats.lag = sum(lags.get(topic.name, 0) for topic in self._topics)
