# SPDX-License-Identifier: Apache-2.0
"""A local view of compacted topics: everything that is there, then each change, again from the start after any failure.

::

    prepare ─► subscribe from the oldest ─► read to an end that stays ─► apply(whole) ─► ready ─► apply(changes) ...
       ▲                                                                                            │
       └── back-off ◄── Temporary, Permanent, a file put aside as damaged while it was read ◄───────┘

A whole read that met damage is never applied: it is read again, and what is then missing is listed in `vanished`. What to
make of it is the follower's business. Neighbours: `contract`, `backoff`; policies, inventory, plans are followed with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from bus.backoff import Backoff
from bus.contract import Bus, Partition, Record, Subscription
from bus.interruptible import Signal, take_or
from bus.rest import until_look
from schemas.errors import HauberkError, Permanent, Temporary, Unavailable
from schemas.topics import Topic

log = logging.getLogger(__name__)

_MOST: Final = 1000
"""Records per take."""
_UNREADABLE: Final = 5.0
"""Seconds between looks at a bus that refuses to be read: somebody has to mend it first."""

Found = dict[str, dict[bytes, Record]]
"""Topic name -> key -> newest record, in order of offset; `value` None is a tombstone."""


class Changes(msgspec.Struct, frozen=True):
    """What `apply` gets. `whole`: `records` are all there is, the newest of each key, and `vanished` are keys (by topic name)
    that were there before and are neither there nor deleted now: damage, or a tombstone that has gone as well."""

    records: list[tuple[Topic, Record]]
    whole: bool = False
    vanished: dict[str, set[bytes]] = {}


Apply = Callable[[Changes], Awaitable[None]]


async def _nothing() -> None:
    return


def _wanted(_: bytes) -> bool:
    return True


class Follower:
    """`await run(apply)` until `stopping` is set, or for ever. `position`: after the newest record that was applied; `ready`: a
    whole read was applied; `problem`: of the latest failure; `failures`: since start; `damaged`: reads that met damage.

    `wanted`: keys that are followed; the others are not kept. `keys`: the same as a collection, so that a bus may read less. `prepare` is awaited before each whole read, for what must
    not be newer than it. `failed` is called with each error before the wait. `retry_permanent`: False ends `run` with a
    permanent error, for a stage that is started anew as a whole.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[Topic],
        *,
        stopping: asyncio.Event | None = None,
        wanted: Callable[[bytes], bool] = _wanted,
        keys: Collection[bytes] | None = None,
        prepare: Callable[[], Awaitable[None]] = _nothing,
        failed: Callable[[HauberkError], None] = lambda error: None,
        backoff: Backoff | None = None,
        retry_permanent: bool = True,
    ) -> None:
        self._bus = bus
        self._topics = tuple(topics)
        self._stopping = stopping or Signal()
        self._only = keys
        self._wanted = wanted if keys is None else keys.__contains__
        self._prepare = prepare
        self._failed = failed
        self._retried: type[HauberkError] = HauberkError if retry_permanent else Temporary
        self._backoff = backoff or Backoff(first_seconds=0.2, max_seconds=_UNREADABLE)
        self._keys: dict[str, set[bytes]] = {topic.name: set() for topic in topics}
        self.position: dict[Partition, int] = {}
        self.ready = asyncio.Event()
        self.problem = ""
        self.failures = 0
        self.damaged = 0

    async def run(
        self,
        apply: Apply,
        *,
        wait: Callable[[], float] = until_look,
        wake: asyncio.Event | None = None,
        together: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Call `apply` with everything, then with each batch of changes, and with none when `wait()` seconds passed or `wake` is
        set (`apply` clears it). `together`: after a change, gather more until (this long nothing came, this long in all).
        `apply` may raise a HauberkError: it gets everything again after the back-off. Cancelling is safe at any point."""
        attempt = 0
        events = (self._stopping,) if wake is None else (self._stopping, wake)
        while not self._stopping.is_set():
            try:
                damaged = self._bus.damaged()
                await self._prepare()
                async with opened(self._bus, self._topics, self._stopping, self._only) as (subscription, found):
                    if self._stopping.is_set():
                        return
                    self._check(damaged)
                    await apply(self._whole(found))
                    self.position = dict(subscription.position)
                    self.ready.set()
                    self.problem = ""
                    attempt = 0
                    while not self._stopping.is_set():
                        records = await self._take(subscription, wait(), events, together)
                        self._check(damaged)
                        await apply(Changes(records))
                        self.position = dict(subscription.position)
            except self._retried as error:
                await self._pause(error, attempt)
                attempt += 1

    def _check(self, damaged: int) -> None:
        if self._bus.damaged() != damaged:
            self.damaged += 1
            raise Unavailable(
                f"expected {self._names()} to be whole, got a damaged file of the bus that was put aside meanwhile; "
                "read again, `hauberk doctor` lists the file",
            )

    def _whole(self, found: Found) -> Changes:
        records: list[tuple[Topic, Record]] = []
        vanished: dict[str, set[bytes]] = {}
        for topic in self._topics:
            newest = {key: record for key, record in found[topic.name].items() if self._wanted(key)}
            vanished[topic.name] = self._keys[topic.name] - newest.keys()
            self._keys[topic.name] = {key for key, record in newest.items() if record.value is not None}
            records += [(topic, record) for record in newest.values()]
        return Changes(records, True, vanished)

    async def _take(
        self,
        subscription: Subscription,
        seconds: float,
        events: tuple[asyncio.Event, ...],
        together: tuple[float, float],
    ) -> list[tuple[Topic, Record]]:
        batch = await take_or(subscription, _MOST, seconds, *events)
        quiet, most = together
        deadline = time.monotonic() + most
        more = batch
        while more and time.monotonic() < deadline:
            more = await subscription.take(_MOST, quiet)
            batch += more
        records = []
        for delivery in batch:
            record = delivery.record
            if self._wanted(record.key):
                records.append((delivery.topic, record))
                keys = self._keys[delivery.topic.name]
                keys.discard(record.key) if record.value is None else keys.add(record.key)
        return records

    async def _pause(self, error: HauberkError, attempt: int) -> None:
        self.failures += 1
        if str(error) != self.problem:
            log.warning("%s cannot be followed, what is known stays: %s", self._names(), error)
        self.problem = str(error)
        self._failed(error)
        seconds = self._backoff.delay(attempt, random.random(), getattr(error, "retry_after", None))
        if isinstance(error, Permanent):
            seconds = _UNREADABLE
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _names(self) -> str:
        return ", ".join(f"`{topic.name}`" for topic in self._topics)


@asynccontextmanager
async def opened(
    bus: Bus,
    topics: Sequence[Topic],
    stopping: asyncio.Event | None = None,
    keys: Collection[bytes] | None = None,
) -> AsyncIterator[tuple[Subscription, Found]]:
    """A broadcast subscription and everything that `topics` said when it had caught up; it hands out what comes after. Less is
    found only when `stopping` is set. Raises what the bus raises."""
    stopping = stopping or asyncio.Event()
    found: Found = {topic.name: {} for topic in topics}
    async with bus.subscribe(topics, None, "earliest", keys) as subscription:
        # Again until nothing moved: a key that is written anew while the table is read goes from where it was not read yet to
        # behind the end, and would be missing.
        while not stopping.is_set():
            ends = {(topic.name, number): end for topic in topics for number, end in (await bus.end(topic)).items()}
            place = subscription.position
            if all(place.get(partition, end) >= end for partition, end in ends.items()):
                break
            while any(place.get(partition, end) < end for partition, end in ends.items()) and not stopping.is_set():
                for delivery in await take_or(subscription, _MOST, 0.2, stopping):
                    newest = found[delivery.topic.name]
                    newest.pop(delivery.record.key, None)
                    newest[delivery.record.key] = delivery.record
                place = subscription.position
        yield subscription, found


async def whole(bus: Bus, topic: Topic, stopping: asyncio.Event | None = None) -> dict[bytes, Record]:
    """Key -> its newest record, tombstones too, which `Bus.latest` leaves out; less when `stopping` is set. Raises what the bus raises."""
    async with opened(bus, (topic,), stopping) as (_, found):
        return found[topic.name]
