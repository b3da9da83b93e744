# SPDX-License-Identifier: Apache-2.0
"""The stage: raw frames in; alerts, telemetry and summaries out, then the offsets.

`read` and `settle` are plain functions of frames and facts; around them a pump hands frames in and a clock tells what has
waited long enough. A frame that was read is never read twice by this process, whatever the pump repeats; what could not be
published is kept and sent first. Neighbours: `bus.pump`, `processors.facts`, `processors.ledger`, `processors.parking`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from bus.contract import Bus, Delivery, Record
from bus.pump import Pump, PumpSettings
from policy.ruleset import PostureSettings, compile_ruleset
from processors import rows
from processors.alerts import Alerts
from processors.facts import Compile, Facts
from processors.holding import HoldingBus
from processors.identify import Inventory, InventorySettings
from processors.judge import Entry, Judge, JudgeSettings, Tally
from processors.ledger import Ledger
from processors.parking import Parked, Parking, ParkingSettings
from processors.summaries import Page, count, summaries
from processors.telemetry import telemetry
from processors.throttle import Throttle, ThrottleSettings
from schemas import frame as frames
from schemas import summary as summary_words
from schemas import telemetry as telemetry_words
from schemas.errors import DecodeError, Permanent, Temporary
from schemas.expand import process_of
from schemas.frame import FrameHeader
from schemas.kernel import Loss
from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES, TELEMETRY, Topic

_SECOND = 1_000_000_000
_CHUNK = 500
"""Records per publish."""
_TICK = 0.2
"""Seconds between looks at what has waited long enough; a fact that arrives wakes it at once."""
_RUNS = 4096
"""Agent runs whose last frame number is remembered."""


class ProcessorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor stage."""

    group: Annotated[
        str,
        msgspec.Meta(description="Consumer group; processors that share it share the work.", examples=["processors"]),
    ] = "processors"
    telemetry: Annotated[
        bool, msgspec.Meta(description="Publish what is visible as telemetry frames.", examples=[True])
    ] = True
    judge: Annotated[JudgeSettings, msgspec.Meta(description="The judge's cache.", examples=[{}])] = JudgeSettings()
    inventory: Annotated[
        InventorySettings, msgspec.Meta(description="What is remembered of containers.", examples=[{}])
    ] = InventorySettings()
    parking: Annotated[
        ParkingSettings, msgspec.Meta(description="How long events of unknown containers wait.", examples=[{}])
    ] = ParkingSettings()
    throttle: Annotated[ThrottleSettings, msgspec.Meta(description="When an alert storm is cut.", examples=[{}])] = (
        ThrottleSettings()
    )
    postures: Annotated[
        PostureSettings, msgspec.Meta(description="Default postures and visibility.", examples=[{}])
    ] = PostureSettings()
    pump: Annotated[PumpSettings, msgspec.Meta(description="How frames are taken.", examples=[{}])] = PumpSettings(
        max_records=64
    )


class ProcessorStats(msgspec.Struct):
    """Plain counts since start. `events`: rows and folded; `told_unknown`: events judged without knowing whose they are;
    `undefined`: events whose definition never came; `repeats`: frames seen again; `holes`: frames that never came."""

    frames: int = 0
    events: int = 0
    judged: int = 0
    hits: int = 0
    revalidated: int = 0
    alerts: dict[str, int] = {}
    telemetry_events: int = 0
    summary_events: int = 0
    parked: int = 0
    waiting: int = 0
    told_unknown: int = 0
    undefined: int = 0
    throttled: int = 0
    repeats: int = 0
    holes: int = 0
    lost: dict[str, int] = {}
    bad_frames: int = 0
    open_frames: int = 0
    policies: int = 0
    policies_refused: int = 0
    policy_changes: int = 0
    identities: int = 0
    problem: str = ""


class Processor:
    """`await run()` until `stop()`. `stats()` any time."""

    def __init__(
        self,
        bus: Bus,
        settings: ProcessorSettings | None = None,
        *,
        compile_documents: Compile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or ProcessorSettings()
        self._bus = bus
        self._clock = clock
        self.inventory = Inventory(self.settings.inventory, clock)
        self.judge = Judge(self.settings.judge, self.inventory, compile_ruleset((), self.settings.postures))
        self.parking = Parking(self.settings.parking)
        self.throttle = Throttle(self.settings.throttle)
        self.alerts = Alerts(self.throttle)
        self.ledger = Ledger()
        self.facts = Facts(bus, self.inventory, self.judge.use, self._wake, self.settings.postures, compile_documents)
        self.pump = Pump(
            HoldingBus(bus, self.ledger, self._finish),
            (EVENTS_RAW,),
            self.settings.group,
            self.handle,
            stage="processors",
            settings=self.settings.pump,
        )
        self._groups: list[list[Page]] = []
        self._latest = (0, clock())
        self._outbox: dict[str, list[Record]] = {ALERTS.name: [], TELEMETRY.name: [], SUMMARIES.name: []}
        self._sending = asyncio.Lock()
        self._moved = asyncio.Event()
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._stats = ProcessorStats()

    def stats(self) -> ProcessorStats:
        """The counts as of now."""
        stats = self._stats
        stats.judged, stats.hits, stats.revalidated = self.judge.judged, self.judge.hits, self.judge.revalidated
        stats.alerts = dict(self.alerts.told)
        stats.parked, stats.waiting = self.parking.total, self.parking.waiting
        stats.throttled = self.throttle.suppressed
        stats.open_frames = self.ledger.open_frames
        stats.policies, stats.policies_refused = self.facts.policies, self.facts.refused
        stats.policy_changes, stats.identities = self.facts.recompiled, len(self.inventory)
        stats.problem = self.facts.problem or stats.problem
        return stats

    def stop(self) -> None:
        """Finish what is in hand, publish and commit it; frames with rows still parked are read again at the next start."""
        self.pump.stop()

    async def run(self) -> None:
        """Until `stop`. The latest policies and identities are in force before the first frame is read."""
        facts = asyncio.create_task(self.facts.run())
        tasks: list[asyncio.Task[object]] = [facts]
        try:
            ready = asyncio.create_task(self.facts.ready.wait())
            tasks.append(ready)
            await asyncio.wait((ready, facts), return_when=asyncio.FIRST_COMPLETED)
            if not facts.done():
                pump = asyncio.create_task(self.pump.run())
                tasks += [pump, asyncio.create_task(self._tick_forever())]
                # Whichever ends first: the pump on `stop`, the others only by an error, which must not pass unseen.
                await asyncio.wait((pump, facts, tasks[-1]), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def handle(self, deliveries: list[Delivery]) -> None:
        """Read frames and publish what they say. Raises DecodeError for one that cannot be read (it is dead-lettered)."""
        for delivery in deliveries:
            if not self.ledger.knows(delivery):
                try:
                    self.read(delivery)
                except Permanent:
                    self._stats.bad_frames += 1
                    self.ledger.dead(delivery)
                    raise
        self.settle()
        await self.send()

    def read(self, delivery: Delivery) -> None:
        """One frame: count, judge, tell, park."""
        value = delivery.record.value
        if value is None:
            raise DecodeError(f"expected a frame under key `{delivery.record.key!r}`, got a tombstone; nothing to do")
        frame = frames.decode(value)
        self.release()
        tally = self.judge.tally(frame)
        waits = bool(tally.parked or tally.undefined)
        if waits or any(entry.rows for entry in tally.entries.values()):
            # Everything that can be wrong with the bytes is found before anything is told.
            _ = tally.processes
        header = frame.header
        times = tally.times
        at = times[0] if times else min((row[2] for found in tally.folded.values() for row in found), default=0)
        unix = at + header.clock_offset_ns
        page = Page(header, unix // _SECOND, self._clock())
        self._heard(unix)
        self._tell(tally, page)
        self._losses(header, unix)
        self._stats.frames += 1
        self._stats.events += len(times) + sum(row[1] for found in tally.folded.values() for row in found)
        self.ledger.open(delivery, page)
        if waits:
            self.parking.add(tally, page, self._clock())

    def _heard(self, unix: int) -> None:
        if unix > self._event_now():
            self._latest = (unix, self._clock())

    def _event_now(self) -> int:
        """The events' own time, Unix ns: the newest seen and what passed since. A recording has a time of its own."""
        unix, seen = self._latest
        return unix + int((self._clock() - seen) * _SECOND)

    def release(self) -> None:
        """Tell parked rows whose owner is known by now."""
        for part in self.parking.ready(self.inventory, self.judge):
            self._again(part)

    def settle(self, closing: bool = False) -> None:
        """Tell what has waited long enough and close the groups that are whole. `closing`: no further frame will come."""
        self.release()
        now = self._clock()
        for part in self.parking.over(now):
            self._again(part, give_up=True)
        self._outbox[ALERTS.name] += self.alerts.closing(self._event_now())
        for group in self.ledger.groups(now, closing):
            said = [Record(summary.key, summary_words.encode(summary)) for summary in summaries(group)]
            self._outbox[SUMMARIES.name] += said
            self._stats.summary_events += sum(page.events for page in group)
            self._groups.append(group)

    async def send(self) -> None:
        """Publish the outbox, alerts first. Raises Temporary; what was not published is kept."""
        async with self._sending:
            # Taken before publishing: only what these groups said is certain to be out when the outbox is empty.
            groups = list(self._groups)
            for topic in (ALERTS, TELEMETRY, SUMMARIES):
                await self._publish(topic)
            for group in groups:
                self.ledger.told(group)
            del self._groups[: len(groups)]

    def discard(self) -> None:
        """Forget what would be published, and count it as told: for benchmarks and dry runs."""
        for box in self._outbox.values():
            box.clear()
        for group in self._groups:
            self.ledger.told(group)
        self._groups.clear()
        self.ledger.done()

    async def _publish(self, topic: Topic) -> None:
        box = self._outbox[topic.name]
        while box:
            chunk = box[:_CHUNK]
            await self._bus.publish(topic, chunk)
            del box[: len(chunk)]

    async def _finish(self) -> None:
        """The pump stops. Parked rows stay uncommitted: the next start reads them again, perhaps knowing whose they are."""
        self.settle(closing=True)
        await self.send()

    async def _tick_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_TICK):
                    await self._moved.wait()
            except TimeoutError:
                pass
            self._moved.clear()
            self.settle()
            try:
                await self.send()
            except Temporary as error:
                self._stats.problem = str(error)
                await asyncio.sleep(error.retry_after or 1.0)

    def _wake(self) -> None:
        self._moved.set()

    def _again(self, part: Parked, give_up: bool = False) -> None:
        """Judge parked rows again; with `give_up` whatever is not known stays so and is told."""
        tally = self.judge.tally(part.frame)
        header = part.frame.header
        if give_up and tally.parked:
            self._stats.told_unknown += sum(tally.count(ident) for ident in tally.parked)
            for behaviour in tally.parked.values():
                self.inventory.give_up(header.node, behaviour)
            tally = self.judge.tally(part.frame)
        self._tell(tally, part.page)
        if not give_up and (tally.parked or tally.undefined):
            self.parking.add(tally, part.page, self._clock(), part.deadline)
        elif tally.undefined:
            missing = sum(tally.count(ident) for ident in tally.undefined)
            self._stats.undefined += missing
            self._lost(header, part.page.second * _SECOND, [("undefined", missing)], ":undefined")

    def _tell(self, tally: Tally, page: Page) -> None:
        """Alerts, telemetry and counts of what is resolved."""
        said = telemetry(tally) if self.settings.telemetry else None
        apart = {ident for ident, entry in tally.entries.items() if entry.verdict.needs_arguments}
        alerts = list(self.alerts.of(tally))
        if apart:
            alerts += self._per_occurrence(tally, page, apart)
        count(page, tally, apart)
        self._outbox[ALERTS.name] += alerts
        if said is not None:
            self._stats.telemetry_events += said.header.events
            self._outbox[TELEMETRY.name].append(Record(said.header.node.encode(), telemetry_words.encode(said)))

    def _per_occurrence(self, tally: Tally, page: Page, apart: set[int]) -> list[Record]:
        """Rows whose verdict hangs on the arguments of each."""
        again: dict[tuple[int, tuple[str, ...]], Entry] = {}
        offset = tally.header.clock_offset_ns
        records: list[Record] = []
        for position in rows.positions(tally, apart):
            row = rows.row(tally, position)
            entry = tally.entries[row[2]]
            arguments = process_of(entry.behaviour, tally.processes, row[5], row[4]).arguments
            if arguments:
                key = (row[2], arguments)
                found = again.get(key)
                if found is None:
                    found = again[key] = self.judge.with_arguments(entry, arguments)
                entry = found
            records += self.alerts.row(tally, entry, row)
            page.add(entry, 1, row[3] + offset, row[3] + offset)
        for ident in apart & tally.folded.keys():
            entry = tally.entries[ident]
            for _, many, first, last, sequence, process in tally.folded[ident]:
                row = (0, 0, ident, first, sequence, process, 0, 0, 0, 0, 0, 0)
                records += self.alerts.row(tally, entry, row, many)
                page.add(entry, many, first + offset, last + offset)
        return records

    def _losses(self, header: FrameHeader, unix: int) -> None:
        """Count and tell what the node says it lost, and frames that never came."""
        run = (header.node, header.boot, header.run)
        last = self._numbers.pop(run, None)
        if last is not None and header.number <= last:
            self._numbers[run] = last
            self._stats.repeats += 1
            return
        self._numbers[run] = header.number
        if len(self._numbers) > _RUNS:
            del self._numbers[next(iter(self._numbers))]
        counts = [
            (Loss(index).name.lower(), many) for index, many in enumerate(header.lost) if many and index < len(Loss)
        ]
        for what, many in counts:
            self._stats.lost[what] = self._stats.lost.get(what, 0) + many
        if last is not None and header.number > last + 1:
            holes = header.number - last - 1
            self._stats.holes += holes
            counts.insert(0, ("frames", holes))
        if counts:
            self._lost(header, unix, counts)

    def _lost(self, header: FrameHeader, unix: int, counts: list[tuple[str, int]], mark: str = "") -> None:
        identity = self.inventory.node_identity(header.node)
        self._outbox[ALERTS.name].append(self.alerts.lost(header, identity, unix, counts, mark))
