# SPDX-License-Identifier: Apache-2.0
"""Compacted topics, followed once per process: one reader without a group, a table of the newest records, a view per follower.

::

    one consumer ─► table of each topic (key -> newest record) ─► views: what the table holds, then each change

A follower that comes later begins with the table. One that wants some keys only has their partitions read and their records
kept, as long as nobody wants more. Views of a topic that was deleted and made anew are told so, and begin anew.
Neighbours: `broadcast` (what reads), `bus.follow` (who reads).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from bus.contract import Delivery, Gap, Partition
from bus.interruptible import take_or
from bus.kafka.batches import partition_of
from bus.kafka.broadcast import BroadcastSubscription
from bus.kafka.connection import BrokerLink
from bus.kafka.losses import GapList
from bus.kafka.offsets import BrokerOffsets
from schemas.errors import HauberkError, Refused, Unavailable
from schemas.topics import Topic

_MOST: Final = 1000
_TOMBSTONE_MS: Final = 24 * 3600 * 1000
"""As long as brokers keep them, and somebody who was away may still have to hear of one."""
_MOST_TOMBSTONES: Final = 1000
_MOST_QUEUED: Final = 200_000
"""Changes that a view which does not take may have before it; then it begins anew."""
_PAUSE: Final = 0.5


class _FollowedTable:
    """One topic. `keys` None: all. `position`: offset of the next record to read, per partition; `gaps`: what was left out up to there."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.keys: set[bytes] | None = set()
        self.rows: dict[bytes, Delivery] = {}
        self.position: dict[Partition, int] = {}
        self.views: set[TableView] = set()
        self.gaps = GapList()
        self.tombstones = 0
        self.read = False
        """Whether `position` says where the table stands; before that, its being empty says nothing."""

    @property
    def unread(self) -> bool:
        """Whether somebody wants anything of it and it is not known yet how far it was read."""
        return not self.read and (self.keys is None or bool(self.keys))

    def clear(self) -> None:
        """Forget everything: it is read again from the beginning."""
        self.rows.clear()
        self.position.clear()
        self.gaps.clear()
        self.tombstones = 0
        self.read = False

    def partitions(self, count: int) -> set[int]:
        return set(range(count)) if self.keys is None else {partition_of(key, count) for key in self.keys}

    def put(self, delivery: Delivery) -> None:
        key = delivery.record.key
        if self.keys is not None and key not in self.keys:
            return
        old = self.rows.pop(key, None)
        self.tombstones += (delivery.record.value is None) - (old is not None and old.record.value is None)
        # In order of arrival, which is the order of offsets within a partition.
        self.rows[key] = delivery
        if self.tombstones > _MOST_TOMBSTONES:
            self._sweep()

    def _sweep(self) -> None:
        oldest = time.time() * 1000 - _TOMBSTONE_MS
        dead = [k for k, row in self.rows.items() if row.record.value is None and row.record.timestamp_ms < oldest]
        for key in dead:
            del self.rows[key]
        self.tombstones -= len(dead)


class SharedTables:
    """All tables of one bus."""

    def __init__(self, link: BrokerLink, offsets: BrokerOffsets) -> None:
        self._link = link
        self._offsets = offsets
        self._tables: dict[str, _FollowedTable] = {}
        self._gaps = GapList()
        """Of all that was ever read, so that each is counted once, however often topics are read from the beginning."""
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    async def view(self, topics: Sequence[Topic], keys: Collection[bytes] | None) -> TableView:
        """Raises what the brokers' absence raises. Whoever has it calls `leave`."""
        view = TableView(self, topics, keys)
        changed = False
        for topic in topics:
            table = self._tables.setdefault(topic.name, _FollowedTable(topic))
            if table.keys is not None and (keys is None or not set(keys) <= table.keys):
                table.keys = None if keys is None else table.keys | set(keys)
                # Views that are further skip what they have had.
                table.clear()
                changed = True
            table.views.add(view)
        if changed:
            self._changed.set()
        # One that is being read, or that failed and is to be read anew, is not empty for whoever comes meanwhile.
        if changed or any(self._tables[name].unread for name in view.names):
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            opened.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._waiting.append(opened)
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._run())
            try:
                await opened
            except BaseException:
                self.leave(view)
                raise
        view.begin()
        return view

    def leave(self, view: TableView) -> None:
        for name in view.names:
            table = self._tables.get(name)
            if table is not None:
                table.views.discard(view)
                if not table.views:
                    del self._tables[name]
                    self._changed.set()

    def table(self, name: str) -> _FollowedTable:
        return self._tables[name]

    async def close(self) -> None:
        for view in {view for table in self._tables.values() for view in table.views}:
            view.tell()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        reader: BroadcastSubscription | None = None
        try:
            while True:
                if not self._tables:
                    if reader is not None:
                        await reader.leave()
                        reader = None
                    # Somebody may have come meanwhile; from here to the end nobody can.
                    if not self._tables:
                        return
                try:
                    if reader is None or self._changed.is_set():
                        if reader is not None:
                            await reader.leave()
                        self._changed.clear()
                        reader = await self._opened()
                        continue
                    batch = await take_or(reader, _MOST, 5.0, self._changed)
                    if reader.remade:
                        self._gaps.clear()
                        raise Unavailable("expected a topic to go on where it was, it was made anew; read again")
                    if not self._changed.is_set():
                        self._apply(batch, reader.position)
                except HauberkError as error:
                    self._fail(error, anew=reader is not None and reader.remade > 0)
                    if reader is not None:
                        await reader.leave()
                        reader = None
                    wait = getattr(error, "retry_after", None) or _PAUSE
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._changed.wait()
        except BaseException as error:
            self._fail(Unavailable(f"expected to follow compacted topics, got {error!r}"), anew=True)
            raise
        finally:
            if reader is not None:
                await reader.leave()

    async def _opened(self) -> BroadcastSubscription:
        tables = dict(self._tables)
        waiting, self._waiting = self._waiting, []
        try:
            reader = BroadcastSubscription(
                self._link, self._offsets, [table.topic for table in tables.values()], "earliest",
                wanted=lambda topic, number, count: number in tables[topic.name].partitions(count),
                kept={place: at for table in tables.values() for place, at in table.position.items()},
            )  # fmt: skip
            reader.lost = self._lost
            await reader.join()
        except BaseException as error:
            for one in waiting:
                if not one.done():
                    one.set_exception(error) if isinstance(error, Exception) else one.cancel()
            raise
        self._link.stats.reads += 1
        for place, offset in reader.position.items():
            tables[place[0]].position[place] = offset
        if not self._changed.is_set():
            for table in tables.values():
                table.read = True
            # Who came while it was opened wants nothing else.
            waiting += self._waiting
            self._waiting = []
        for one in waiting:
            if not one.done():
                one.set_result(None)
        return reader

    def _apply(self, batch: list[Delivery], position: Mapping[Partition, int]) -> None:
        for delivery in batch:
            self._tables[delivery.topic.name].put(delivery)
        for place, offset in position.items():
            if place not in (table := self._tables[place[0]]).position:
                for view in table.views:
                    view.widen(place)
            table.position[place] = offset
        for view in {view for table in self._tables.values() for view in table.views}:
            view.add(batch)

    def _lost(self, gap: Gap) -> None:
        if (news := self._gaps.add(gap)) is not None:
            self._link.losses.take(news)
        table = self._tables.get(gap.topic)
        if table is not None:
            table.gaps.add(gap)
            for view in table.views:
                view.lose(gap)

    def _fail(self, error: HauberkError, *, anew: bool) -> None:
        for table in self._tables.values():
            if anew:
                table.clear()
            for view in table.views:
                view.fail(error, anew)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_exception(error)


class TableView:
    """See `contract.Subscription`: a broadcast reader's."""

    disowned = 0
    revoking: frozenset[Partition] = frozenset()
    joining = False

    def __init__(self, tables: SharedTables, topics: Sequence[Topic], keys: Collection[bytes] | None) -> None:
        self._tables = tables
        self.names = [topic.name for topic in topics]
        self._keys = None if keys is None else frozenset(keys)
        self._queue: deque[Delivery] = deque()
        self._next: dict[Partition, int] = {}
        self._gaps = GapList()
        self._begun = False
        self._news = asyncio.Event()
        self._error: HauberkError | None = None
        self._over = False

    def begin(self) -> None:
        """From here on: what the tables hold, then what comes."""
        for name in self.names:
            table = self._tables.table(name)
            self._next |= table.position
            self._gaps.join(table.gaps)
            self._queue.extend(row for row in table.rows.values() if self._wants(row))

        self._begun = True

    def lose(self, gap: Gap) -> None:
        """`gap` was found. What was found before it began it has from the tables."""
        if self._begun:
            self._gaps.add(gap)

    def widen(self, place: Partition) -> None:
        """A topic has got `place`: it belongs to a view that has begun."""
        if self._next:
            self._next.setdefault(place, 0)

    def add(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            place = (delivery.topic.name, delivery.partition)
            if place not in self._next or delivery.offset < self._next[place]:
                continue
            self._next[place] = delivery.offset + 1
            if self._wants(delivery):
                self._queue.append(delivery)
        if len(self._queue) > _MOST_QUEUED:
            self.fail(Unavailable("expected a follower to take what changes, it did not for long; read again"), True)
        self.tell()

    def _wants(self, delivery: Delivery) -> bool:
        return self._keys is None or delivery.record.key in self._keys

    def fail(self, error: HauberkError, anew: bool) -> None:
        """The next `take` raises; `anew`: every one from now on."""
        self._error = error
        if anew:
            self._over = True
            self._queue.clear()
        self.tell()

    def tell(self) -> None:
        self._news.set()

    @property
    def position(self) -> Mapping[Partition, int]:
        found = dict(self._next)
        for name in self.names:
            # Past records that nobody here wants, or that are no more.
            for place, offset in self._tables.table(name).position.items():
                if place in found:
                    found[place] = max(found[place], offset)
        for delivery in reversed(self._queue):
            found[delivery.topic.name, delivery.partition] = delivery.offset
        return found

    @property
    def owned(self) -> Mapping[Partition, int]:
        return dict.fromkeys(self._next, 1)

    @property
    def skipped(self) -> int:
        return self._gaps.skipped

    @property
    def gaps(self) -> Sequence[Gap]:
        return tuple(self._gaps.newest)

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        await asyncio.sleep(0)
        deadline = time.monotonic() + max_wait
        while True:
            if self._tables._link.closed:
                raise Refused("expected an open bus, this one was closed; open another")
            if self._queue and max_records:
                return [self._queue.popleft() for _ in range(min(max_records, len(self._queue)))]
            if self._error is not None:
                error = self._error
                if not self._over:
                    self._error = None
                raise error
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        return

    async def release(self) -> None:
        return

    async def leave(self) -> None:
        self._tables.leave(self)
