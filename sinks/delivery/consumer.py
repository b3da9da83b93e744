# SPDX-License-Identifier: Apache-2.0
"""Drives one sink: its pump takes and commits; here records are read, batched and sent, and counted.

The order matters and is the whole point: an offset is committed strictly after everything before it was accepted by the
far side or lies on the dead-letter topic. Cancelled at any point, the batch in hand stays uncommitted and comes again.

Retrying, splitting and dead-lettering are `bus.attempts` and `bus.dead_letters`, as for every stage. Neighbours: `batcher`
(when), `reader` (what), `engine` (who runs it), `bus.pump`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from bus.attempts import Remainder, Stopped
from bus.backoff import Backoff
from bus.contract import Bus, Delivery, Partition, Start
from bus.dead_letters import letter
from bus.paced_log import PacedLog
from bus.pump import Pump, PumpSettings
from bus.rest import REST_SECONDS, until_look
from schemas.errors import DecodeError, Permanent, Refused, Unavailable
from sinks.delivery.batcher import Batcher, Parcel
from sinks.delivery.filters import Filter
from sinks.delivery.reader import ItemReader
from sinks.delivery.stats import DeliveryStats
from sinks.sink import Item, Sink

_log = logging.getLogger("hauberk.sinks")

_COMMIT_SECONDS = 0.5
"""Least seconds between commits. Each is an fsync that the next alert waits for on its way to the bus; a kill repeats so much."""


_UNSETTLED_SECONDS = 5.0
"""Between looks of a sink that may have to send again what it sent last."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """An item and what it came in. Not a tuple: the garbage collector would walk thousands of them per batch."""

    item: Item
    parcel: Parcel


class SinkDelivery:
    """One sink on a bus. `run` until `stop` or `finish`; `stats` and `failure` (why it waits) are readable at any time."""

    def __init__(
        self,
        bus: Bus,
        sink: Sink,
        *,
        wanted: Filter | None = None,
        retry: Backoff | None = None,
        drain_seconds: float = 5.0,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        self.sink = sink
        self._reader = ItemReader(wanted or Filter(), as_json=sink.takes_json)
        self._counts = DeliveryStats(sink=sink.name)
        self._batcher = Batcher(sink.limits)
        self._done: list[Delivery] = []
        self._unread = PacedLog(_log)
        # A new group begins at the oldest record kept, so that nothing told before the sink existed is lost.
        start: Start = "latest" if sink.live else "committed"
        self._pump = Pump(
            bus,
            sink.topics,
            None if sink.live else f"sink.{sink.name}",
            self,
            stage="sinks",
            start=start,
            settings=PumpSettings(
                max_records=sink.limits.items,
                max_wait=REST_SECONDS,
                commit_seconds=_COMMIT_SECONDS,
                retry=retry or Backoff(),
                drain_seconds=drain_seconds,
                # A formatter that trips over one alert trips again: found by halving, like a refusal.
                unknown_attempts=1,
            ),
            who=f"sink `{sink.name}`",
            random_part=random_part,
        )

    @property
    def failure(self) -> str:
        """Why it waits, "" when it does not."""
        return self._pump.stats.failure

    @property
    def stats(self) -> DeliveryStats:
        """The counts as of now."""
        pump = self._pump.stats
        return msgspec.structs.replace(
            self._counts,
            filtered=self._reader.filtered,
            dead=self._pump.dead.written,
            retries=pump.retries,
            committed=pump.committed,
            skipped=pump.skipped,
            lag=pump.lag,
            partitions=pump.partitions,
            rebalances=pump.rebalances,
            work_seconds=pump.work_seconds,
            late_seconds=pump.late_seconds,
            waiting_items=self._batcher.items,
            failing=int(bool(pump.failure)),
            up=int(self._pump.running),
        )

    def stop(self) -> None:
        """Finish what is in hand, then return from `run`."""
        self._pump.stop()

    async def finish(self) -> None:
        """Ask `run` to return once everything is out that is on the topics now."""
        await self._pump.finish()

    async def run(self) -> None:
        """Deliver until `stop`. Raises Permanent when the sink cannot be opened; everything else is retried or
        dead-lettered. The sink is closed in every case."""
        self._batcher, self._done = Batcher(self.sink.limits), []
        try:
            await self._pump.attempts.insist(self.sink.open)
            await self._pump.run()
        except Stopped:
            pass
        finally:
            await self.sink.close()

    async def handle(self, deliveries: list[Delivery]) -> None:
        """Read, and send full batches. A frame grows thirtyfold when it is expanded, so no more than a batch is read ahead."""
        for delivery in deliveries:
            if self._pump.halted:
                return
            await self._read(delivery)
            while self._batcher.full:
                await self._send()

    async def tick(self, idle: bool) -> None:
        """Send what is due."""
        # Once the end is asked for, nobody upstream fills a batch any more.
        while self._batcher.ready(time.monotonic()) or (len(self._batcher) and self._pump.attempts.stopping.is_set()):
            await self._send()
        if idle and not len(self._batcher):
            await self.sink.idle()

    def wait(self) -> float:
        if len(self._batcher):
            return self._batcher.wait(time.monotonic())
        return until_look(_UNSETTLED_SECONDS if getattr(self.sink, "unsettled", False) else REST_SECONDS)

    def committable(self) -> Sequence[Delivery]:
        done, self._done = self._done, []
        return done

    async def settle(self) -> None:
        """Send what is in hand."""
        while len(self._batcher):
            await self._send()

    def released(self, partitions: Collection[Partition]) -> None:
        self._done = [one for one in self._done if (one.topic.name, one.partition) not in partitions]

    async def _read(self, delivery: Delivery) -> None:
        self._counts.taken += 1
        items: Sequence[Item] = ()
        try:
            items = self._reader.read(delivery)
        except Exception as raised:  # noqa: BLE001 - a bug in reading one record must not stop the others.
            error = raised
            if not isinstance(error, Permanent):
                text = f"sink `{self.sink.name}` could not read a record; it goes to the dead letters"
                self._unread.say(logging.ERROR, text, exc_info=True)
                error = DecodeError(f"expected a record that can be read, got {type(error).__name__}: {error}")
            self._counts.undecodable += 1
            await self._pump.dead.write([letter(delivery, error, 1)])
        # A record with nothing in it still has to be committed in its turn.
        self._batcher.add(Parcel(delivery, items, delivery.record.size if items else 0), time.monotonic())
        if len(items) > 1:
            # Other stages share the loop, and a frame takes milliseconds.
            await asyncio.sleep(0)

    async def _send(self) -> None:
        parcels = self._batcher.take()
        lines = [Line(item, parcel) for parcel in parcels for item in parcel.items]
        if lines:
            self._counts.batches += 1
            self._counts.size_bytes += sum(parcel.size for parcel in parcels)
            await self._pump.attempts.work(lines, self._hand_over, self._bury)
        self._done += [parcel.delivery for parcel in parcels if parcel.last]
        await self._pump.commit()

    async def _hand_over(self, lines: list[Line]) -> Remainder | None:
        seconds = self.sink.limits.send_seconds
        try:
            async with self._pump.attempts.limit(seconds):
                result = await self.sink.send([line.item for line in lines])
        except TimeoutError:
            raise Unavailable(f"sink `{self.sink.name}`: expected an answer within {seconds:g} s, got none") from None
        self._counts.accepted += len(lines) - len(result.refused) - len(result.retry)
        if not result.refused and not result.retry:
            return None
        refused = [(bad.index, Refused(bad.why)) for bad in result.refused]
        return Remainder(again=result.retry, refused=refused, retry_after=result.retry_after)

    async def _bury(self, given_up: list[tuple[Line, Exception, int]]) -> None:
        self._counts.refused += len(given_up)
        letters = []
        for line, error, attempts in given_up:
            item, parcel = line.item, line.parcel
            # The original bytes when the record is this one item; of a frame of thousands, only the item itself.
            whole = len(parcel.items) == 1 and parcel.last
            letters.append(letter(parcel.delivery, error, attempts, None if whole else _as_bytes(item)))
        await self._pump.dead.write(letters)


def _as_bytes(item: Item) -> bytes:
    return item if isinstance(item, bytes) else msgspec.json.encode(item)
