# SPDX-License-Identifier: Apache-2.0
"""The stage: raw frames in; alerts, telemetry and summaries out, then the offsets.

The work is done by `processors.pipeline`; here a pump hands it frames, and time to look at what has waited. A frame that was
read is never read twice by this process, whatever the pump repeats; what could not be published is kept and sent first.
Neighbours: `bus.pump`, `processors.followed`, `processors.commit_tracker`, `processors.parking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Annotated

import msgspec

from bus.contract import Bus, Delivery, Partition, Record
from bus.dead_letters import Letter
from bus.paced_log import PacedLog
from bus.pump import Pump, PumpSettings
from bus.rest import REST_SECONDS, until_look
from bus.side_by_side import SideBySide
from policy.ruleset import PostureSettings, compile_ruleset
from processors.alerts import Alerts
from processors.called import CalledSettings
from processors.commit_tracker import CommitTracker
from processors.followed import Compile, Followed
from processors.inventory import Inventory, InventorySettings
from processors.judge import FrameJudge, JudgeSettings
from processors.missed_frames import MissedFrames
from processors.names import Names, NameSettings
from processors.notices import notice
from processors.parking import Parking, ParkingSettings
from processors.pipeline import Due, Pipeline
from processors.progress import Reporting
from processors.quiet import Needless
from processors.stats import ProcessorStats
from processors.throttle import Throttle, ThrottleSettings
from schemas.errors import DecodeError, HauberkError
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, SUMMARIES, TELEMETRY, Topic

_CHUNK = 500
"""Records per publish."""
_TICK = 0.2
"""Seconds between looks at what has waited long enough; a policy or identity that arrives wakes the pump at once."""
_ALERTS = 0.01
"""Seconds that an alert waits at most for the rest of a batch of frames."""

log = logging.getLogger(__name__)


Complete = Callable[[list[Record]], Awaitable[list[Record]]]
"""The same alerts in the same order, completed. Bounded in time."""


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
    names: Annotated[NameSettings, msgspec.Meta(description="How many names the summaries list.", examples=[{}])] = (
        NameSettings()
    )
    called: Annotated[
        CalledSettings,
        msgspec.Meta(description="What workloads call addresses, by the DNS answers that they heard.", examples=[{}]),
    ] = CalledSettings()
    throttle: Annotated[
        ThrottleSettings, msgspec.Meta(description="When repeated alerts are suppressed.", examples=[{}])
    ] = ThrottleSettings()
    postures: Annotated[
        PostureSettings, msgspec.Meta(description="Default postures and visibility.", extra={"setting": "derived"})
    ] = PostureSettings()
    pump: Annotated[PumpSettings, msgspec.Meta(description="How frames are taken.", examples=[{}])] = PumpSettings(
        max_records=64, max_wait=REST_SECONDS
    )


class Processor:
    """`await run()` until `stop()` or `finish()`. `stats()` any time. `reports`: publish how far frames are read and which
    behaviours may be alerts, for nodes elsewhere. `complete`: what only the node itself can add to its alerts, asked just before they are published. `due`, `logged`, `needless`: see `Pipeline`. The handler of its pump: see `bus.handler`."""

    def __init__(
        self,
        bus: Bus,
        settings: ProcessorSettings | None = None,
        *,
        compile_documents: Compile | None = None,
        clock: Callable[[], float] = time.monotonic,
        reports: bool = True,
        complete: Complete | None = None,
        due: Due | None = None,
        logged: Callable[[], bool] | None = None,
        needless: Needless | None = None,
    ) -> None:
        self.settings = settings or ProcessorSettings()
        self._bus = bus
        self._clock = clock
        self.inventory = Inventory(self.settings.inventory, clock, self.settings.called)
        self.judge = FrameJudge(self.settings.judge, self.inventory, compile_ruleset((), self.settings.postures))
        self.parking = Parking(self.settings.parking)
        self.throttle = Throttle(self.settings.throttle)
        self.alerts = Alerts(self.throttle, self.inventory.peer)
        self.tracker = CommitTracker()
        self.facts = Followed(
            bus, self.inventory, self.judge.use, self._wake, self.settings.postures, compile_documents, self._damaged
        )
        self._missed = MissedFrames()
        self.pump = Pump(
            bus,
            (EVENTS_RAW,),
            self.settings.group,
            self,
            stage="processors",
            settings=self.settings.pump,
            missed=self._missed.add,
        )
        self._bugs = PacedLog(log)
        self._reporting = Reporting(bus, self.settings.group, lambda: self.pipeline.numbers) if reports else None
        if due is None and self._reporting is not None:
            due = self._reporting.due
        self.pipeline = Pipeline(
            self.inventory, self.judge, self.parking, self.alerts, self.tracker, clock, self.settings.telemetry, due,
            Names(self.settings.names), logged, needless,
        )  # fmt: skip
        if self.pipeline.quiet is not None:
            self.inventory.on_change = self.judge.on_change = self.pipeline.quiet.forget
        self._complete = complete
        self._owners: Mapping[Partition, int] | None = None
        self._waits_for_owners = False
        self._bad_frames = 0
        self._refused_records = 0
        self._problem = ""

    def stats(self) -> ProcessorStats:
        """The counts as of now."""
        called = self.inventory.called.stats
        return ProcessorStats(
            **msgspec.structs.asdict(self.pipeline.counts),
            judged=self.judge.judged,
            hits=self.judge.hits,
            revalidated=self.judge.revalidated,
            alerts=dict(self.alerts.by_action),
            parked_events=self.parking.total,
            waiting=self.parking.waiting,
            throttled=self.throttle.suppressed,
            unlisted=self.pipeline.names.left_out,
            drift_forgotten=self.alerts.drift.forgotten,
            dns_answers=called.answers,
            dns_answers_unread=called.unread,
            dns_answers_cut=called.cut,
            dns_names_forgotten=called.forgotten,
            dns_names=self.inventory.called.held,
            bad_frames=self._bad_frames,
            refused_records=self._refused_records,
            open_frames=self.tracker.open_frames,
            policies=self.facts.policies,
            policies_damaged=bool(self.facts.damage),
            facts_refused=self.facts.refused,
            policy_changes=self.facts.recompiled,
            outages=self.facts.outages,
            damaged_reads=self.facts.damaged_reads,
            identities=len(self.inventory),
            problem=self.facts.problem or self.pump.stats.failure or self._problem,
        )

    def stop(self) -> None:
        """Finish what is in hand, publish and commit it; frames with rows still parked are read again at the next start."""
        self._waits_for_owners = False
        self.pump.stop()

    async def finish(self, *, last: bool = False) -> None:
        """Ask `run` to end once every frame that is there now is read and told. Rows whose owner is not known are waited for;
        with `last` no inventory producer outlives this stage, so they are judged with what the bus has now."""
        self._owners = None
        if last:
            self._owners = {}
            # A bus that does not say what it has will not say who they are either.
            with contextlib.suppress(HauberkError):
                ends = await self._bus.end(INVENTORY)
                self._owners = {(INVENTORY.name, partition): end for partition, end in ends.items()}
        self._waits_for_owners = True
        await self.pump.finish()

    async def run(self) -> None:
        """Until `stop` or `finish`. The latest policies and identities are in force before the first frame is read."""
        try:
            async with SideBySide() as parts:
                # The pump subscribes at once, so that the group is known to whoever asks what it has not read yet.
                parts.start(self.pump.run(), self.facts.run())
                if self._reporting is not None:
                    parts.start(self._reporting.run())
                # The pump ends when it is asked to, the others only by an error, which must not pass unseen.
                await parts.first()
        finally:
            if self.pipeline.quiet is not None:
                # Whoever reads on, after a back-off or a start, may do so under other policies.
                self.pipeline.quiet.forget()

    async def handle(self, deliveries: list[Delivery]) -> None:
        """Read frames. Raises DecodeError for one that cannot be read (it is dead-lettered)."""
        self.tracker.taken(deliveries)
        while not self.facts.ready.is_set():
            await self.send()
            await self.pump.woken(_TICK)
        told = time.monotonic()
        for number, delivery in enumerate(deliveries):
            if number:
                # A batch of frames of new behaviours takes a second: policies and identities must not wait for all of it.
                await asyncio.sleep(0)
            if self.pipeline.outbox.alerts and time.monotonic() - told >= _ALERTS:
                # And neither must alerts.
                await self._publish(ALERTS, self.pipeline.outbox.alerts)
                told = time.monotonic()
            if not self.tracker.knows(delivery):
                try:
                    self.pipeline.read(delivery)
                except Exception as error:
                    # Reading is a function of the bytes: what it stumbles over, it stumbles over again. The pump buries the
                    # frame, and then it must hold nothing back.
                    self._bad_frames += self.tracker.dead(delivery)
                    if isinstance(error, HauberkError):
                        raise
                    self._bugs.say(
                        logging.ERROR, "a frame could not be judged and goes to the dead letters", exc_info=True
                    )
                    raise DecodeError(
                        f"expected a frame that can be judged, got {type(error).__name__}: {error}; report it with the dead letter"
                    ) from error

    async def tick(self, idle: bool) -> None:
        """Publish what is known by now."""
        self.pipeline.settle()
        self.pipeline.outbox.alerts += self._missed.due(self._clock())
        await self.send()

    def wait(self) -> float:
        # Groups to be closed, rows that wait for an owner, silences to be ended: all of them by the clock.
        busy = (
            self._missed.waiting
            or self.tracker.open_frames
            or self.parking.waiting
            or len(self.throttle)
            or self.pipeline.losses_wait
        )
        return _TICK if busy else until_look()

    def committable(self) -> Sequence[Delivery]:
        return self.tracker.done()

    async def settle(self) -> None:
        """No further frame comes. Rows still parked stay uncommitted: the next start reads them again, perhaps knowing whose
        they are."""
        while self._waits_for_owners and self.parking.waiting and self.pump.attempts.left > 0:
            owners, known = self._owners, self.facts.position
            if owners is not None and all(known.get(place, -1) >= end for place, end in owners.items()):
                self.parking.give_up()
            else:
                await self.pump.woken(_TICK)
            self.pipeline.settle()
            await self.send()
        self.pipeline.settle(closing=True)
        self.pipeline.outbox.alerts += self._missed.due(self._clock(), everything=True)
        await self.send()

    def released(self, partitions: Collection[Partition]) -> None:
        self.pipeline.released(partitions)

    async def send(self) -> None:
        """Publish the outbox, alerts first, for as long as it takes. Raises `Stopped`; what was not published is kept."""
        # Taken before publishing: only what these groups said is certain to be out when the outbox is empty.
        groups = list(self.pipeline.groups)
        box = self.pipeline.outbox
        for topic, records in ((ALERTS, box.alerts), (TELEMETRY, box.telemetry), (SUMMARIES, box.summaries)):
            await self._publish(topic, records)
        for group in groups:
            self.tracker.published(group)
        del self.pipeline.groups[: len(groups)]

    async def _publish(self, topic: Topic, records: list[Record]) -> None:
        async def publish(chunk: list[Record]) -> None:
            await self._bus.publish(topic, chunk)

        async def refused(given_up: list[tuple[Record, Exception, int]]) -> None:
            for _, error, _ in given_up:
                self._problem = f"a record of `{topic.name}` was refused and is lost: {error}"
                self._refused_records += 1
            await self.pump.dead.write([Letter(topic, *one) for one in given_up])

        if topic is ALERTS and records and self._complete is not None:
            many = len(records)
            try:
                # What comes while this waits is behind the slice.
                records[:many] = await self._complete(records[:many])
            except Exception:
                log.exception("alerts are published as they are: they could not be completed")
        while records:
            chunk = records[:_CHUNK]
            # One that the bus will never take must not hold back the others.
            await self.pump.attempts.work(chunk, publish, refused)
            del records[: len(chunk)]

    def _damaged(self, why: str) -> None:
        node = os.uname().nodename
        self.pipeline.outbox.alerts.append(notice(node, "PoliciesDamaged", why, severity=10))
        self._wake()

    def _wake(self) -> None:
        self.pump.wake()
