# SPDX-License-Identifier: Apache-2.0
"""Topics that are read once and then followed by a reader that stays: for a verb that lists again and again (`get -w`).

Nobody has to wait for a change: `follow` takes what comes within a time, and what is known then is asked. Neighbours:
`end_as_of_now` (one look), `follow` (for stages, which go on after any failure; here a bus that stays away is an error).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from bus.contract import Bus, Record, Subscription
from bus.end_as_of_now import EndAsOfNow
from bus.follow import Found, opened
from schemas.errors import Unavailable
from schemas.topics import Topic

LOOK_SECONDS: Final = 60.0
"""Between looks whether a log still begins and ends where it did: what was counted of it is the newer of the two until then."""
_MOST: Final = 5000
"""Records per take."""


class Newest(Protocol):
    """What has the newest records of compacted topics: a bus, or `StandingTables`."""

    async def latest(self, topic: Topic) -> dict[bytes, Record]: ...


class Counts(Protocol):
    """What is made of the records of a log, one by one; none of them is kept for it."""

    def count(self, value: bytes, /) -> None: ...


C = TypeVar("C", bound=Counts)


class _Standing(ABC):
    """`async with`: read to the end as of now, at once; `follow` what comes. Raises what the bus raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._open = AsyncExitStack()
        self._reader: Subscription

    async def __aenter__(self) -> Self:
        await self.read()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @abstractmethod
    async def read(self) -> None:
        """Everything anew."""


class StandingTables(_Standing):
    """`latest(topic)`, of compacted `topics`, as the bus would answer: what was heard so far."""

    def __init__(self, bus: Bus, topics: Sequence[Topic]) -> None:
        super().__init__(bus)
        self._topics = topics
        self._found: Found = {}

    async def read(self) -> None:
        await self._open.aclose()
        self._reader, self._found = await self._open.enter_async_context(opened(self._bus, self._topics))
        for newest in self._found.values():
            for key in [key for key, record in newest.items() if record.value is None]:
                del newest[key]

    async def follow(self, seconds: float) -> None:
        """Take what comes within `seconds`; with 0, what is there."""
        deadline = time.monotonic() + seconds
        anew = False
        while True:
            try:
                batch = await self._reader.take(_MOST, max(0.0, deadline - time.monotonic()))
            except Unavailable:
                # A topic that was made anew ends its readers. One that cannot be read is an error of the next look.
                if anew:
                    raise
                anew = True
                await self.read()
                continue
            for delivery in batch:
                newest, record = self._found[delivery.topic.name], delivery.record
                newest.pop(record.key, None)
                if record.value is not None:
                    newest[record.key] = record
            if time.monotonic() >= deadline:
                return

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        return self._found[topic.name]


class StandingCount(_Standing, Generic[C]):
    """`counted`: what `begin()` made, given each record of `topic` that is there. Made anew when the log lost its beginning or is another."""

    counted: C

    def __init__(self, bus: Bus, topic: Topic, begin: Callable[[], C]) -> None:
        super().__init__(bus)
        self._topic = topic
        self._begin = begin
        self._first = 0
        """The log began here when it was read, or before."""
        self._look_at = 0.0

    async def read(self) -> None:
        await self._open.aclose()
        self.counted = self._begin()
        # Counted strictly before the end is asked for, which only grows: no less than where it begins.
        kept = await self._bus.count(self._topic)
        ends = await self._bus.end(self._topic)
        self._first = sum(ends.values()) - kept
        end = EndAsOfNow({(self._topic.name, number): offset for number, offset in ends.items()})
        self._reader = await self._open.enter_async_context(self._bus.subscribe([self._topic], None, "earliest"))
        while not end.reached(self._reader.position):
            await self._take(0.5)
        self._look_at = time.monotonic() + LOOK_SECONDS

    async def follow(self, seconds: float) -> None:
        """Take what comes within `seconds`."""
        deadline = time.monotonic() + seconds
        if time.monotonic() >= self._look_at:
            await self._look()
        while (left := deadline - time.monotonic()) > 0:
            await self._take(left)

    async def _take(self, seconds: float) -> None:
        for delivery in await self._reader.take(_MOST, seconds):
            if delivery.record.value is not None:
                self.counted.count(delivery.record.value)

    async def _look(self) -> None:
        self._look_at = time.monotonic() + LOOK_SECONDS
        at = sum(self._reader.position.values())
        # The other way round: no more than where it begins now.
        end = sum((await self._bus.end(self._topic)).values())
        if end < at or end - await self._bus.count(self._topic) > self._first:
            await self.read()
