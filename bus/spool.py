# SPDX-License-Identifier: Apache-2.0
"""What a node writes while its bus is away: the same log, drained oldest first when the bus answers again.

::

    publish ─► nothing spooled and the bus answers: straight through
           └─► else: appended to the topic's log in DIR; a task drains it, and only an empty log lets the topic through

So the order per key is kept. The spool has a byte and an age cap; over it, the oldest segments go: raw events and
telemetry first, then summaries, then state, alerts last; each record shed is counted, and told on `alerts` once the bus is
back. A record that the bus refuses for good goes to `dead`. Draining may repeat the batch that
was under way when the process died. Neighbours: `spool_lines` (the disk), `contract` (what it wraps).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from bus.attempts import Attempts
from bus.backoff import Backoff
from bus.contract import Bus, Record, Start, Subscription
from bus.dead_letters import DeadLetters, Letter
from bus.embedded.database import Corrupt
from bus.spool_lines import Shed, SpoolLine, SpoolLines
from schemas.errors import Backpressure, HauberkError, Permanent, Temporary, Unavailable
from schemas.stats import Gauge
from schemas.topics import ALERTS, Topic

log = logging.getLogger(__name__)

T = TypeVar("T")
Meta = msgspec.Meta

CATCH_UP: Final = 0.1
"""Longest time, seconds, that a publisher waits for a spool that drains: it slows a tight one down so that the spool empties some
day, and lets the sensor, whose rings fill meanwhile, go on."""


class SpoolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where records wait while the bus is away."""

    directory: Annotated[
        str, Meta(description="Where the spool lies; made when missing.", examples=["/var/lib/hauberk/spool"])
    ] = "/var/lib/hauberk/spool"
    max_bytes: Annotated[
        int, Meta(ge=1, le=1 << 50, description="Bytes on disk before shedding.", examples=[536870912])
    ] = 512 << 20
    max_age: Annotated[
        float,
        Meta(gt=0, le=315_360_000, description="Seconds after which a spooled record is shed.", examples=[86400.0]),
    ] = 86400.0
    publish_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=315_360_000,
            description="Seconds the bus has to acknowledge before it counts as away.",
            examples=[10.0],
        ),
    ] = 10.0
    retry: Annotated[Backoff, Meta(description="Between looks whether the bus is back.", examples=[{}])] = Backoff(
        first_seconds=0.5, max_seconds=15.0
    )
    drain_bytes: Annotated[int, Meta(ge=1, le=1 << 50, description="Bytes per drained batch.", examples=[1048576])] = (
        1 << 20
    )


class SpoolStats(msgspec.Struct):
    """Counts since open. `shed`: records dropped by topic name; `waiting`: records in the spool now; `full`: times that the disk had
    no room for a record at first.

    `refused`: records the bus will never take, which went to `dead` while draining.
    """

    spooled: int = 0
    drained: int = 0
    shed: dict[str, int] = {}
    waiting: Gauge = 0
    bytes: Gauge = 0
    full: int = 0
    refused: int = 0
    away: bool = False
    last_error: str = ""


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
        self._dead = DeadLetters(inner, "spool", None, Attempts("the spool", settings.retry, drain_seconds=0.0))
        self.stats = SpoolStats(shed=self._lines.shed)

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
        if (line is None or not line.behind) and not self.stats.away:
            try:
                async with asyncio.timeout(self._settings.publish_timeout):
                    await self.inner.publish(topic, records)
                return
            except Backpressure:
                # It is there and says slower: spooling would hide that from the sensor.
                raise
            except (Unavailable, TimeoutError) as error:
                self._went_away(error)
        if line is None:
            line = await self._thread(self._lines.open, topic)
        line.under_way += 1
        try:
            stamped = [r if r.timestamp_ms else Record(r.key, r.value, r.headers, self._now_ms()) for r in records]
            line.end = max(line.end, await self._thread(self._lines.append, line, stamped))
        except HauberkError:
            if not any(one.busy for one in self._lines):
                # Nothing is drained, so nobody else looks whether the bus is back.
                self.stats.away = False
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
                    with contextlib.suppress(HauberkError):
                        await self._thread(self._lines.tidy)
                    self._count()
                if not any(line.busy for line in self._lines):
                    self._more.clear()
                    await self._more.wait()
                await self._drain_batch()
                attempt = 0
            except HauberkError as error:
                problem = error
                self._went_away(error)
            except Exception as error:
                # A drain that ended would have everything shed that comes from here on, in silence.
                log.error("draining the spool failed in a way it should not; that is a bug", exc_info=error)
                problem = error
                self._went_away(error)

    async def _drain_batch(self) -> None:
        """Publish the oldest batch there is and remember that it went."""
        found = await self._thread(self._lines.oldest)
        if found is None:
            return
        line, first, records, past = found
        try:
            if records:
                try:
                    await self._pass_on(line.topic, records)
                except Permanent:
                    # One of them is refused for good; alone, it cannot hold up the rest.
                    for record in records:
                        await self._pass_on_or_give_up(line, record)
                self._came_back()
        except BaseException:
            self._pool.submit(self._lines.settle, line)
            raise
        await self._thread(self._lines.published, line, first, past)
        shed, place = await self._thread(self._lines.to_tell, line)
        if shed is not None:
            # Strictly before the place is saved: a process that is killed here tells again.
            try:
                await self._tell(shed)
            except BaseException:
                self._pool.submit(self._lines.not_told, line, shed)
                raise
        await self._thread(self._lines.advance, line, place)
        self._count()
        self._notify()

    async def _tell(self, shed: Shed) -> None:
        log.error("%d records of `%s` were shed: %s", shed.records, shed.topic, shed.why)
        if self._notice is not None:
            try:
                await self._pass_on(ALERTS, [self._notice(shed)], drained=False)
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
                    moved = self._moved
                    await moved.wait()

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _pass_on(self, topic: Topic, records: list[Record], *, drained: bool = True) -> None:
        try:
            async with asyncio.timeout(self._settings.publish_timeout):
                await self.inner.publish(topic, records)
        except TimeoutError as error:
            raise Unavailable(f"`{topic.name}`: no acknowledgement in time while draining") from error
        self.stats.drained += len(records) * drained

    async def _pass_on_or_give_up(self, line: SpoolLine, record: Record) -> None:
        try:
            await self._pass_on(line.topic, [record])
        except Permanent as error:
            await self._dead.write([Letter(line.topic, record, error, 1)])
            self.stats.refused += 1
            self.stats.last_error = f"{type(error).__name__}: {error}"

    def _went_away(self, error: BaseException) -> None:
        said = f"{type(error).__name__}: {error}"
        if not self.stats.away:
            log.warning("the bus is away, records are kept in %s: %s", self._settings.directory, said)
        self.stats.away = True
        self.stats.last_error = said
        self._more.set()
        self._notify()

    def _came_back(self) -> None:
        if self.stats.away:
            log.warning("the bus is back, %d records of the spool follow", self.stats.waiting)
        self.stats.away = False

    def _count(self) -> None:
        self.stats.waiting = sum(line.end - line.position for line in self._lines)
        self.stats.bytes, self.stats.full = self._lines.size, self._lines.full

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._loop.run_in_executor(self._pool, function, *arguments)
        except Corrupt as error:
            raise Unavailable(f"expected a readable spool, found {error}; it was put aside, call again", 0.1) from error
