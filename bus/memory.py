# SPDX-License-Identifier: Apache-2.0
"""A bus in a dict: small, honest, for the unit tests of other rooms and for `memory` in settings.

It keeps every promise of the contract except surviving the process. It must never be kinder than the real ones:
values are bytes, order is per key, groups are independent, repeats happen after a missing commit, a full bus refuses.
Failures are put in by hand: `bus.fail(error)` makes the next calls raise it. Neighbours: `contract`, `embedded`.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from bus.contract import Delivery, Gap, Record, Start, Subscription
from bus.rows import measure
from schemas.errors import Backpressure, HauberkError, Refused
from schemas.topics import Topic


class MemorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="memory"):
    """The bus that forgets everything when the process ends."""

    max_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=1 << 50, description="Bytes kept over all topics; publishing past it is refused.", examples=[1]
        ),
    ] = 64 << 20


class _Log:
    """One topic: deliveries in order of offset; everything under `base` was dropped, `end` comes next."""

    def __init__(self) -> None:
        self.rows: list[Delivery] = []
        self.base = 0
        self.end = 0

    def index(self, offset: int) -> int:
        return bisect_left(self.rows, offset, key=lambda row: row.offset)


class MemoryBus:
    """See `contract.Bus`. One partition per topic. `published` counts records per topic name, for tests."""

    def __init__(self, settings: MemorySettings | None = None) -> None:
        self._settings = settings or MemorySettings()
        self._logs: dict[str, _Log] = {}
        self._offsets: dict[str, dict[str, int]] = {}
        self._members: dict[tuple[str, str], deque[object]] = {}
        self._failures: deque[tuple[HauberkError, str]] = deque()
        self._wake = asyncio.Event()
        self._bytes = 0
        self._closed = False
        self.published: dict[str, int] = {}

    def fail(self, error: HauberkError, *, call: str = "publish", times: int = 1) -> None:
        """The next `times` calls of `call` ("publish", "take", "commit") raise `error` and do nothing."""
        self._failures.extend([(error, call)] * times)

    def drop(self, topic: Topic, before: int) -> None:
        """Forget records of `topic` with an offset under `before`, as retention would; lagging readers see a gap."""
        log = self._log(topic)
        count = log.index(before)
        self._bytes -= sum(row.record.size for row in log.rows[:count])
        del log.rows[:count]
        log.base = max(log.base, min(before, log.end))

    def records(self, topic: Topic) -> list[Record]:
        """Everything kept on `topic`, in order: what a test looks at."""
        return [row.record for row in self._log(topic).rows]

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        self._check("publish")
        size = measure(topic, records, self._settings.max_bytes)
        if self._bytes + size > self._settings.max_bytes:
            self._forget_read()
        if self._bytes + size > self._settings.max_bytes:
            raise Backpressure(
                f"`{topic.name}`: {self._bytes + size} bytes would be kept, the cap is `max_bytes` "
                f"{self._settings.max_bytes}; read and drop first",
                retry_after=0.05,
            )
        log = self._log(topic)
        now = time.time_ns() // 1_000_000
        for record in records:
            if not record.timestamp_ms:
                record = msgspec.structs.replace(record, timestamp_ms=now)
            log.rows.append(Delivery(topic, 0, log.end, record))
            log.end += 1
        self._bytes += size
        self.published[topic.name] = self.published.get(topic.name, 0) + len(records)
        self._notify()
        await asyncio.sleep(0)  # A real bus always yields here; code that depends on not yielding must fail in tests.

    @asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], group: str | None, start: Start = "committed"
    ) -> AsyncIterator[Subscription]:
        self._check("subscribe")
        member = object()
        if group is not None:
            offsets = self._offsets.setdefault(group, {})
            for topic in topics:
                log = self._log(topic)
                offsets.setdefault(topic.name, log.end if start == "latest" else log.base)
                self._members.setdefault((group, topic.name), deque()).append(member)
        subscription = _MemorySubscription(self, topics, group, start, member)
        try:
            yield subscription
        finally:
            if group is not None:
                for topic in topics:
                    self._members[group, topic.name].remove(member)
                self._notify()

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        if not topic.compacted:
            raise Refused(f"expected a compacted topic, got `{topic.name}`; read it with a subscription")
        newest = {row.record.key: row.record for row in self._log(topic).rows}
        return {key: record for key, record in newest.items() if record.value is not None}

    async def end(self, topic: Topic) -> dict[int, int]:
        return {0: self._log(topic).end}

    async def lag(self, group: str) -> dict[str, int]:
        lags = {}
        for name, offset in self._offsets.get(group, {}).items():
            log = self._logs.get(name)
            lags[name] = 0 if log is None else len(log.rows) - log.index(offset)
        return lags

    async def groups(self) -> dict[str, dict[str, int]]:
        return {group: dict(offsets) for group, offsets in self._offsets.items()}

    async def forget(self, group: str) -> None:
        self._offsets.pop(group, None)

    async def close(self) -> None:
        self._closed = True
        self._notify()

    def _log(self, topic: Topic) -> _Log:
        return self._logs.setdefault(topic.name, _Log())

    def _forget_read(self) -> None:
        for name, log in self._logs.items():
            low = min((offsets[name] for offsets in self._offsets.values() if name in offsets), default=log.end)
            if log.rows and log.rows[0].topic.compacted:
                newest = {row.record.key: row.offset for row in log.rows}
                log.rows = [row for row in log.rows if newest[row.record.key] == row.offset or row.offset >= low]
            else:
                del log.rows[: log.index(low)]
                log.base = max(log.base, low)
        self._bytes = sum(row.record.size for log in self._logs.values() for row in log.rows)

    def _check(self, call: str) -> None:
        if self._closed:
            raise Refused(f"expected an open bus for `{call}`, this one was closed; open another")
        if self._failures and self._failures[0][1] == call:
            raise self._failures.popleft()[0]

    def _notify(self) -> None:
        # A new event for each wave: a reader that is late to wait never misses the set() of its own wave.
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    def _holds(self, group: str | None, topic: str, member: object) -> bool:
        return group is None or self._members[group, topic][0] is member


class _MemorySubscription:
    def __init__(self, bus: MemoryBus, topics: Sequence[Topic], group: str | None, start: Start, member: object):
        self._bus = bus
        self._topics = list(topics)
        self._group = group
        self._member = member
        self._position: dict[tuple[str, int], int] = {}
        self._gaps: deque[Gap] = deque(maxlen=100)
        self.skipped = 0
        if group is None:
            for topic in topics:
                log = bus._log(topic)
                self._position[topic.name, 0] = log.end if start == "latest" else log.base

    @property
    def position(self) -> dict[tuple[str, int], int]:
        return dict(self._position)

    @property
    def gaps(self) -> Sequence[Gap]:
        return tuple(self._gaps)

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        await asyncio.sleep(0)
        deadline = time.monotonic() + max_wait
        while True:
            self._bus._check("take")
            wake = self._bus._wake
            batch = self._take(max_records)
            left = deadline - time.monotonic()
            if batch or left <= 0:
                return batch
            try:
                async with asyncio.timeout(left):
                    await wake.wait()
            except TimeoutError:
                return []

    def _take(self, max_records: int) -> list[Delivery]:
        batch: list[Delivery] = []
        # The topic that was first goes last: a busy topic must not starve its neighbours.
        self._topics.append(self._topics.pop(0))
        for topic in self._topics:
            place = (topic.name, 0)
            if not self._bus._holds(self._group, topic.name, self._member):
                continue
            if place not in self._position and self._group is not None:
                self._position[place] = self._bus._offsets[self._group][topic.name]
            log = self._bus._log(topic)
            if self._position[place] < log.base:
                gap = Gap(topic.name, 0, self._position[place], log.base - 1, "retention")
                self._gaps.append(gap)
                self.skipped += gap.records
                self._position[place] = log.base
            first = log.index(self._position[place])
            rows = log.rows[first : first + max_records - len(batch)]
            if rows:
                self._position[place] = rows[-1].offset + 1
            batch += rows
        return batch

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        self._bus._check("commit")
        if self._group is None:
            return
        if deliveries is None:
            done = {name: offset for (name, _), offset in self._position.items()}
        else:
            done = {}
            for delivery in deliveries:
                done[delivery.topic.name] = max(done.get(delivery.topic.name, 0), delivery.offset + 1)
        offsets = self._bus._offsets.setdefault(self._group, {})
        for name, offset in done.items():
            offsets[name] = max(offsets.get(name, 0), offset)
        await asyncio.sleep(0)
