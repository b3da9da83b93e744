# SPDX-License-Identifier: Apache-2.0
"""A bus in a dict: small, honest, for the unit tests of other rooms and for `memory` in settings.

It keeps every promise of the contract except surviving the process. It must never be kinder than the real ones:
values are bytes, order is per key, groups are independent, repeats happen after a missing commit, a full bus refuses, and
with several `partitions` a new member takes its share from the others. Failures are put in by hand: `bus.fail(error)`
makes the next calls raise it. Neighbours: `contract`, `membership` (who reads what), `bus.embedded.bus`.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated
from zlib import crc32

import msgspec

from bus.contract import Delivery, Gap, Partition, Record, Start, Subscription
from bus.membership import Member, Membership
from bus.record_size import measure
from schemas.errors import Backpressure, HauberkError, Refused
from schemas.topics import Topic


class MemorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="memory"):
    """A bus in memory; its records end with the process."""

    max_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=1 << 50, description="Bytes kept over all topics; publishing past it is refused.", examples=[1]
        ),
    ] = 64 << 20
    partitions: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=1024, description="Partitions per topic, no more than the topic table has.", examples=[3]
        ),
    ] = 1
    revoke_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=315_360_000,
            description="Seconds a member has to release partitions that another member is to get.",
            examples=[5.0],
        ),
    ] = 30.0
    member_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=315_360_000,
            description="Seconds without asking for records after which a member leaves the group.",
            examples=[60.0],
        ),
    ] = 300.0


class _Log:
    """One partition: deliveries in order of offset; everything under `base` was dropped, `end` comes next."""

    def __init__(self) -> None:
        self.rows: list[Delivery] = []
        self.base = 0
        self.end = 0

    def index(self, offset: int) -> int:
        return bisect_left(self.rows, offset, key=lambda row: row.offset)


class MemoryBus:
    """See `contract.Bus`. `published` counts records per topic name, for tests."""

    def __init__(self, settings: MemorySettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings or MemorySettings()
        self._clock = clock
        self._logs: dict[str, list[_Log]] = {}
        self._offsets: dict[str, dict[Partition, int]] = {}
        self._groups: dict[str, Membership] = {}
        self._failures: deque[tuple[HauberkError, str]] = deque()
        self._wake = asyncio.Event()
        self._bytes = 0
        self._closed = False
        self.published: dict[str, int] = {}

    def fail(self, error: HauberkError, *, call: str = "publish", times: int = 1) -> None:
        """The next `times` calls of `call` ("publish", "subscribe", "take", "commit", "end", "latest") raise `error` and do nothing."""
        self._failures.extend([(error, call)] * times)

    def drop(self, topic: Topic, before: int) -> None:
        """Forget records of `topic` with an offset under `before`, as retention would; lagging readers see a gap."""
        for log in self._of(topic):
            count = log.index(before)
            self._bytes -= sum(row.record.size for row in log.rows[:count])
            del log.rows[:count]
            log.base = max(log.base, min(before, log.end))

    def records(self, topic: Topic) -> list[Record]:
        """Everything kept on `topic`, in order per partition: what a test looks at."""
        return [row.record for log in self._of(topic) for row in log.rows]

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
        logs = self._of(topic)
        now = time.time_ns() // 1_000_000
        for record in records:
            if not record.timestamp_ms:
                record = msgspec.structs.replace(record, timestamp_ms=now)
            number = crc32(record.key) % len(logs)
            log = logs[number]
            log.rows.append(Delivery(topic, number, log.end, record))
            log.end += 1
        self._bytes += size
        self.published[topic.name] = self.published.get(topic.name, 0) + len(records)
        self._notify()
        await asyncio.sleep(0)  # A real bus always yields here; code that depends on not yielding must fail in tests.

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[Subscription]:
        self._check("subscribe")
        subscription = _MemorySubscription(self, topics, group)
        begin = {
            (topic.name, number): log.end if start == "latest" else log.base
            for topic in topics
            for number, log in enumerate(self._of(topic))
        }
        if group is None:
            subscription.begin(begin)
        else:
            offsets = self._offsets.setdefault(group, {})
            for partition, offset in begin.items():
                offsets.setdefault(partition, offset)
            settings = self._settings
            self._groups.setdefault(group, Membership(settings.revoke_seconds, settings.member_seconds))
            subscription.join()
        try:
            yield subscription
        finally:
            subscription.leave()

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        self._check("latest")
        if not topic.compacted:
            raise Refused(f"expected a compacted topic, got `{topic.name}`; read it with a subscription")
        newest = {row.record.key: row.record for log in self._of(topic) for row in log.rows}
        return {key: record for key, record in newest.items() if record.value is not None}

    async def end(self, topic: Topic) -> dict[int, int]:
        self._check("end")
        return {number: log.end for number, log in enumerate(self._of(topic))}

    async def count(self, topic: Topic) -> int:
        self._check("count")
        return sum(len(log.rows) for log in self._of(topic))

    async def lag(self, group: str) -> dict[str, int]:
        lags: dict[str, int] = {}
        for (name, number), offset in self._offsets.get(group, {}).items():
            log = self._logs[name][number]
            lags[name] = lags.get(name, 0) + len(log.rows) - log.index(offset)
        return lags

    async def groups(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for group, offsets in self._offsets.items():
            sums = found.setdefault(group, {})
            for (name, _), offset in offsets.items():
                sums[name] = sums.get(name, 0) + offset
        return found

    async def forget(self, group: str) -> None:
        self._offsets.pop(group, None)

    def damaged(self) -> int:
        return 0

    async def close(self) -> None:
        self._closed = True
        self._notify()

    def _of(self, topic: Topic) -> list[_Log]:
        if topic.name not in self._logs:
            self._logs[topic.name] = [_Log() for _ in range(min(topic.partitions, self._settings.partitions))]
        return self._logs[topic.name]

    def _forget_read(self) -> None:
        for name, logs in self._logs.items():
            for number, log in enumerate(logs):
                read = [offsets[name, number] for offsets in self._offsets.values() if (name, number) in offsets]
                low = min(read, default=log.end)
                if log.rows and log.rows[0].topic.compacted:
                    newest = {row.record.key: row.offset for row in log.rows}
                    log.rows = [row for row in log.rows if newest[row.record.key] == row.offset or row.offset >= low]
                else:
                    del log.rows[: log.index(low)]
                    log.base = max(log.base, low)
        self._bytes = sum(row.record.size for logs in self._logs.values() for log in logs for row in log.rows)

    def _check(self, call: str) -> None:
        if self._closed:
            raise Refused(f"expected an open bus for `{call}`, this one was closed; open another")
        if self._failures and self._failures[0][1] == call:
            raise self._failures.popleft()[0]

    def _notify(self) -> None:
        # A new event for each wave: a reader that is late to wait never misses the set() of its own wave.
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()


class _MemorySubscription:
    joining = False

    def __init__(self, bus: MemoryBus, topics: Sequence[Topic], group: str | None) -> None:
        self._bus = bus
        self._group = group
        self._member = Member({topic.name: len(bus._of(topic)) for topic in topics}, bus._clock())
        self._turns: deque[Partition] = deque()
        self._position: dict[Partition, int] = {}
        self._grants: dict[Partition, int] = {}
        self._announced: set[Partition] = set()
        self._gaps: deque[Gap] = deque(maxlen=100)
        self.skipped = 0
        self.disowned = 0

    @property
    def position(self) -> dict[Partition, int]:
        return dict(self._position)

    @property
    def owned(self) -> dict[Partition, int]:
        return dict(self._grants)

    @property
    def revoking(self) -> frozenset[Partition]:
        return frozenset(self._member.revoking)

    @property
    def gaps(self) -> Sequence[Gap]:
        return tuple(self._gaps)

    @property
    def _membership(self) -> Membership:
        assert self._group is not None
        return self._bus._groups[self._group]

    def begin(self, position: dict[Partition, int]) -> None:
        self._position = position
        self._grants = dict.fromkeys(position, 1)
        self._turns.extend(position)

    def join(self) -> None:
        self._changed(self._membership.join(self._member, self._bus._clock()))

    def leave(self) -> None:
        if self._group is not None:
            self._changed(self._membership.leave(self._member, self._bus._clock()))

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        self._member.idle_since = None
        try:
            await asyncio.sleep(0)
            return await self._take(max_records, time.monotonic() + max_wait)
        finally:
            self._member.idle_since = self._bus._clock()

    async def _take(self, max_records: int, deadline: float) -> list[Delivery]:
        while True:
            self._bus._check("take")
            wake = self._bus._wake
            if self._group is not None:
                self.join()  # It was expelled if it had not asked for long.
                self._settle()
            batch = self._look(max_records) if max_records else []
            news = not self.revoking <= self._announced
            self._announced = set(self.revoking)
            left = deadline - time.monotonic()
            if batch or news or left <= 0:
                return batch
            due = None if self._group is None else self._membership.due()
            try:
                async with asyncio.timeout(left if due is None else min(left, max(0.001, due - self._bus._clock()))):
                    await wake.wait()
            except TimeoutError:
                continue

    def _settle(self) -> None:
        """Know what this member has by now."""
        self._changed(self._membership.settle(self._bus._clock()))
        owned = self._member.owned
        if self._grants == owned:
            return
        assert self._group is not None
        for partition in [one for one, grant in self._grants.items() if owned.get(one) != grant]:
            del self._grants[partition], self._position[partition]
            self._turns.remove(partition)
        offsets = self._bus._offsets.get(self._group, {})
        for partition in owned.keys() - self._grants.keys():
            self._grants[partition] = owned[partition]
            self._position[partition] = offsets.get(partition, 0)
            self._turns.append(partition)

    def _changed(self, changed: bool) -> None:
        if changed:
            self._bus._notify()

    def _look(self, max_records: int) -> list[Delivery]:
        batch: list[Delivery] = []
        # The partition that was first goes last: a busy one must not starve its neighbours.
        self._turns.rotate(-1)
        for place in self._turns:
            if place in self._member.revoking:
                continue
            log = self._bus._logs[place[0]][place[1]]
            if self._position[place] < log.base:
                gap = Gap(*place, self._position[place], log.base - 1, "retention deleted them first")
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
        self._settle()
        done: dict[Partition, int] = {}
        for delivery in deliveries or ():
            place = (delivery.topic.name, delivery.partition)
            if place in self._position:
                done[place] = max(done.get(place, 0), delivery.offset + 1)
            else:
                self.disowned += 1
        offsets = self._bus._offsets.setdefault(self._group, {})
        for place, offset in (self._position if deliveries is None else done).items():
            offsets[place] = max(offsets.get(place, 0), offset)
        await asyncio.sleep(0)

    async def release(self) -> None:
        if self._group is not None:
            self._changed(self._membership.release(self._member, self._bus._clock()))
            self._settle()
        await asyncio.sleep(0)
