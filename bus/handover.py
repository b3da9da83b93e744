# SPDX-License-Identifier: Apache-2.0
"""Raw frames from the sensor to the processor of one process, in memory: the log takes only what memory has no room for.

::

    publish ─► memory, in order, until committed ──────────────► take
        └ no room, or another process reads the topic ─► log ──► take, once memory is empty

Order holds: what is in memory is older than what is in the log behind it, and memory takes again only when the log is read to its
end. Memory counts as partition 1 of the topic, the log is 0. What is handed over is lost with the process; `outstanding` is called
with the end and the committed count, so that the sensor can leave word of it (docs/bus.md). Must never
hold more than `max_bytes`. Neighbours: `embedded.bus` (what it wraps), `embedded.handed`, `embedded.readers`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager

import msgspec

from bus.contract import Delivery, Gap, Partition, Record, Start, Subscription
from bus.embedded.bus import EmbeddedBus, stamped
from bus.embedded.handed import PARTITION, HandedOverFile
from bus.embedded.reader import EmbeddedSubscription
from bus.record_size import measure
from schemas.stats import Gauge
from schemas.topics import EVENTS_RAW, TELEMETRY, Topic

log = logging.getLogger(__name__)

_TAKE_BYTES = 1 << 20
_CHUNK = 500
"""Records per publish."""
_REWRITTEN = 64 << 20
"""Bytes of the log that the end may write again for the sake of order: a quarter of a second of it, and held in memory."""


class HandoverStats(msgspec.Struct):
    """Records since open. `handed`: in memory; `spilled`: to the log, for want of room or because somebody else reads them;
    `waiting_bytes`: handed over and not committed."""

    handed: int = 0
    spilled: int = 0
    waiting_bytes: Gauge = 0


class HandoverBus:
    """An embedded bus whose `events.raw` stays in memory between one publisher and one group of this process."""

    def __init__(self, inner: EmbeddedBus, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._file = HandedOverFile(inner.directory)
        self._waiting: deque[Delivery] = deque()
        self._committed = self.end_handed = 0
        self._group = ""
        self._reader: _HandoverSubscription | None = None
        self._others = 0
        # Until the log is read to its end: a run before this one may have left something.
        self._in_log = True
        self._writing = 0
        self._log_end: int | None = None
        self._registered: set[str] | None = None
        self._logs = 0
        self._watched = False
        self.outstanding: Callable[[int, int], None] = lambda end, committed: None
        self.handover = HandoverStats()

    @property
    def held_bytes(self) -> int:
        """Of the newest records, see `EmbeddedBus`; what is handed over is counted in `handover`."""
        return self._inner.held_bytes

    @property
    def stats(self) -> msgspec.Struct:
        """The log's."""
        return self._inner.stats

    def logged(self) -> bool:
        """Whether anybody, here or elsewhere, now or later, reads `telemetry`."""
        if self._logs or self._registered is None or TELEMETRY.name in self._registered:
            return True
        return self._inner.readers.elsewhere(TELEMETRY.name)

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        if topic.name != EVENTS_RAW.name:
            await self._inner.publish(topic, records)
            return
        self._inner.check_open("publish")
        size = measure(topic, records, self._inner.record_bytes)
        if self._takes(size):
            for record in stamped(records):
                self._waiting.append(Delivery(topic, PARTITION, self.end_handed, record))
                self.end_handed += 1
            self.handover.handed += len(records)
            self.handover.waiting_bytes += size
            self._say()
            if self._reader is not None:
                self._reader.wake()
            return
        self._in_log = True
        self._writing += 1
        try:
            await self._inner.publish(topic, records)
            self._log_end = (await self._inner.end(topic))[0]
        finally:
            self._writing -= 1
        self.handover.spilled += len(records)

    def _takes(self, size: int) -> bool:
        # Also while the log is read: who stands there gets what is written there, and is to get all of it.
        watched = self._inner.readers.elsewhere(EVENTS_RAW.name)
        if self._watched and not watched:
            # It may have left a group behind, which reads on when it comes back.
            self._registered = None
        self._watched = watched
        if watched or self._reader is None or self._in_log or self._others or self._registered is None:
            return False
        return not self._registered_elsewhere and self.handover.waiting_bytes + size <= self._max_bytes

    @property
    def watched(self) -> bool:
        """Whether somebody beside the one reader here gets raw frames."""
        return self._watched or self._registered_elsewhere or self._others > 0

    @property
    def _registered_elsewhere(self) -> bool:
        return EVENTS_RAW.name in (self._registered or ())

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[Subscription]:
        names = [topic.name for topic in topics]
        mine = names == [EVENTS_RAW.name] and group is not None and self._reader is None
        with ExitStack() as stack:
            if TELEMETRY.name in names:
                self._logs += 1
                stack.callback(self._fewer, "_logs")
            if EVENTS_RAW.name in names and not mine:
                self._others += 1
                stack.callback(self._fewer, "_others")
            async with self._inner.subscribe(topics, group, start, keys) as inner:
                if not mine:
                    yield inner
                    return
                assert group is not None
                self._group = group
                await self.look()
                if self._log_end is None:
                    self._log_end = (await self._inner.end(EVENTS_RAW))[0]
                self._reader = reader = _HandoverSubscription(self, inner, self._committed)
                try:
                    yield reader
                finally:
                    self._reader = None

    async def look(self) -> None:
        """Learn which topics groups other than this process's reader have offsets on."""
        groups = await self._inner.groups()
        raw = (
            {EVENTS_RAW.name}
            if any(EVENTS_RAW.name in found for name, found in groups.items() if name != self._group)
            else set()
        )
        logs = {TELEMETRY.name} if any(TELEMETRY.name in found for found in groups.values()) else set()
        self._registered = raw | logs

    async def spill(self) -> None:
        """Write what is in memory and not committed to the log: for the next start, since nobody here reads it any more. What the log
        has and nobody read is newer: it is written again behind that, up to `_REWRITTEN`, so that the next start has all in order."""
        left = [delivery.record for delivery in self._waiting]
        self._in_log = True
        if not left:
            return
        begin, end = await self._inner.place(self._group, EVENTS_RAW), (await self._inner.end(EVENTS_RAW))[0]
        newer = [] if self.watched else await self._unread(begin, end)
        await self._inner.publish(EVENTS_RAW, left)
        for start in range(0, len(newer), _CHUNK):
            await self._inner.publish(EVENTS_RAW, newer[start : start + _CHUNK])
        if newer:
            # Last: who is killed before it reads some of them twice.
            await self._inner.commit(self._group, {EVENTS_RAW.name: (EVENTS_RAW, end)})
        self.handover.spilled += len(left)
        self.settled(self.end_handed)

    async def _unread(self, begin: int, end: int) -> list[Record]:
        """What the log has from `begin` to `end`; nothing where that is too much to be written again, or where some of it is lost."""
        found: list[Record] = []
        size = 0
        while begin < end:
            rows = [row for row in await self._inner.read(EVENTS_RAW, begin, _CHUNK, _TAKE_BYTES) if row[0] < end]
            if [offset for offset, _ in rows] != list(range(begin, begin + len(rows))) or not rows:
                # The reader of the next start meets the hole, and tells it; the commit behind it would pass over that.
                log.warning(
                    "raw frames of this end are read after newer ones at the next start: some of those are lost"
                )
                return []
            begin = rows[-1][0] + 1
            found += [record for _, record in rows]
            size += sum(record.size for _, record in rows)
            if size > _REWRITTEN:
                log.warning(
                    "raw frames of this end are read after newer ones at the next start: more than %d MiB of those lie in the log",
                    _REWRITTEN >> 20,
                )  # fmt: skip
                return []
        return found

    # For the subscription.

    def newer(self, offset: int, most: int) -> list[Delivery]:
        """At most `most` deliveries from `offset` on."""
        found: list[Delivery] = []
        size = 0
        first = offset - self._committed
        for index in range(max(0, first), len(self._waiting)):
            if len(found) >= most or size >= _TAKE_BYTES:
                break
            found.append(self._waiting[index])
            size += found[-1].record.size
        return found

    def settled(self, committed: int) -> None:
        """Everything below `committed` is done."""
        while self._waiting and self._waiting[0].offset < committed:
            self.handover.waiting_bytes -= self._waiting.popleft().record.size
        self._committed = max(self._committed, committed)
        self._say()

    def log_read(self, position: int) -> None:
        """The reader stands at `position` of the log."""
        if self._in_log and not self._writing and self._log_end is not None and position >= self._log_end:
            self._in_log = False

    @property
    def looks(self) -> bool:
        """Whether it is not known which groups there are."""
        return self._registered is None

    def _say(self) -> None:
        self._file.say(self.end_handed, self._committed, self._group)
        self.outstanding(self.end_handed, self._committed)

    def _fewer(self, what: str) -> None:
        setattr(self, what, getattr(self, what) - 1)

    # The rest is the log's.

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        return await self._inner.latest(topic)

    async def end(self, topic: Topic) -> dict[int, int]:
        return await self._inner.end(topic)

    async def count(self, topic: Topic) -> int:
        return await self._inner.count(topic)

    async def lag(self, group: str) -> dict[str, int]:
        return await self._inner.lag(group)

    async def groups(self) -> dict[str, dict[str, int]]:
        return await self._inner.groups()

    async def forget(self, group: str) -> None:
        await self._inner.forget(group)
        self._registered = None

    def damaged(self) -> int:
        return self._inner.damaged()

    async def close(self) -> None:
        await self._inner.close()
        self._file.close()


class _HandoverSubscription:
    """See `contract.Subscription`: the log's, and what is handed over."""

    def __init__(self, bus: HandoverBus, inner: EmbeddedSubscription, begin: int) -> None:
        self._bus, self._inner = bus, inner
        self._next = begin
        self._news = self._interrupted = False

    def wake(self) -> None:
        self._news = True
        self._inner.interrupt()

    def interrupt(self) -> None:
        """See `bus.interruptible`."""
        self._interrupted = True
        self._inner.interrupt()

    @property
    def position(self) -> Mapping[Partition, int]:
        return {**self._inner.position, (EVENTS_RAW.name, PARTITION): self._next}

    @property
    def owned(self) -> Mapping[Partition, int]:
        return {**self._inner.owned, (EVENTS_RAW.name, PARTITION): 1}

    @property
    def revoking(self) -> frozenset[Partition]:
        return self._inner.revoking

    @property
    def joining(self) -> bool:
        return self._inner.joining

    @property
    def disowned(self) -> int:
        return self._inner.disowned

    @property
    def skipped(self) -> int:
        return self._inner.skipped

    @property
    def gaps(self) -> Sequence[Gap]:
        return self._inner.gaps

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        if max_records == 0:
            return await self._inner.take(0, max_wait)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait
        self._interrupted = False
        if self._bus.looks:
            await self._bus.look()
        while True:
            # Cleared strictly before looking: what comes after the look sets it again.
            self._news = False
            batch = self._bus.newer(self._next, max_records)
            if batch:
                self._next = batch[-1].offset + 1
                return batch
            self._read()
            # Not a wait when it was interrupted since the look at which groups there are.
            wait = 0.0 if self._interrupted else max(0.0, deadline - loop.time())
            rows = await self._inner.take(max_records, wait)
            self._read()
            if rows or self._interrupted or (loop.time() >= deadline and not self._news):
                return rows

    def _read(self) -> None:
        position = self._inner.position.get((EVENTS_RAW.name, 0))
        if position is not None:
            self._bus.log_read(position)

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        if deliveries is None:
            self._bus.settled(self._next)
            await self._inner.commit()
            return
        handed = [delivery.offset + 1 for delivery in deliveries if delivery.partition == PARTITION]
        logged = [delivery for delivery in deliveries if delivery.partition != PARTITION]
        if logged:
            await self._inner.commit(logged)
        if handed:
            self._bus.settled(max(handed))

    async def release(self) -> None:
        await self._inner.release()
