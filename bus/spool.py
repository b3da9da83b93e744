# SPDX-License-Identifier: Apache-2.0
"""What a node writes while its bus is away: the same log, drained oldest first when the bus answers again.

::

    publish ─► nothing spooled and the bus answers: straight through
           └─► else: appended to the topic's log in DIR; a task drains it, and only an empty log lets the topic through

So the order per key is kept. The spool has a byte and an age cap; over it, the oldest segments go: raw events and
telemetry first, then summaries, then state, alerts last; each record shed is counted. Draining may repeat the batch that
was under way when the process died. Neighbours: `bus.embedded.segments` (the log), `contract` (what it wraps).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from bus.backoff import Backoff
from bus.contract import Bus, Record, Start, Subscription
from bus.embedded.database import Corrupt
from bus.embedded.offsets import Offsets
from bus.embedded.segments import SegmentedLog
from bus.permissions import private_directory
from schemas.errors import Backpressure, DiskFull, HauberkError, Permanent, Temporary, Unavailable
from schemas.stats import Gauge
from schemas.topics import BY_NAME, Topic

T = TypeVar("T")
Meta = msgspec.Meta

# Shed from left to right. State (inventory, policies, plans, receipts) is small and published again; alerts are neither.
SHED_ORDER = (
    ("events.raw", "telemetry"),
    ("summaries",),
    ("inventory", "policies", "enforcement.desired", "enforcement.status", "progress", "dead"),
    ("alerts",),
)
_GROUP = "spool"


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
    """Counts since open. `shed`: records dropped by topic name; `waiting`: records in the spool now.

    `refused`: records the bus will never take, dropped while draining.
    """

    spooled: int = 0
    drained: int = 0
    shed: dict[str, int] = {}
    waiting: Gauge = 0
    bytes: Gauge = 0
    refused: int = 0
    away: bool = False
    last_error: str = ""


class _Line:
    """One topic's queue on disk: `position` is the next offset to drain."""

    def __init__(self, topic: Topic, log: SegmentedLog, position: int, end: int) -> None:
        self.topic = topic
        self.log = log
        self.position = position
        self.end = end
        self.under_way = 0

    @property
    def behind(self) -> bool:
        return self.under_way > 0 or self.position < self.end


class SpooledBus:
    """A bus that takes records while `inner` is away. Everything but `publish` is `inner`'s. `close` closes both."""

    def __init__(self, inner: Bus, settings: SpoolSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._inner = inner
        self._settings = settings
        self._clock = clock
        root = Path(settings.directory)
        private_directory(root)
        self._root = root
        # A 32nd of the cap: shedding goes by whole segments, and must not throw away half the spool at once.
        self._segment_bytes = max(65536, settings.max_bytes // 32)
        self._offsets = Offsets(root)
        self._lines: dict[str, _Line] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bus-spool")
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self._moved = asyncio.Event()
        self._grown = 0
        self._closed = False
        self._draining: asyncio.Task[None] | None = None
        self.stats = SpoolStats()

    @classmethod
    async def open(cls, inner: Bus, settings: SpoolSettings) -> SpooledBus:
        """Open the spool; what an earlier process left in it is drained first."""
        bus = cls(inner, settings)
        await bus._thread(bus._find_lines)
        bus._count()
        bus._draining = bus._loop.create_task(bus._drain())
        bus._more.set()
        return bus

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        """See `contract.Bus`; raises `DiskFull` only when shedding made no room."""
        line = self._lines.get(topic.name)
        if line is not None and line.behind:
            await self._let_it_catch_up(line)
        if (line is None or not line.behind) and not self.stats.away:
            try:
                async with asyncio.timeout(self._settings.publish_timeout):
                    await self._inner.publish(topic, records)
                return
            except Backpressure:
                # It is there and says slower: spooling would hide that from the sensor.
                raise
            except (Unavailable, TimeoutError) as error:
                self._went_away(error)
        if line is None:
            line = await self._thread(self._line, topic)
        line.under_way += 1
        try:
            stamped = [r if r.timestamp_ms else Record(r.key, r.value, r.headers, self._now_ms()) for r in records]
            line.end = max(line.end, await self._thread(self._append, line, stamped))
        finally:
            line.under_way -= 1
            self._notify()
        self.stats.spooled += len(records)
        self._count()
        self._more.set()

    def subscribe(
        self, topics: Sequence[Topic], group: str | None, start: Start = "committed"
    ) -> AbstractAsyncContextManager[Subscription]:
        return self._inner.subscribe(topics, group, start)

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        return await self._inner.latest(topic)

    async def end(self, topic: Topic) -> dict[int, int]:
        return await self._inner.end(topic)

    async def lag(self, group: str) -> dict[str, int]:
        return await self._inner.lag(group)

    async def groups(self) -> dict[str, dict[str, int]]:
        return await self._inner.groups()

    async def forget(self, group: str) -> None:
        await self._inner.forget(group)

    def damaged(self) -> int:
        return self._inner.damaged() + sum(line.log.quarantined for line in self._lines.values())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notify()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait((self._draining,))
        await self._loop.run_in_executor(self._pool, self._close_logs)
        self._pool.shutdown(wait=True)
        await self._inner.close()

    async def _drain(self) -> None:
        attempt = 0
        while True:
            if not any(line.position < line.end for line in self._lines.values()):
                self.stats.away = False
                self._more.clear()
                await self._more.wait()
            try:
                await self._drain_batch()
                attempt = 0
            except HauberkError as error:
                self._went_away(error)
                # No jitter: a node has one spool, and nodes lose the broker at different batches.
                asked = error.retry_after if isinstance(error, Temporary) else None
                await asyncio.sleep(self._settings.retry.delay(attempt, asked=asked))
                attempt += 1

    async def _drain_batch(self) -> None:
        """Publish the oldest batch there is and remember that it went."""
        found = await self._thread(self._oldest)
        if found is None:
            return
        line, first, records, past = found
        if records:
            try:
                await self._pass_on(line.topic, records)
            except Permanent:
                # One of them is refused for good; alone, it cannot hold up the rest.
                for record in records:
                    await self._pass_on_or_drop(line, record)
            self.stats.away = False
        if first > line.position:
            self._shed(line, first - line.position)
        await self._thread(self._advance, line, past)
        # Shedding may have gone further meanwhile.
        line.position = max(line.position, past)
        self._count()
        self._notify()

    async def _let_it_catch_up(self, line: _Line) -> None:
        """Wait while the bus answers and the spool drains: a tight publisher would otherwise keep it from ever emptying."""
        while line.behind and not self.stats.away and not self._closed:
            moved = self._moved
            await moved.wait()

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _pass_on(self, topic: Topic, records: list[Record]) -> None:
        try:
            async with asyncio.timeout(self._settings.publish_timeout):
                await self._inner.publish(topic, records)
        except TimeoutError as error:
            raise Unavailable(f"`{topic.name}`: no acknowledgement in time while draining") from error
        self.stats.drained += len(records)

    async def _pass_on_or_drop(self, line: _Line, record: Record) -> None:
        try:
            await self._pass_on(line.topic, [record])
        except Permanent as error:
            self.stats.refused += 1
            self.stats.last_error = f"{type(error).__name__}: {error}"

    def _went_away(self, error: BaseException) -> None:
        self.stats.away = True
        self.stats.last_error = f"{type(error).__name__}: {error}"
        self._more.set()
        self._notify()

    def _shed(self, line: _Line, records: int) -> None:
        self.stats.shed[line.topic.name] = self.stats.shed.get(line.topic.name, 0) + records

    def _count(self) -> None:
        self.stats.waiting = sum(line.end - line.position for line in self._lines.values())

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # From here on: the spool's thread.

    def _find_lines(self) -> None:
        for name, topic in BY_NAME.items():
            if (self._root / name).exists():
                self._line(topic)

    def _line(self, topic: Topic) -> _Line:
        line = self._lines.get(topic.name)
        if line is None:
            log = SegmentedLog(
                self._root / topic.name, durable=False, segment_bytes=self._segment_bytes, segment_age=600.0
            )
            position = self._offsets.of(_GROUP, topic.name) or 0
            log.raise_floor(position)
            low, end = log.span()
            line = self._lines[topic.name] = _Line(topic, log, max(position, low), end)
        return line

    def _append(self, line: _Line, records: list[Record]) -> int:
        try:
            first = line.log.append(records)
        except DiskFull:
            self._make_room(self._settings.max_bytes // 8)
            first = line.log.append(records)
        self._grown += sum(record.size for record in records)
        # Looking at every file for each record would cost more than writing it.
        if self._grown * 4 >= self._segment_bytes:
            self._grown = 0
            line.log.rotate(self._clock())
            self._make_room(0)
        return first + len(records)

    def _make_room(self, extra: int) -> None:
        """Drop what was drained or is too old, then shed in order until the cap (less `extra`) holds."""
        oldest_ms = int((self._clock() - self._settings.max_age) * 1000)
        for line in self._lines.values():
            lost, _ = line.log.drop(line.position, oldest_ms, 1 << 62)
            self._lost(line, lost)
        self.stats.bytes = sum(line.log.size() for line in self._lines.values())
        over = self.stats.bytes - self._settings.max_bytes + extra
        for names in SHED_ORDER:
            for line in [self._lines[name] for name in names if name in self._lines]:
                if over <= 0:
                    return
                if len(line.log.bases()) == 1:
                    line.log.rotate(self._clock(), force=True)
                lost, freed = line.log.drop(line.position, 0, max(0, line.log.size() - over))
                self._lost(line, lost)
                over -= freed
                self.stats.bytes -= freed

    def _lost(self, line: _Line, lost: int) -> None:
        if lost:
            line.position = max(line.position, line.log.bases()[0])
            self._shed(line, lost)

    def _oldest(self) -> tuple[_Line, int, list[Record], int] | None:
        """(line, offset of the first, records, offset after the last) of the line whose head is the oldest."""
        chosen: _Line | None = None
        oldest = 0
        for line in list(self._lines.values()):
            if line.position >= line.end:
                continue
            head = line.log.read(line.position, 1, 1).found
            if not head:
                # Gone altogether: nothing to publish, only a position to move.
                return line, line.end, [], line.end
            at = head[0][1].timestamp_ms
            if chosen is None or at < oldest:
                chosen, oldest = line, at
        if chosen is None:
            return None
        found = chosen.log.read(chosen.position, 1000, self._settings.drain_bytes).found
        return chosen, found[0][0], [record for _, record in found], found[-1][0] + 1

    def _advance(self, line: _Line, position: int) -> None:
        self._offsets.commit([(_GROUP, line.topic.name, position)], durable=False)
        line.log.rotate(self._clock(), force=position >= line.end and line.log.size() > self._segment_bytes)
        line.log.drop(position, 0, 1 << 62)

    def _close_logs(self) -> None:
        for line in self._lines.values():
            line.log.close()
        self._offsets.close()

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._loop.run_in_executor(self._pool, function, *arguments)
        except Corrupt as error:
            raise Unavailable(f"expected a readable spool, found {error}; it was put aside, call again", 0.1) from error
