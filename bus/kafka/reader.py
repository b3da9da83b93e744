# SPDX-License-Identifier: Apache-2.0
"""What both kinds of subscription share: one consumer of aiokafka, asked in a way that loses nothing, and opened anew.

A `getmany` is never cancelled (that leaks a count in the library): it runs in a task of its own, half a second at most,
and what it brings waits here for the next `take`. While brokers are away there is no consumer at all; the next `take` after
their return opens one. Neighbours: `group`, `broadcast` (who decide where to read), `connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.errors import KafkaError

from bus.contract import PATIENT, Delivery, Gap, Partition
from bus.kafka.batches import delivered
from bus.kafka.client import QuietClient
from bus.kafka.connection import BrokerLink
from bus.kafka.ending import stopped
from bus.kafka.failures import translated
from bus.kafka.offsets import BEGIN, END, BrokerOffsets
from bus.kafka.unpacking import UnreadBatch, hand_out, most
from bus.record_size import KEY_BYTES
from schemas.errors import Refused
from schemas.topics import Topic

_RETENTION: Final = "retention deleted them first; is the reader too slow, or was it away for too long?"
_ROUND_SECONDS: Final = 5.0
"""A `getmany`, and a wait for what it brings, end after so long without a record; earlier where a member that does not ask is soon out."""


class KafkaReader(ABC):
    """The half of `contract.Subscription` that does not depend on who owns what. For one task at a time, as the contract says."""

    def __init__(self, link: BrokerLink, offsets: BrokerOffsets, topics: Sequence[Topic]) -> None:
        self._link = link
        self._offsets = offsets
        self._settings = link.settings
        self._topics = {topic.named(self._settings.prefix): topic for topic in topics}
        self._channels = {topic.name: topic.named(self._settings.prefix) for topic in topics}
        self._consumer: Any = None
        self._opened = 0
        self._fetch: asyncio.Task[dict[TopicPartition, list[Any]]] | None = None
        self._news = asyncio.Event()
        self._buffer: deque[Delivery] = deque()
        self._due = math.inf
        self._interrupted = False
        self._position: dict[Partition, int] = {}
        self._behind: dict[Partition, int] = {}
        """After what was left out behind what is in the buffer: where the reader stands once that is handed out."""
        self._grants: dict[Partition, int] = {}
        self._revoking: set[Partition] = set()
        self._announced: set[Partition] = set()
        self._gaps: deque[Gap] = deque(maxlen=100)
        self._record_size = 4096.0
        self._broken: BaseException | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._round = min(_ROUND_SECONDS, self._settings.member_seconds / 8)
        self._context = contextvars.copy_context()
        self._context.run(most.set, 2 * max(self._settings.record_bytes, self._settings.batch_bytes))
        self.joining = False
        self.skipped = 0
        self.disowned = 0

    @property
    def position(self) -> Mapping[Partition, int]:
        return dict(self._position)

    @property
    def owned(self) -> Mapping[Partition, int]:
        return dict(self._grants)

    @property
    def revoking(self) -> frozenset[Partition]:
        return frozenset(self._revoking)

    @property
    def gaps(self) -> Sequence[Gap]:
        return tuple(self._gaps)

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        deadline = time.monotonic() + max_wait
        self._interrupted = False
        # Once, so that a reader that only ever finds something still lets others run.
        await asyncio.sleep(0)
        while True:
            # Before the looks: what changes behind one of them is looked at again.
            self._news.clear()
            await self._ensure()
            if self._fetch is not None and self._fetch.done():
                # Perhaps since before this call: nothing wakes for it any more.
                await self._collect()
                continue
            self._alive()
            now = time.monotonic()
            batch = self._from_buffer(max_records) if now >= self._due or 0 < max_records <= len(self._buffer) else []
            news = not self._revoking <= self._announced
            self._announced = set(self._revoking)
            left = deadline - now
            if batch or news or left <= 0 or self._interrupted:
                return batch
            if max_records and self._fetch is None:
                self._ask(max_records)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._round, max(0.0, self._due - now))):
                    await self._news.wait()

    def interrupt(self) -> None:
        """Have the `take` that waits now return, with nothing. See `bus.interruptible`."""
        self._interrupted = True
        self._tell()

    async def _ensure(self) -> None:
        """A consumer on brokers that answer. Raises `Unavailable`, `Refused` on a closed bus."""
        if self._link.closed:
            raise Refused("expected an open bus, this one was closed; open another")
        # Whatever else this looks at wakes the `take` that waits.
        self._link.readers.add(self._tell)
        if self._broken is not None or (self._consumer is not None and self._opened != self._link.opened):
            self._drop()
        if self._link.away is not None:
            self._drop()
        if self._consumer is not None:
            return
        client = await self._link.client()
        assert client is not None
        opened = self._link.opened
        consumer = self._made()
        try:
            async with self._link.limited(self._settings.call_seconds):
                await consumer.start()
            self._consumer, self._opened = consumer, opened
            await self._begin()
        except (KafkaError, OSError, TimeoutError) as error:
            self._consumer = consumer
            self._drop()
            if self._link.closed:
                raise Refused("expected an open bus, this one was closed; open another") from error
            self._link.lost(error)
            raise translated(error, "read", ", ".join(self._topics)) from error
        except BaseException:
            self._consumer = consumer
            self._drop()
            raise

    def _made(self) -> Any:
        settings = self._settings
        partition_bytes = max(1 << 20, settings.fetch_bytes // 4)
        known = self._link.arguments()
        consumer = AIOKafkaConsumer(
            auto_offset_reset="none", enable_auto_commit=False, fetch_max_bytes=settings.fetch_bytes,
            max_partition_fetch_bytes=min(partition_bytes, settings.fetch_bytes), **self._extra(), **known,
        )  # fmt: skip
        # In place of the library's own client: see `client`.
        consumer._client = QuietClient(
            request_timeout_ms=int(self._request_seconds() * 1000), metadata_max_age_ms=5000, **known
        )
        return consumer

    def _extra(self) -> dict[str, Any]:
        """Further arguments of the consumer: how long a broker holds a question that it has no records for, among others."""
        return {}

    def _request_seconds(self) -> float:
        return self._settings.call_seconds

    @abstractmethod
    async def _begin(self) -> None:
        """The consumer stands: say what it is to read."""

    def _ask(self, most: int) -> None:
        count = max(1, min(most, int(self._settings.take_bytes / self._record_size)))
        consumer = self._consumer
        self._context.run(hand_out)
        self._fetch = asyncio.get_running_loop().create_task(
            consumer.getmany(timeout_ms=int(self._round * 1000), max_records=count), context=self._context
        )
        self._fetch.add_done_callback(lambda _: self._tell())

    def _forget_fetched(self) -> None:
        """Drop what a finished `getmany` brought from where the partitions stood before they are set anew: what was fetched before
        it may have been dropped as nobody's, and taking the later part would leave that out for good."""
        if self._fetch is not None and self._fetch.done():
            fetch, self._fetch = self._fetch, None
            if not fetch.cancelled():
                # Retrieved; what is the matter is met again.
                fetch.exception()

    async def _collect(self) -> None:
        """What a finished `getmany` brought."""
        fetch, self._fetch = self._fetch, None
        assert fetch is not None
        if fetch.cancelled():
            self._broken = errors.KafkaConnectionError("the consumer ended")
            return
        error = fetch.exception()
        if error is None:
            fetched = self._consumer._fetcher._records
            for place, came in fetch.result().items():
                self._arrived(place, came)
                if place in fetched:
                    # Last, next time: a busy partition must not starve its neighbours.
                    fetched[place] = fetched.pop(place)
        elif isinstance(error, errors.OffsetOutOfRangeError):
            await self._out_of_range(error.args[0])
        elif not isinstance(error, errors.NoOffsetForPartitionError):
            # That one comes before this side has said where to begin. Anything else: a new consumer, and tell.
            self._broken = error
            if isinstance(error, Exception):
                if isinstance(error, KafkaError | OSError):
                    raise translated(error, "read", *self._named(error))
                raise error

    def _named(self, error: BaseException) -> tuple[str, str]:
        if isinstance(error, errors.TopicAuthorizationFailedError) and error.args and error.args[0] in self._topics:
            return str(error.args[0]), ""
        return (", ".join(self._topics), "")

    def _arrived(self, place: TopicPartition, came: list[Any]) -> None:
        topic = self._topics.get(place.topic)
        if topic is None:
            return
        mine = (topic.name, place.partition)
        if mine not in self._grants or mine in self._revoking:
            return
        # What was fetched before the place was set again is handed out once.
        fresh = [_bounded(one) for one in came if one.offset >= self._expected(mine)]
        if any(isinstance(one, UnreadBatch) for one in fresh):
            fresh = self._without(mine, fresh)
        if fresh:
            size = sum(len(one.value or b"") for one in fresh) / len(fresh)
            self._record_size = max(256.0, self._record_size * 0.5 + size * 0.5)
            self._keep([delivered(topic, one) for one in fresh])
        self._pass_left_out()

    def _keep(self, came: list[Delivery]) -> None:
        self._buffer.extend(came)
        patient = all(any(name == PATIENT for name, _ in one.record.headers) for one in came)
        if patient and sum(one.record.size for one in self._buffer) < self._settings.take_bytes:
            self._due = min(self._due, time.monotonic() + self._settings.patience)
        else:
            self._due = 0.0

    def _without(self, mine: Partition, came: list[Any]) -> list[Any]:
        """`came` without what is left out of it, which is a gap."""
        for one in came:
            if isinstance(one, UnreadBatch):
                self._lose(Gap(*mine, one.offset, one.last, f"{one.why}; find out who writes to this topic"))
        if isinstance(came[-1], UnreadBatch):
            self._behind[mine] = came[-1].last + 1
        return [one for one in came if not isinstance(one, UnreadBatch)]

    def _pass_left_out(self) -> None:
        """Stand behind what was left out, where everything before it is handed out: the end is reached also where nothing follows."""
        if not self._behind:
            return
        waiting = {(one.topic.name, one.partition) for one in self._buffer}
        for mine in self._behind.keys() - waiting:
            offset = self._behind.pop(mine)
            # Of what is being taken away the buffer is dropped, not handed out.
            if mine in self._grants and mine not in self._revoking:
                self._position[mine] = max(self._position.get(mine, 0), offset)

    def _expected(self, mine: Partition) -> int:
        """The offset after the newest that is in the buffer."""
        for delivery in reversed(self._buffer):
            if (delivery.topic.name, delivery.partition) == mine:
                return delivery.offset + 1
        return self._position.get(mine, 0)

    def _from_buffer(self, most: int) -> list[Delivery]:
        batch: list[Delivery] = []
        size = 0
        while self._buffer and len(batch) < most and (not batch or size < self._settings.take_bytes):
            delivery = self._buffer.popleft()
            mine = (delivery.topic.name, delivery.partition)
            if mine in self._grants and mine not in self._revoking:
                self._position[mine] = delivery.offset + 1
                size += delivery.record.size
                batch.append(delivery)
        self._pass_left_out()
        # What is left is due: it waited for as long as what was before it.
        self._due = 0.0 if self._buffer else math.inf
        return batch

    async def _out_of_range(self, places: Mapping[TopicPartition, int]) -> None:
        """Retention was faster, or the topic was made anew: go on at what is there, and say what is missing."""
        asked = [(place.topic, place.partition) for place in places]
        begins, ends = await self._offsets.at(asked, BEGIN), await self._offsets.at(asked, END)
        for place, offset in places.items():
            topic = self._topics.get(place.topic)
            if topic is None or (topic.name, place.partition) not in self._grants:
                continue
            begin, end = begins[place.topic, place.partition], ends[place.topic, place.partition]
            self._skip(topic, place.partition, offset, begin, end)
            self._seek(place, self._position[topic.name, place.partition])

    def _skip(self, topic: Topic, number: int, offset: int, begin: int, end: int) -> None:
        """Set the position to where reading can go on from `offset`."""
        mine = (topic.name, number)
        self._behind.pop(mine, None)
        self._position[mine] = min(max(offset, begin), end)
        if offset < begin:
            self._lose(Gap(topic.name, number, offset, begin - 1, _RETENTION))
        elif offset > end:
            # BrokerOffsets began anew: the topic was deleted and made again. Everything on it is new.
            self._position[mine] = begin

    def _lose(self, gap: Gap) -> None:
        self._gaps.append(gap)
        self.skipped += gap.records

    def _seek(self, place: TopicPartition, offset: int) -> None:
        with contextlib.suppress(errors.IllegalStateError):
            self._consumer.seek(place, offset)

    def _alive(self) -> None:
        """The reader has asked: it is not one that hangs."""
        state = self._consumer._subscription
        if self._fetch is None:
            # A `getmany` that ended with an error is still counted by the library, which would never see this reader hang.
            state._fetch_count = 0
        if state._fetch_count == 0:
            state._last_fetch_ended = time.monotonic()

    def _tell(self) -> None:
        self._news.set()

    def _lost_all(self) -> None:
        self._grants.clear()
        self._position.clear()
        self._behind.clear()
        self._revoking.clear()
        self._buffer.clear()

    def _drop(self) -> None:
        """Let the consumer go; it ends by itself, within seconds."""
        self._lost_all()
        self._broken = None
        consumer, self._consumer = self._consumer, None
        fetch, self._fetch = self._fetch, None
        if consumer is not None:
            task = asyncio.get_running_loop().create_task(stopped(consumer, fetch, self._link))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def leave(self) -> None:
        """Give the place back. Never raises, and takes seconds at most."""
        self._link.readers.discard(self._tell)
        self._drop()
        if self._ending:
            await asyncio.wait(self._ending)


def _bounded(one: Any) -> Any:
    """`one`, a record or an UnreadBatch; instead of a record with a key that nobody here writes, an UnreadBatch: whoever follows a
    topic keeps its keys, and where one belongs is computed at some megabytes a second."""
    if isinstance(one, UnreadBatch) or len(one.key or b"") <= KEY_BYTES:
        return one
    return UnreadBatch(one.offset, one.offset, f"a key of {len(one.key)} bytes, at most {KEY_BYTES} are taken")
