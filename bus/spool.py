# SPDX-License-Identifier: Apache-2.0
"""What a node writes while its bus is away: the same log, drained oldest first when the bus answers again.

::

    publish ─► nothing spooled and the bus answers: straight through
           └─► else: appended to the topic's log in DIR; a task drains it, and only an empty log lets the topic through

So the order per key is kept. A topic that the bus does not take while it takes others waits by itself (`topic_troubles`). The
spool has a byte and an age cap; over it, the oldest segments go: raw events and telemetry first, then summaries, then state,
alerts last; each record shed is counted, and told on `alerts` once the bus is back. A record that the bus refuses for good goes to
`dead`. Draining may repeat the batch that was under way when the process died. Neighbours: `spool_lines` (the disk),
`topic_troubles`, `spool_settings`, `contract` (what it wraps).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeVar

from bus.contract import Bus, Record, Start, Subscription
from bus.dead_letters import DeadLetters, Letter
from bus.embedded.database import Corrupt
from bus.spool_lines import Row, Shed, SpoolLine, SpoolLines
from bus.spool_settings import SpoolSettings, SpoolStats
from bus.topic_troubles import TopicTroubles
from schemas.errors import Backpressure, HauberkError, Permanent, Temporary, Unavailable
from schemas.topics import ALERTS, Topic

log = logging.getLogger(__name__)

T = TypeVar("T")

CATCH_UP: Final = 0.1
"""Longest time, seconds, that a publisher waits for a spool that drains: it slows a tight one down so that the spool empties some
day, and lets the sensor, whose rings fill meanwhile, go on."""


class _WaitsAloneError(Exception):
    """A publication failed, and `TopicTroubles` has noted that for one topic."""


class SpooledBus:
    """A bus that takes records while `inner` is away. Everything but `publish` is `inner`'s. `close` closes both. `notice`: the
    record on `alerts` that tells what was shed."""

    def __init__(
        self,
        inner: Bus,
        settings: SpoolSettings,
        *,
        notice: Callable[[Shed], Record] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.inner = inner
        self._settings = settings
        self._clock = clock
        self._notice = notice
        self._lines = SpoolLines(Path(settings.directory), settings.max_bytes, settings.max_age, clock)
        self._lines.batch_bytes = settings.drain_bytes
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bus-spool")
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self._moved = asyncio.Event()
        self._closed = False
        self._draining: asyncio.Task[None] | None = None
        self._dead = DeadLetters(inner, "spool", None, None)
        self._troubles = TopicTroubles(settings.retry)
        self._logged: dict[tuple[str, str], Shed] = {}
        self.stats = SpoolStats(
            shed=self._lines.shed,
            damaged=self._lines.damaged,
            unserved=self._troubles.now,
            unserved_tries=self._troubles.tries,
        )

    @property
    def unserved(self) -> dict[str, str]:
        """Topic name -> why its records wait by themselves while the bus takes others."""
        return dict(self._troubles.said)

    @classmethod
    async def open(
        cls, inner: Bus, settings: SpoolSettings, *, notice: Callable[[Shed], Record] | None = None
    ) -> SpooledBus:
        """Open the spool; what an earlier process left in it is drained first."""
        bus = cls(inner, settings, notice=notice)
        await bus._thread(bus._lines.find)
        bus._count()
        bus._draining = bus._loop.create_task(bus._drain())
        bus._more.set()
        return bus

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        """See `contract.Bus`; raises `DiskFull` only when shedding made no room."""
        line = self._lines.get(topic)
        if line is not None and line.behind:
            await self._let_it_catch_up(line)
        if (line is None or not line.behind) and not self.stats.away and not self._troubles.waits(topic.name):
            try:
                async with asyncio.timeout(self._settings.publish_timeout):
                    await self.inner.publish(topic, records)
                self._troubles.served(topic.name)
                return
            except Backpressure:
                # It is there and says slower: spooling would hide that from the sensor.
                raise
            except (Unavailable, TimeoutError) as error:
                if not self._troubles.failed(topic.name, error):
                    self._went_away(error)
        if line is None:
            line = await self._thread(self._lines.open, topic)
        line.under_way += 1
        try:
            stamped = [r if r.timestamp_ms else Record(r.key, r.value, r.headers, self._now_ms()) for r in records]
            await self._thread(self._lines.append, line, stamped)
        except HauberkError:
            if not any(one.busy for one in self._lines):
                # Nothing is drained, so nobody else looks whether the bus is back.
                self._away(False)
            raise
        finally:
            line.under_way -= 1
            self._notify()
        self.stats.spooled += len(records)
        self._count()
        self._more.set()

    def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        return self.inner.subscribe(topics, group, start, keys)

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        return await self.inner.latest(topic)

    async def end(self, topic: Topic) -> dict[int, int]:
        return await self.inner.end(topic)

    async def count(self, topic: Topic) -> int:
        return await self.inner.count(topic)

    async def lag(self, group: str) -> dict[str, int]:
        return await self.inner.lag(group)

    async def groups(self) -> dict[str, dict[str, int]]:
        return await self.inner.groups()

    async def forget(self, group: str) -> None:
        await self.inner.forget(group)

    def damaged(self) -> int:
        return self.inner.damaged() + sum(line.log.quarantined for line in self._lines)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notify()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait((self._draining,))
        await self._loop.run_in_executor(self._pool, self._lines.close)
        self._pool.shutdown(wait=True)
        await self.inner.close()

    async def _drain(self) -> None:
        attempt = 0
        problem: Exception | None = None
        while True:
            try:
                if problem is not None:
                    # No jitter: a node has one spool, and nodes lose the broker at different batches.
                    asked = problem.retry_after if isinstance(problem, Temporary) else None
                    await asyncio.sleep(self._settings.retry.delay(attempt, asked=asked))
                    attempt += 1
                    problem = None
                    await self._tidy()
                await self._work()
                await self._drain_batch()
                attempt = 0
            except _WaitsAloneError:
                attempt = 0
            except HauberkError as error:
                problem = error
                self._went_away(error)
            except Exception as error:
                # A drain that ended would have everything shed that comes from here on, in silence.
                log.error("draining the spool failed in a way it should not; that is a bug", exc_info=error)
                problem = error
                self._went_away(error)

    async def _work(self) -> None:
        """Return when there is a line that may be drained now."""
        while True:
            self._more.clear()
            waiting = self._troubles.waiting()
            left = []
            for line in self._lines:
                if line.busy:
                    # A line that has but a loss to tell waits for `alerts`.
                    told = waiting.get(ALERTS.name, 0.0) if line.next >= line.end else 0.0
                    left.append(max(told, waiting.get(line.topic.name, 0.0)))
            if 0.0 in left:
                return
            try:
                async with asyncio.timeout(min(left, default=None)):
                    await self._more.wait()
            except TimeoutError:
                await self._tidy()

    async def _tidy(self) -> None:
        with contextlib.suppress(HauberkError):
            await self._thread(self._lines.tidy)
        self._count()

    async def _drain_batch(self) -> None:
        """Publish the oldest batch there is and remember that it went."""
        found = await self._oldest()
        if found is None:
            return
        line, first, rows, past = found
        try:
            if rows:
                await self._send(line, rows)
                self._came_back()
        except BaseException as error:
            await self._put_back(error, functools.partial(self._lines.settle, line))
            raise
        await self._thread(self._lines.published, line, first, past)
        if self._alerts_wait(line):
            # Later: the place stays as it is until then, and the rest of the line goes on.
            self._count()
            self._notify()
            return
        sheds, place = await self._thread(self._lines.to_tell, line)
        while sheds:
            # Strictly before the place is saved: a process that is killed here tells again.
            try:
                await self._tell(sheds[0])
            except BaseException as error:
                await self._put_back(error, functools.partial(self._lines.not_told, line, sheds))
                raise
            del sheds[0]
        await self._thread(self._lines.advance, line, place)
        self._count()
        self._notify()

    def _alerts_wait(self, line: SpoolLine) -> bool:
        """Whether what was lost of `line` cannot be told now."""
        return line.to_tell and self._troubles.waits(ALERTS.name)

    async def _put_back(self, error: BaseException, function: Callable[[], None]) -> None:
        """Have `function` called after `error`, before anybody looks for what is to do next; a task that is cancelled does not wait."""
        called = self._pool.submit(function)
        if isinstance(error, Exception):
            await asyncio.wrap_future(called)

    async def _oldest(self) -> tuple[SpoolLine, int, list[Row], int] | None:
        waiting = self._troubles.waiting()
        look = functools.partial(self._lines.oldest, telling=ALERTS.name not in waiting)
        found = await self._thread(look, waiting.keys() | self._troubles.looked)
        if found is None and self._troubles.looked:
            self._troubles.looked.clear()
            found = await self._thread(look, waiting.keys())
        unreadable, self._lines.unreadable = self._lines.unreadable, {}
        for name, error in unreadable.items():
            self._troubles.hold(name, error)
        return found

    async def _send(self, line: SpoolLine, rows: list[Row]) -> None:
        name = line.topic.name
        try:
            await self._asked(name, self.inner.publish(line.topic, [record for _, record in rows]))
            self.stats.drained += len(rows)
        except Permanent:
            # One of them is refused for good; alone, it cannot hold up the rest.
            for offset, record in rows:
                try:
                    await self._asked(name, self.inner.publish(line.topic, [record]))
                    self.stats.drained += 1
                except Permanent as error:
                    await self._asked(name, self._dead.write([Letter(line.topic, record, error, 1)]))
                    self.stats.refused += 1
                    self.stats.last_error = f"{type(error).__name__}: {error}"
                # Each by itself: where the next one has to wait, nothing that went goes again.
                await self._thread(functools.partial(self._lines.published, line, offset, offset + 1, more=True))

    async def _tell(self, shed: Shed) -> None:
        if self._logged.get((shed.topic, shed.reason)) != shed:
            # Once, however often it has to be told.
            log.error("%d records of `%s` were shed: %s", shed.records, shed.topic, shed.why)
            self._logged[shed.topic, shed.reason] = shed
        if self._notice is not None:
            try:
                await self._asked(ALERTS.name, self.inner.publish(ALERTS, [self._notice(shed)]))
            except Permanent as error:
                # The line above is all that there is of it; the topic must not wait for ever.
                log.error("the bus refuses the alert about it: %s", error)
                self.stats.refused += 1
                self.stats.last_error = f"{type(error).__name__}: {error}"

    async def _let_it_catch_up(self, line: SpoolLine) -> None:
        """Wait a moment while the bus answers and the spool drains: a tight publisher would otherwise keep it from ever emptying."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP):
                while line.behind and not self.stats.away and not self._closed:
                    if self._troubles.waits(line.topic.name) or (line.next >= line.end and self._alerts_wait(line)):
                        return
                    moved = self._moved
                    await moved.wait()

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _asked(self, name: str, publication: Awaitable[None]) -> None:
        """Await it. What fails may be the matter of topic `name` alone: then it raises `_WaitsAloneError`."""
        try:
            async with asyncio.timeout(self._settings.publish_timeout):
                await publication
        except (Permanent, Backpressure):
            raise
        except Exception as error:
            if not self._troubles.failed(name, error):
                if isinstance(error, TimeoutError):
                    raise Unavailable(f"`{name}`: no acknowledgement in time while draining") from error
                raise
            if not isinstance(error, HauberkError | TimeoutError):
                log.error("publishing to `%s` failed in a way it should not; that is a bug", name, exc_info=error)
            self.stats.last_error = self._troubles.said[name]
            # It answered, or another topic got through since this one did not.
            self._came_back()
            self._notify()
            raise _WaitsAloneError from error
        self._troubles.served(name)

    def _went_away(self, error: BaseException) -> None:
        said = f"{type(error).__name__}: {error}"
        if not self.stats.away:
            log.warning("the bus is away, records are kept in %s: %s", self._settings.directory, said)
        self._away(True)
        self.stats.last_error = said
        self._more.set()
        self._notify()

    def _came_back(self) -> None:
        if self.stats.away:
            log.warning("the bus is back, %d records of the spool follow", self.stats.waiting)
        self._away(False)

    def _away(self, away: bool) -> None:
        self.stats.away = away
        self._troubles.away(away)

    def _count(self) -> None:
        self.stats.waiting = sum(line.waiting for line in self._lines)
        self.stats.bytes, self.stats.full = self._lines.size, self._lines.full

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._loop.run_in_executor(self._pool, function, *arguments)
        except Corrupt as error:
            raise Unavailable(f"expected a readable spool, found {error}; it was put aside, call again", 0.1) from error
