# SPDX-License-Identifier: Apache-2.0
"""The engine of a node: drains a source when it calls and publishes its frames. One for the kernel and for recordings.

Drain, publish, release, in that order and one at a time. When the bus is full or away the batch in hand is offered again and
the rest stays in the ring; what the ring cannot hold is counted by the kernel and told in the next frame. ::

    drained something ─► pause (`tick`; longer once this loop took more than `share` of a core; `spacing` where the bus is elsewhere)
                         ─► doze (until `coalesce` is over)
    drained nothing ───► sleep (`idle`)

A source that cannot call (a recording) is asked each `tick`. Dozing it calls for what cannot wait, asleep for anything, and a
ring that is half full always calls; so nothing here runs while nothing happens. Must never look into a frame.
Neighbours: `sensors.source` (what it drains), `rings`, `sensors.recordings.replay`, `sensor` (who builds it for a live kernel).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from bus.backoff import Backoff
from bus.contract import PATIENT, Bus, Record
from bus.rest import until_look
from schemas import frame as frame_words
from schemas.errors import HauberkError, Temporary
from schemas.kernel import Loss
from schemas.stats import Gauge, Level
from schemas.topics import EVENTS_RAW, INVENTORY, Topic
from schemas.wakeup import Sleep
from sensors.node.backlog import STEP_SECONDS, Backlog
from sensors.source import Batch, FrameSource

log = logging.getLogger(__name__)

_WAITS = ((PATIENT, b""),)
_LEFT_SECONDS = 0.3
"""From a stop on, while which rings are emptied that stay: whoever pressed Ctrl-C waits."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the rings are drained. All in seconds."""

    tick: Annotated[
        float,
        msgspec.Meta(
            description="Least seconds between drains; of a recording, seconds between drains.",
            examples=[0.002],
            gt=0,
            le=315_360_000,
        ),
    ] = 0.002
    idle: Annotated[
        float,
        msgspec.Meta(
            description="Longest sleep when nothing happens; the first event ends it. Half of the 60 at most after which observation stops.",
            examples=[5.0],
            gt=0,
            le=30,
        ),
    ] = 15.0
    coalesce: Annotated[
        float,
        msgspec.Meta(
            description="Longest time between drains while events come; what is new or may be an alert does not wait for it.",
            examples=[0.2],
            gt=0,
            le=30,
        ),
    ] = 0.25
    spacing: Annotated[
        float,
        msgspec.Meta(
            description="Least seconds between two publications to a bus on other machines, where each costs its brokers and its readers as much as a thousand events do; also for what cannot wait.",
            examples=[0.05],
            ge=0,
            le=30,
        ),
    ] = 0.05
    share: Annotated[
        float,
        msgspec.Meta(
            description="Share of a core that drains for what cannot wait may take, over a second, before they wait longer, 0..1.",
            examples=[0.2],
            gt=0,
            le=1,
        ),
    ] = 0.2
    urgent: Annotated[
        float, msgspec.Meta(description="Fill of the ring from which nothing waits, 0..1.", examples=[0.25], gt=0, le=1)
    ] = 0.25
    retry: Annotated[Backoff, msgspec.Meta(description="Back-off when the bus is away.", examples=[{}])] = Backoff(
        first_seconds=0.05, max_seconds=1.0
    )
    drain_seconds: Annotated[
        float,
        msgspec.Meta(
            description="Seconds to go on trying after a stop was asked for.", examples=[5.0], ge=0, le=315_360_000
        ),
    ] = 5.0


class AgentStats(msgspec.Struct):
    """Plain counters of one agent, only ever added to (`Gauge` and `Level` are the latest values).

    `published` frames and their `bytes`; `lost`: told in published frames, by
    `schemas.kernel.Loss`; `retries`: publishes that were put off; `refused`: frames the bus will never take;
    `calls`: times the kernel called, because a ring was half full or this agent slept; `lag_seconds`: how late the loop woke up; `publish_seconds`:
    the latest publish; `behind_seconds`: age of the oldest frame that the processor of this process has not read; `spared`:
    how many times the budget of new names is halved for it.
    """

    drains: int = 0
    frames: int = 0
    events: int = 0
    bytes: int = 0
    undefined: int = 0
    lost: dict[str, int] = msgspec.field(default_factory=lambda: {loss.name.lower(): 0 for loss in Loss})
    inventory: int = 0
    retries: int = 0
    refused: int = 0
    calls: int = 0
    fill_ratio: Level = 0.0
    lag_seconds: Level = 0.0
    publish_seconds: Level = 0.0
    behind_seconds: Level = 0.0
    spared: Gauge = 0


class Allowance:
    """CPU time that drains may take: `share` of what passes, a second's worth at once, so that single events do not wait for
    what the one before them cost. Of a debt no more is remembered than `longest` seconds pay off."""

    def __init__(self, share: float, longest: float) -> None:
        self._share = share
        self._least = -share * longest
        self._left = share
        self._at = 0.0

    def spend(self, busy: float, now: float) -> float:
        """Seconds to wait after `busy` seconds of CPU time were taken, at `now`."""
        earned = self._share * (now - self._at)
        self._at = now
        self._left = max(self._least, min(self._share, self._left + earned) - busy)
        return max(0.0, -self._left / self._share)


class Agent:
    """Publishes `source` to `bus` until `stop` is called or the source is finished.

    `published(batch)` is called after each acknowledged batch (recorders, metrics). `elsewhere`: the bus is on other machines, and the
    rings stay when this process ends. Errors of the source and Permanent
    errors of the bus that concern all frames end `run`; a frame that is refused is counted, said once and dropped.
    """

    def __init__(
        self,
        source: FrameSource,
        bus: Bus,
        settings: AgentSettings | None = None,
        published: Callable[[Batch], None] | None = None,
        backlog: Backlog | None = None,
        *,
        elsewhere: bool = False,
    ) -> None:
        self.source = source
        self.stats = AgentStats()
        self._bus = bus
        self._settings = settings or AgentSettings()
        self._elsewhere = elsewhere
        self._pause = max(self._settings.tick, self._settings.spacing if elsewhere else 0.0)
        self._published = published
        self._backlog = backlog
        self._stopping = False
        self._calls = False
        self._waiter: asyncio.Future[None] | None = None
        self._backing_off = False
        self._stopped_at = 0.0
        self._allowance = Allowance(self._settings.share, self._settings.coalesce)

    def stop(self) -> None:
        """Ask `run` to drain what there is and return. A bus that is still away after `drain_seconds` ends it with its error."""
        self._stopped_at = time.monotonic()
        self._stopping = True
        if self._waiter is not None:
            _wake(self._waiter)

    async def run(self) -> None:
        """Drain and publish. Cancelling returns at once; what was not acknowledged stays in the source."""
        calls = getattr(self.source, "calls", -1)
        loop = asyncio.get_running_loop()
        self._calls = calls >= 0
        if calls >= 0:
            loop.add_reader(calls, self._called)
        try:
            await self._drain_until_stopped()
        finally:
            if calls >= 0:
                loop.remove_reader(calls)
        await self._finish()

    def _called(self) -> None:
        self.source.heard()  # type: ignore[attr-defined]
        self.stats.calls += 1
        # A bus that is away is not asked more often for it.
        if self._waiter is not None and not self._backing_off:
            _wake(self._waiter)

    async def _drain_until_stopped(self) -> None:
        source, stats = self.source, self.stats
        before = time.thread_time()
        while not self._stopping and not source.finished:
            batch = source.drain()
            drained = bool(batch)
            if drained:
                await self._deliver(batch)
            # Also after an empty drain: discarded rows and parked ones leave space to give back.
            source.release()
            stats.drains += 1
            if self._backlog is not None:
                self._backlog.look()
                stats.behind_seconds, stats.spared = self._backlog.seconds, self._backlog.step
            stats.fill_ratio = batch.fill
            # Of this whole loop since the last drain: a frame costs those who judge it here more than it costs to take it.
            now = time.thread_time()
            busy, before = now - before, now
            if batch.fill >= self._settings.urgent or (batch.more and not self._calls):
                await asyncio.sleep(0)
            elif batch.more:
                # Those who judge it may run in this loop too, and are to be heard before there is more of it.
                await self._wait(self._settings.tick)
            elif not self._calls:
                await self._wait(self._settings.tick)
            else:
                await self._rest(drained, busy)

    async def _rest(self, drained: bool, busy: float) -> None:
        """Until the next drain is due."""
        settings = self._settings
        how, longest = Sleep.ASLEEP, until_look(settings.idle)
        if drained:
            # Of CPU time: on a crowded machine the time that passes says nothing about the work there is.
            pause = min(max(self._pause, self._allowance.spend(busy, time.monotonic())), settings.coalesce)
            await self._wait(pause)
            how, longest = Sleep.DOZING, settings.coalesce - pause
        elif self._backlog is not None and (self._backlog.step or self._backlog.seconds):
            longest = min(longest, STEP_SECONDS)
        if longest <= 0 or self._stopping:
            return
        if self.source.rest(how):  # type: ignore[attr-defined]
            await self._wait(longest)
        elif not drained:
            # A row that its program has not finished, or one that waits for its definition.
            await self._wait(settings.tick)

    async def _wait(self, delay: float) -> None:
        # A future and a timer: half the cost of a timeout around an event.
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(delay, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
        self.stats.lag_seconds = max(0.0, loop.time() - due)

    async def _finish(self) -> None:
        # A recording that is not over is stopped where it is; the kernel's rings are emptied.
        finish = getattr(self.source, "finish", None)
        if finish is None:
            return
        batch: Batch = finish()
        while batch or batch.more:
            await self._deliver(batch)
            self.source.release()
            batch = finish() if batch.more and not self._late() and not self._left_for_the_next() else Batch()
        self.source.release()
        if not self._elsewhere and self._late() and (fill := getattr(self.source, "fill", 0.0)):
            log.warning(
                "%g s after the stop the ring of events was still %.3g %% full, and these events are not told; "
                "`sensor.agent.drain_seconds` says how long a stop may take",
                self._settings.drain_seconds, fill * 100,
            )  # fmt: skip

    def _left_for_the_next(self) -> bool:
        """The rings of a node outlive it: the next start finds what was not drained by now."""
        return self._elsewhere and time.monotonic() - self._stopped_at > _LEFT_SECONDS

    def _late(self) -> bool:
        return self._stopping and time.monotonic() - self._stopped_at > self._settings.drain_seconds

    async def _deliver(self, batch: Batch) -> None:
        if batch.inventory:
            await self._publish(INVENTORY, list(batch.inventory))
            self.stats.inventory += len(batch.inventory)
        if batch.frames:
            headers = _WAITS if self._elsewhere and not batch.hasty else ()
            records = [Record(frame.header.node.encode(), frame_words.encode(frame), headers) for frame in batch.frames]
            started = time.monotonic()
            await self._publish(EVENTS_RAW, records)
            stats = self.stats
            stats.publish_seconds = time.monotonic() - started
            stats.frames += len(records)
            stats.bytes += sum(record.size for record in records)
            for frame in batch.frames:
                stats.events += frame.header.events
                stats.undefined += frame.header.undefined
                for loss, count in zip(Loss, frame.header.lost, strict=False):
                    stats.lost[loss.name.lower()] += count
            if self._backlog is not None:
                self._backlog.published(batch.frames)
        if self._published is not None:
            self._published(batch)

    async def _publish(self, topic: Topic, records: list[Record]) -> None:
        attempt = 0
        while True:
            try:
                await self._bus.publish(topic, records)
                return
            except Temporary as error:
                if self._late():
                    raise
                self.stats.retries += 1
                if self.stats.retries == 1:
                    log.warning("frames wait in the ring: %s", error)
                self._backing_off = True
                # No jitter: a node has one agent, and nodes lose the bus at different frames.
                delay = self._settings.retry.delay(attempt, asked=error.retry_after)
                attempt += 1
                await self._wait(delay)
                self._backing_off = False
                if self._stopping:
                    await asyncio.sleep(self._settings.retry.first_seconds)
            except HauberkError as error:
                if len(records) == 1:
                    self.stats.refused += 1
                    if self.stats.refused == 1:
                        log.error("a frame was refused and is lost: %s", error)
                    return
                # One bad record must not take its neighbours with it.
                for record in records:
                    await self._publish(topic, [record])
                return


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
