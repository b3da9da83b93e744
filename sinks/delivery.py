# SPDX-License-Identifier: Apache-2.0
"""Drives one sink: take, read, batch, send, commit. The only place that retries, splits, dead-letters and counts.

The order matters and is the whole point: an offset is committed strictly after everything before it was accepted by the
far side or lies on the dead-letter topic. Cancelled at any point, the batch in hand stays uncommitted and comes again.

Back-off has full jitter (`uniform(0, min(cap, base * 2**n))`), so that a returning server is not met by all sinks at once.
Neighbours: `batcher` (when), `reader` (what), `engine` (who runs it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec

from bus.contract import Bus, Delivery, Record, Start, Subscription
from bus.taking import take_or
from schemas.errors import HauberkError, Permanent, Reason, Temporary, Unavailable
from schemas.topics import DEAD
from sinks.batcher import Batcher, Parcel
from sinks.filters import Filter
from sinks.reader import Reader
from sinks.sink import Item, SendResult, Sink
from sinks.stats import DeliveryStats

_log = logging.getLogger("hauberk.sinks")

_POLL_SECONDS = 0.25
"""Longest wait for records: how late an `idle` may come."""

_LOOK_SECONDS = 2.0
"""Between two looks at the group's lag."""


class Retry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How delivery waits for a far side that is away. It never gives up by itself: the bus keeps the records."""

    base_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=315_360_000, description="Longest first delay, seconds; doubled each time.", examples=[0.2]
        ),
    ] = 0.2
    cap_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=315_360_000, description="Longest delay of all, seconds.", examples=[30.0])
    ] = 30.0
    drain_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=315_360_000, description="Time to finish the batch in hand when stopped, seconds.", examples=[5.0]
        ),
    ] = 5.0


class _Stopped(Exception):
    """Stop was asked for and the far side is away: leave the batch uncommitted."""


class SinkDelivery:
    """One sink on a bus. `run` until `stop`; `stats` is readable at any time."""

    def __init__(
        self,
        bus: Bus,
        sink: Sink,
        *,
        wanted: Filter | None = None,
        retry: Retry | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self.sink = sink
        self.stats = DeliveryStats(sink=sink.name)
        self.failure: str = ""
        self._bus = bus
        self._reader = Reader(wanted or Filter(), as_json=sink.takes_json)
        self._retry = retry or Retry()
        self._jitter = jitter or random.Random()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._sending: asyncio.Timeout | None = None
        self._next_look = 0.0
        self._group = None if sink.live else f"sink.{sink.name}"

    def hurry(self) -> None:
        """From now on send what there is at once: nobody upstream fills a batch any more."""
        self._hurry.set()

    def stop(self) -> None:
        """Finish what is in hand within `drain_seconds`, then return from `run`."""
        self._stop.set()
        if self._sending is not None:
            latest = asyncio.get_running_loop().time() + self._retry.drain_seconds
            self._sending.reschedule(min(self._sending.when() or latest, latest))

    async def run(self) -> None:
        """Deliver until `stop`. Raises Permanent when the sink cannot be opened; everything else is retried or
        dead-lettered. The sink is closed in every case."""
        try:
            await self._until_it_works(self.sink.open)
            # A new group begins at the oldest record kept, so that nothing told before the sink existed is lost.
            start: Start = "latest" if self.sink.live else "committed"
            async with self._bus.subscribe(self.sink.topics, self._group, start) as subscription:
                await self._deliver(subscription)
        except _Stopped:
            pass
        finally:
            self.stats.up = 0
            await self.sink.close()

    async def _deliver(self, subscription: Subscription) -> None:
        batcher = Batcher(self.sink.limits)
        # Taken and not read yet: a frame grows thirtyfold when it is expanded, so no more than a batch is read ahead.
        unread: deque[Delivery] = deque()
        self.stats.up = 1
        while True:
            now = time.monotonic()
            stopping = self._stop.is_set()
            while unread and not stopping and not batcher.full:
                await self._read(batcher, unread.popleft(), now)
                stopping = self._stop.is_set()
            if batcher.ready(now) or (len(batcher) and (stopping or self._hurry.is_set())):
                parcels = batcher.take()
                self.stats.waiting_items = batcher.items
                await self._send(parcels)
                await self._commit(subscription, parcels)
                continue
            if stopping:
                return
            if now >= self._next_look:
                await self._look(subscription, now)
            wait = min(batcher.wait(now), _POLL_SECONDS) if len(batcher) else _POLL_SECONDS
            told = (self._stop,) if self._hurry.is_set() else (self._stop, self._hurry)
            try:
                deliveries = await take_or(subscription, self.sink.limits.items, max(wait, 0.0), *told)
            except Temporary as error:
                await self._pause(0, error)
                continue
            unread.extend(deliveries)
            if not deliveries and not len(batcher):
                await self._until_it_works(self.sink.idle)

    async def _look(self, subscription: Subscription, now: float) -> None:
        self._next_look = now + _LOOK_SECONDS
        self.stats.skipped = subscription.skipped
        if self._group is not None:
            with contextlib.suppress(Temporary):
                lags = await self._bus.lag(self._group)
                self.stats.lag = sum(lags.get(topic.name, 0) for topic in self.sink.topics)

    async def _read(self, batcher: Batcher, delivery: Delivery, now: float) -> None:
        self.stats.taken += 1
        try:
            items = self._reader.read(delivery)
        except Permanent as error:
            self.stats.undecodable += 1
            await self._bury([(delivery.record.value or b"", delivery, str(error), error.reason)])
            items = ()
        self.stats.filtered = self._reader.filtered
        # A record with nothing in it still has to be committed in its turn.
        batcher.add(Parcel(delivery, items, delivery.record.size if items else 0), now)
        if len(items) > 1:
            # Other stages share the loop, and a frame takes milliseconds.
            await asyncio.sleep(0)

    async def _send(self, parcels: Sequence[Parcel]) -> None:
        items: list[Item] = []
        origin: list[Parcel] = []
        for parcel in parcels:
            items += parcel.items
            origin += [parcel] * len(parcel.items)
        if items:
            self.stats.batches += 1
            self.stats.size_bytes += sum(parcel.size for parcel in parcels)
            await self._send_items(items, origin)

    async def _send_items(self, items: list[Item], origin: list[Parcel]) -> None:
        attempt = 0
        while True:
            try:
                seconds = self.sink.limits.send_seconds
                if self._stop.is_set():
                    seconds = min(seconds, self._retry.drain_seconds)
                async with asyncio.timeout(seconds) as self._sending:
                    result = await self.sink.send(items)
            except TimeoutError:
                error: HauberkError = Unavailable(
                    f"sink `{self.sink.name}`: expected an answer within {seconds:g} s, got none"
                )
            except HauberkError as raised:
                error = raised
            except Exception as bug:  # noqa: BLE001
                # A formatter that trips over one alert must not stop the others: found by halving, like a refusal.
                _log.exception("sink `%s` failed in a way it should not; the batch is split", self.sink.name)
                error = Permanent(f"sink `{self.sink.name}`: {type(bug).__name__}: {bug}")
            else:
                items, origin = await self._settle(result, items, origin)
                if not items:
                    self._recovered()
                    return
                error = Temporary(f"sink `{self.sink.name}`: {len(items)} items were put off", result.retry_after)
                attempt = 0 if len(result.retry) < len(items) else attempt
            finally:
                self._sending = None
            if isinstance(error, Permanent):
                await self._split(error, items, origin)
                return
            self.stats.retries += 1
            await self._pause(attempt, error)
            attempt += 1

    async def _settle(
        self, result: SendResult, items: list[Item], origin: list[Parcel]
    ) -> tuple[list[Item], list[Parcel]]:
        self.stats.accepted += len(items) - len(result.refused) - len(result.retry)
        if result.refused:
            await self._refuse([(items[bad.index], origin[bad.index], bad.why) for bad in result.refused])
        return [items[index] for index in result.retry], [origin[index] for index in result.retry]

    async def _split(self, error: HauberkError, items: list[Item], origin: list[Parcel]) -> None:
        if len(items) == 1:
            await self._refuse([(items[0], origin[0], str(error))], error.reason)
            return
        half = len(items) // 2
        await self._send_items(items[:half], origin[:half])
        await self._send_items(items[half:], origin[half:])

    async def _refuse(self, bad: list[tuple[Item, Parcel, str]], reason: Reason = Reason.REFUSED) -> None:
        self.stats.refused += len(bad)
        letters = []
        for item, parcel, why in bad:
            # The original bytes when the record is this one item; of a frame of thousands, only the item itself.
            whole = len(parcel.items) == 1 and parcel.last
            value = (parcel.delivery.record.value or b"") if whole else _as_bytes(item)
            letters.append((value, parcel.delivery, why, reason))
        await self._bury(letters)

    async def _bury(self, letters: list[tuple[bytes, Delivery, str, Reason]]) -> None:
        records = [
            Record(
                delivery.record.key,
                value,
                (
                    *delivery.record.headers,
                    ("dead.topic", delivery.topic.name.encode()),
                    ("dead.partition", str(delivery.partition).encode()),
                    ("dead.offset", str(delivery.offset).encode()),
                    ("dead.group", f"sink.{self.sink.name}".encode()),
                    ("dead.stage", b"sinks"),
                    ("dead.reason", reason.value.encode()),
                    ("dead.error", why[:1024].encode("utf-8", "replace")),
                    ("dead.time", str(time.time_ns() // 1_000_000).encode()),
                ),
            )
            for value, delivery, why, reason in letters
        ]
        attempt = 0
        while True:
            try:
                await self._bus.publish(DEAD, records)
                break
            except Temporary as error:
                await self._pause(attempt, error)
                attempt += 1
        self.stats.dead += len(records)
        _log.error(
            "sink `%s`: %d items dead-lettered, the first because: %s", self.sink.name, len(records), letters[0][2]
        )

    async def _commit(self, subscription: Subscription, parcels: Sequence[Parcel]) -> None:
        done = [parcel.delivery for parcel in parcels if parcel.last]
        attempt = 0
        while done:
            try:
                await subscription.commit(done)
                self.stats.committed += len(done)
                return
            except Temporary as error:
                await self._pause(attempt, error)
                attempt += 1

    async def _until_it_works(self, call: Callable[[], Awaitable[None]]) -> None:
        attempt = 0
        while True:
            try:
                await call()
                if attempt:
                    self._recovered()
                return
            except Temporary as error:
                self.stats.retries += 1
                await self._pause(attempt, error)
                attempt += 1

    async def _pause(self, attempt: int, error: HauberkError) -> None:
        if not self.failure:
            _log.warning("sink `%s` waits, nothing is lost: %s", self.sink.name, error)
        self.failure = str(error)
        self.stats.failing = 1
        ceiling = min(self._retry.cap_seconds, self._retry.base_seconds * 2.0 ** min(attempt, 32))
        delay = self._jitter.uniform(0, ceiling)
        asked = error.retry_after if isinstance(error, Temporary) else None
        if asked is not None:
            delay = max(delay, asked)
        if self._stop.is_set():
            raise _Stopped
        try:
            async with asyncio.timeout(delay):
                await self._stop.wait()
        except TimeoutError:
            return

    def _recovered(self) -> None:
        if self.failure:
            _log.info("sink `%s` works again", self.sink.name)
        self.failure = ""
        self.stats.failing = 0


def _as_bytes(item: Item) -> bytes:
    return item if isinstance(item, bytes) else msgspec.json.encode(item)
