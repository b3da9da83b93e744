# SPDX-License-Identifier: Apache-2.0
"""A subscription of the embedded bus, and what it reads from: memory for the newest records, the log for the rest.

The log is read by one thread, shared by all subscriptions; positions change only in the last step of `take`, after
which nothing is awaited, so cancelling loses nothing. Neighbours: `bus` makes both and feeds `Channel`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from bus.contract import Delivery, Gap, Partition, Record
from bus.embedded.offsets import Lease
from schemas.errors import Refused
from schemas.topics import Topic

# How often a member that stands by looks whether the lease became free. Death of the holder is rare; 5 looks a second.
STANDBY_SECONDS = 0.2


class Channel:
    """What this process knows of one topic: its end, the newest records, and who waits for more."""

    def __init__(self, topic: Topic, max_bytes: int) -> None:
        self.topic = topic
        self.end = 0
        self.readers: set[EmbeddedSubscription] = set()
        self._max_bytes = max_bytes
        self._recent: deque[Delivery] = deque()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of the newest records."""
        return self._bytes

    def written(self, first: int, records: Sequence[Record]) -> None:
        """This process wrote `records` from offset `first` on."""
        if self._recent and self._recent[-1].offset + 1 != first:
            # Another process wrote in between; what lies before `first` comes from the log.
            self._recent.clear()
            self._bytes = 0
        if self.readers:
            for offset, record in enumerate(records, first):
                self._recent.append(Delivery(self.topic, 0, offset, record))
                self._bytes += record.size
            while self._bytes > self._max_bytes:
                self._bytes -= self._recent.popleft().record.size
        self.grown(first + len(records))

    def grown(self, end: int) -> None:
        """The log reaches to `end`, whoever wrote it."""
        if end > self.end:
            self.end = end
            for reader in self.readers:
                reader.wake()

    def recent(self, offset: int, max_records: int, max_bytes: int) -> list[Delivery] | None:
        """Deliveries from `offset` on if memory has that very one."""
        if not self._recent or offset < self._recent[0].offset or offset > self._recent[-1].offset:
            return None
        found: list[Delivery] = []
        size = 0
        start = offset - self._recent[0].offset
        for index in range(start, min(start + max_records, len(self._recent))):
            delivery = self._recent[index]
            found.append(delivery)
            size += delivery.record.size
            if size >= max_bytes:
                break
        return found

    def trim(self) -> None:
        """Forget what every reader here has taken: with readers that keep up, memory holds next to nothing."""
        low = min((reader.at(self.topic) for reader in self.readers), default=self.end)
        while self._recent and self._recent[0].offset < low:
            self._bytes -= self._recent.popleft().record.size


class LogSource(Protocol):
    """What a subscription asks of its bus."""

    async def read(self, topic: Topic, offset: int, max_records: int, max_bytes: int) -> list[tuple[int, Record]]: ...

    async def place(self, group: str, topic: Topic) -> int: ...

    async def commit(self, group: str, offsets: dict[str, tuple[Topic, int]]) -> None: ...

    def check_open(self, call: str) -> None: ...


class EmbeddedSubscription:
    """See `contract.Subscription`. A topic that a working member has is never asked back: with one partition per topic, moving
    it would only cost. It is lost when this reader hung and another one waited, or the directory was cleaned."""

    revoking: frozenset[Partition] = frozenset()
    joining = False

    def __init__(
        self,
        source: LogSource,
        channels: Sequence[Channel],
        group: str | None,
        leases: dict[str, Lease],
        take_bytes: int,
        beat_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._channels = list(channels)
        self._group = group
        self._leases = leases
        self._take_bytes = take_bytes
        self._beat_seconds = beat_seconds
        self._clock = clock
        self._position: dict[Partition, int] = {}
        self._owned: dict[Partition, int] = {}
        self._grants = 0
        self._gaps: deque[Gap] = deque(maxlen=100)
        self._waiter: asyncio.Future[None] | None = None
        self._woken = self._interrupted = False
        self._closed = False
        self.skipped = 0
        self.disowned = 0

    @property
    def position(self) -> dict[Partition, int]:
        return dict(self._position)

    @property
    def owned(self) -> dict[Partition, int]:
        return dict(self._owned)

    @property
    def gaps(self) -> Sequence[Gap]:
        return tuple(self._gaps)

    def at(self, topic: Topic) -> int:
        """Next offset in `topic`; a member that stands by holds nothing back."""
        return self._position.get((topic.name, 0), 1 << 62)

    def begin(self, topic: Topic, offset: int) -> None:
        self._grants += 1
        self._owned[topic.name, 0] = self._grants
        self._position[topic.name, 0] = offset

    def wake(self) -> None:
        self._woken = True
        if self._waiter is not None:
            _end(self._waiter)

    def interrupt(self) -> None:
        """Have the `take` that waits now return, with nothing when there is nothing. See `bus.interruptible`."""
        self._interrupted = True
        self.wake()

    def close(self) -> None:
        self._closed = True
        self.wake()
        for lease in self._leases.values():
            lease.release()

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        deadline = self._clock() + max_wait
        self._interrupted = False
        while True:
            if self._closed:
                raise Refused("expected an open subscription, this one was left; subscribe again")
            self._source.check_open("take")
            # Cleared strictly before looking: what arrives after the look sets it again.
            self._woken = False
            standby = await self._claim()
            batch = await self._look(max_records) if max_records else []
            if batch:
                return batch
            left = deadline - self._clock()
            if left <= 0 or self._interrupted:
                return []
            if not self._woken:
                await self._wait(min(left, STANDBY_SECONDS if standby else self._beat_seconds))

    async def _wait(self, seconds: float) -> None:
        # A future and a timer: half the cost of a timeout around an event.
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(seconds, _end, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            timer.cancel()

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        self._source.check_open("commit")
        if self._group is None:
            return
        self._keep_leases()
        done: dict[str, tuple[Topic, int]] = {}
        if deliveries is None:
            for channel in self._channels:
                place = (channel.topic.name, 0)
                if place in self._position:
                    done[channel.topic.name] = (channel.topic, self._position[place])
        else:
            for delivery in deliveries:
                topic = delivery.topic
                offset = delivery.offset + 1
                if (topic.name, 0) not in self._owned:
                    self.disowned += 1
                    continue
                if topic.name not in done or done[topic.name][1] < offset:
                    done[topic.name] = (topic, offset)
        if done:
            await self._source.commit(self._group, done)

    async def release(self) -> None:
        self._source.check_open("release")

    def _keep_leases(self) -> None:
        for name, lease in self._leases.items():
            if lease.lost:
                lease.release()
                self._owned.pop((name, 0), None)
                self._position.pop((name, 0), None)
            else:
                lease.beat()

    async def _claim(self) -> bool:
        """Whether some topic is still read by another member of the group."""
        if self._group is None:
            return False
        self._keep_leases()
        standby = False
        for channel in self._channels:
            topic = channel.topic
            if (topic.name, 0) in self._position:
                continue
            if self._leases[topic.name].take():
                self.begin(topic, await self._source.place(self._group, topic))
            else:
                standby = True
        return standby

    async def _look(self, max_records: int) -> list[Delivery]:
        # The topic that was first goes last: a busy topic must not starve its neighbours.
        self._channels.append(self._channels.pop(0))
        for channel in self._channels:
            place = (channel.topic.name, 0)
            position = self._position.get(place)
            end = channel.end
            if position is None or position >= end:
                continue
            batch = channel.recent(position, max_records, self._take_bytes)
            if batch is None:
                rows = await self._source.read(channel.topic, position, max_records, self._take_bytes)
                batch = [Delivery(channel.topic, 0, offset, record) for offset, record in rows]
                self._note_gaps(channel.topic, position, [offset for offset, _ in rows] or [end])
            # Nothing is awaited from here to the return.
            self._position[place] = batch[-1].offset + 1 if batch else end
            channel.trim()
            if batch:
                return batch
        return []

    def _note_gaps(self, topic: Topic, position: int, offsets: list[int]) -> None:
        # Holes are the nature of a compacted topic; anywhere else somebody has to hear of them.
        if topic.compacted:
            return
        for offset in offsets:
            if offset > position:
                gap = Gap(
                    topic.name, 0, position, offset - 1, "retention deleted them first, or their segment cannot be read"
                )
                self._gaps.append(gap)
                self.skipped += gap.records
            position = offset + 1


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
