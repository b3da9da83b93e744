# SPDX-License-Identifier: Apache-2.0
"""Drives a stage from the bus: take, handle, flush, commit; at least once.

::

    take ─► handle ─► (flush) ─► commit
              │ Temporary: the same batch again, after a back-off with full jitter
              │ Permanent: halves, until only the bad record is left; that one goes to `dead`, the rest is handled
              └ anything else: as Temporary a few times, then as Permanent (a bug in one record must not stop a node)

A handler never sleeps, retries or counts: that is done here, once. An offset is committed only after its record was
handled or lies in `dead`. Neighbours: `contract`; every stage has one pump per group.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec

from bus.contract import Bus, Delivery, Headers, Record, Start, Subscription
from bus.taking import take_or
from schemas.errors import HauberkError, Permanent, Reason, Temporary
from schemas.topics import DEAD, Topic

# Each look is a round trip to the log's reading thread or to the broker.
LAG_SECONDS = 5.0

Handle = Callable[[list[Delivery]], Awaitable[None]]
Flush = Callable[[], Awaitable[None]]


class PumpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stage takes from the bus. Times in seconds."""

    max_records: Annotated[
        int, msgspec.Meta(ge=1, le=(1 << 31) - 1, description="Records per batch.", examples=[500])
    ] = 500
    max_wait: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=315_360_000, description="Seconds to wait for a record before looking up.", examples=[1.0]
        ),
    ] = 1.0
    commit_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=315_360_000,
            description="Seconds between commits at least; what a crash may repeat.",
            examples=[0.1],
        ),
    ] = 0.1
    retry_first: Annotated[
        float,
        msgspec.Meta(gt=0, le=315_360_000, description="Seconds, upper end of the first back-off.", examples=[0.5]),
    ] = 0.5
    retry_most: Annotated[
        float, msgspec.Meta(gt=0, le=315_360_000, description="Seconds, upper end of any back-off.", examples=[60.0])
    ] = 60.0
    unknown_attempts: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=(1 << 31) - 1, description="Tries before an unforeseen error counts as permanent.", examples=[3]
        ),
    ] = 3


class PumpStats(msgspec.Struct):
    """Plain counts since start, for whoever renders metrics. `lag`: records not committed, as of the last look."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    retries: int = 0
    dead: int = 0
    skipped: int = 0
    commits: int = 0
    lag: int = 0
    last_error: str = ""
    last_error_reason: str = ""
    backing_off: bool = False


class Pump:
    """`await run()` until `stop()`; or use `task = create_task(pump.run())`.

    `handle` gets deliveries in order and returns when they are done. With `flush`, being done is deferred: `handle` may
    keep what it was given, and only after `flush` (each `flush_seconds`, and at the end) is the offset committed.
    `group` None reads as a broadcast reader: same care, no offsets.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[Topic],
        group: str | None,
        handle: Handle,
        *,
        stage: str,
        start: Start = "committed",
        flush: Flush | None = None,
        flush_seconds: float = 1.0,
        settings: PumpSettings | None = None,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        self._bus = bus
        self._topics = tuple(topics)
        self._group = group
        self._handle = handle
        self._stage = stage
        self._start: Start = start
        self._flush = flush
        self._settings = settings or PumpSettings()
        # Without a flush only the commit is deferred: it must not stand between a record and the next.
        self._flush_seconds = self._settings.commit_seconds if flush is None else flush_seconds
        self._random_part = random_part
        self._stopping = asyncio.Event()
        self._pending = False
        self.stats = PumpStats()
        self.position: dict[tuple[str, int], int] = {}
        """(topic name, partition) -> offset after the newest record that was handled."""

    def stop(self) -> None:
        """Ask `run` to finish: the batch in hand is handled, flushed and committed. Returns at once."""
        self._stopping.set()

    async def run(self) -> None:
        """Pump until `stop`. Cancelling it stops in the middle: what was not committed comes again after the start."""
        async with self._bus.subscribe(self._topics, self._group, self._start) as subscription:
            try:
                await self._pump(subscription)
            except _Stopped:
                # The far side failed until the end: what is in hand stays uncommitted and comes again.
                self._pending = False
            await self._look_at_lag()

    async def _pump(self, subscription: Subscription) -> None:
        next_flush = time.monotonic() + self._flush_seconds
        next_lag = 0.0
        while not self._stopping.is_set():
            batch = await self._take(subscription, next_flush)
            self.stats.skipped = subscription.skipped
            if batch:
                await self._deliver(batch)
                self.stats.batches += 1
                self.stats.records += len(batch)
                self.stats.bytes += sum(delivery.record.size for delivery in batch)
                self._pending = True
            self.position = dict(subscription.position)
            now = time.monotonic()
            if self._pending and now >= next_flush:
                await self._finish(subscription)
                next_flush = time.monotonic() + self._flush_seconds
            if now >= next_lag:
                await self._look_at_lag()
                next_lag = now + LAG_SECONDS
        if self._pending:
            await self._finish(subscription)

    async def _take(self, subscription: Subscription, next_flush: float) -> list[Delivery]:
        wait = self._settings.max_wait
        if self._pending:
            wait = max(0.0, min(wait, next_flush - time.monotonic()))
        try:
            return await take_or(subscription, self._settings.max_records, wait, self._stopping)
        except Temporary as error:
            self._note(error)
            await self._pause(0, error.retry_after)
            return []

    async def _deliver(self, batch: list[Delivery]) -> None:
        """Handle `batch` to the end: done, or dead. `_Stopped` when `stop` came between two tries."""
        # A stack of parts instead of recursion: halves of halves, in order.
        parts = [batch]
        while parts:
            part = parts.pop()
            problem, attempts = await self._attempt(part)
            if problem is None:
                continue
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                await self._bury(part[0], problem, attempts)

    async def _attempt(self, part: list[Delivery]) -> tuple[Exception | None, int]:
        """Try until it works or cannot: (None, tries) or (the permanent error, tries)."""
        attempts = 0
        while True:
            attempts += 1
            retry_after: float | None = None
            try:
                await self._handle(part)
            except Permanent as error:
                self._note(error)
                return error, attempts
            except Temporary as error:
                self._note(error)
                retry_after = error.retry_after
            except Exception as error:  # noqa: BLE001 - the pump is one of three places where everything is caught.
                self._note(error)
                if attempts >= self._settings.unknown_attempts:
                    return error, attempts
            else:
                return None, attempts
            self.stats.retries += 1
            await self._pause(attempts - 1, retry_after)
            if self._stopping.is_set():
                raise _Stopped

    async def _bury(self, delivery: Delivery, error: Exception, attempts: int) -> None:
        headers: Headers = (
            *delivery.record.headers,
            ("dead.topic", delivery.topic.name.encode()),
            ("dead.partition", str(delivery.partition).encode()),
            ("dead.offset", str(delivery.offset).encode()),
            ("dead.group", (self._group or "").encode()),
            ("dead.stage", self._stage.encode()),
            ("dead.reason", reason_of(error).value.encode()),
            ("dead.error", f"{type(error).__name__}: {error}"[:1024].encode("utf-8", "replace")),
            ("dead.attempts", str(attempts).encode()),
            ("dead.time", str(time.time_ns() // 1_000_000).encode()),
        )
        # A dead tombstone would delete nothing on `dead`, and None is no value there.
        record = Record(delivery.record.key, delivery.record.value or b"", headers)
        await self._insist(lambda: self._bus.publish(DEAD, [record]))
        self.stats.dead += 1

    async def _finish(self, subscription: Subscription) -> None:
        if self._flush is not None:
            await self._insist(self._flush)
        await self._insist(lambda: subscription.commit(None))
        self._pending = False
        self.stats.commits += 1

    async def _insist(self, action: Callable[[], Awaitable[None]]) -> None:
        attempts = 0
        while True:
            try:
                await action()
            except Temporary as error:
                self._note(error)
                self.stats.retries += 1
                await self._pause(attempts, error.retry_after)
                attempts += 1
                if self._stopping.is_set():
                    raise _Stopped from error
            else:
                return

    async def _pause(self, attempt: int, retry_after: float | None) -> None:
        """Full jitter: anywhere between nothing and a bound that doubles; never sooner than the far side asked."""
        bound = min(self._settings.retry_most, self._settings.retry_first * 2.0 ** min(attempt, 30))
        seconds = max(bound * self._random_part(), retry_after or 0.0)
        self.stats.backing_off = True
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
        finally:
            self.stats.backing_off = False

    async def _look_at_lag(self) -> None:
        if self._group is None:
            return
        try:
            lags = await self._bus.lag(self._group)
        except HauberkError as error:
            self._note(error)
            return
        self.stats.lag = sum(lags.get(topic.name, 0) for topic in self._topics)

    def _note(self, error: Exception) -> None:
        self.stats.last_error = f"{type(error).__name__}: {error}"
        self.stats.last_error_reason = reason_of(error).value


class _Stopped(Exception):
    """`stop` came while a batch was failing: leave it uncommitted, it comes again after the next start."""


def reason_of(error: Exception) -> Reason:
    """The closed word for `error`."""
    return error.reason if isinstance(error, HauberkError) else Reason.INTERNAL
