# SPDX-License-Identifier: Apache-2.0
"""The stage: raw frames in; alerts, telemetry and summaries out, then the offsets.

The work is done by `processors.teller`; here a pump hands it frames and a clock tells it to look at what has waited. A frame that was read is never read twice by this process, whatever the pump repeats; what could not be
published is kept and sent first. Neighbours: `bus.pump`, `processors.facts`, `processors.ledger`, `processors.parking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from bus.contract import Bus, Delivery, Headers, Record
from bus.pump import Pump, PumpSettings
from policy.ruleset import PostureSettings, compile_ruleset
from processors.alerts import Alerts
from processors.facts import Compile, Facts
from processors.holding import HoldingBus
from processors.identify import Inventory, InventorySettings
from processors.judge import Judge, JudgeSettings
from processors.ledger import Ledger
from processors.notices import notice
from processors.parking import Parking, ParkingSettings
from processors.progress import Reporting
from processors.stats import ProcessorStats
from processors.teller import Teller
from processors.throttle import Throttle, ThrottleSettings
from schemas.errors import DecodeError, HauberkError, Permanent, Temporary
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, INVENTORY, SUMMARIES, TELEMETRY, Topic

_CHUNK = 500
"""Records per publish."""
_TICK = 0.2
"""Seconds between looks at what has waited long enough; a fact that arrives wakes it at once."""
_ALERTS = 0.1
"""Seconds that an alert waits at most for the rest of a batch of frames."""
_SHOWN = 65536
"""Bytes of a record that the bus refused which are kept in its dead letter: it may have been refused for its size."""

log = logging.getLogger(__name__)


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
        max_records=64, max_wait=0.25
    )


class Processor:
    """`await run()` until `stop()`. `stats()` any time. `reports`: publish how far frames are read, for nodes elsewhere."""

    def __init__(
        self,
        bus: Bus,
        settings: ProcessorSettings | None = None,
        *,
        compile_documents: Compile | None = None,
        clock: Callable[[], float] = time.monotonic,
        reports: bool = True,
    ) -> None:
        self.settings = settings or ProcessorSettings()
        self._bus = bus
        self.inventory = Inventory(self.settings.inventory, clock)
        self.judge = Judge(self.settings.judge, self.inventory, compile_ruleset((), self.settings.postures))
        self.parking = Parking(self.settings.parking)
        self.throttle = Throttle(self.settings.throttle)
        self.alerts = Alerts(self.throttle)
        self.ledger = Ledger()
        self.facts = Facts(
            bus, self.inventory, self.judge.use, self._wake, self.settings.postures, compile_documents, self._damaged
        )
        self.pump = Pump(
            HoldingBus(bus, self.ledger, self._finish),
            (EVENTS_RAW,),
            self.settings.group,
            self.handle,
            stage="processors",
            settings=self.settings.pump,
        )
        self.teller = Teller(
            self.inventory, self.judge, self.parking, self.alerts, self.ledger, clock, self.settings.telemetry
        )
        self._reporting = Reporting(bus, self.settings.group, lambda: self.teller.numbers) if reports else None
        self._sending = asyncio.Lock()
        self._moved = asyncio.Event()
        self._bad_frames = 0
        self._refused_records = 0
        self._problem = ""

    def stats(self) -> ProcessorStats:
        """The counts as of now."""
        return ProcessorStats(
            **msgspec.structs.asdict(self.teller.counts),
            judged=self.judge.judged,
            hits=self.judge.hits,
            revalidated=self.judge.revalidated,
            alerts=dict(self.alerts.told),
            parked_events=self.parking.total,
            waiting=self.parking.waiting,
            throttled=self.throttle.suppressed,
            bad_frames=self._bad_frames,
            refused_records=self._refused_records,
            open_frames=self.ledger.open_frames,
            policies=self.facts.policies,
            policies_damaged=bool(self.facts.damage),
            facts_refused=self.facts.refused,
            policy_changes=self.facts.recompiled,
            identities=len(self.inventory),
            problem=self.facts.problem or self._problem,
        )

    def stop(self) -> None:
        """Finish what is in hand, publish and commit it; frames with rows still parked are read again at the next start."""
        self.pump.stop()

    async def run(self) -> None:
        """Until `stop`. The latest policies and identities are in force before the first frame is read."""
        # The pump subscribes at once, so that the group is known to whoever asks what it has not read yet.
        pump = asyncio.create_task(self.pump.run())
        tasks = [pump, asyncio.create_task(self.facts.run()), asyncio.create_task(self._tick_forever())]
        if self._reporting is not None:
            tasks.append(asyncio.create_task(self._reporting.run()))
        try:
            # The pump ends on `stop`, the others only by an error, which must not pass unseen.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def give_up(self) -> None:
        """Once what the bus says of identities is known here, tell parked rows with what is known. For when those who could
        say more have ended: nothing is gained by waiting for them."""
        ends = await self._bus.end(INVENTORY)
        while any(  # noqa: ASYNC110 - polls offsets, which have no event
            self.facts.position.get((INVENTORY.name, partition), -1) < end for partition, end in ends.items()
        ):
            await asyncio.sleep(0.01)
        self.parking.give_up()
        self._wake()

    async def handle(self, deliveries: list[Delivery]) -> None:
        """Read frames and publish what they say. Raises DecodeError for one that cannot be read (it is dead-lettered)."""
        await self.facts.ready.wait()
        told = time.monotonic()
        for delivery in deliveries:
            # A batch of frames of new behaviours takes a second: policies and identities must not wait for all of it.
            await asyncio.sleep(0)
            if self.teller.outbox.alerts and time.monotonic() - told >= _ALERTS:
                # And neither must alerts.
                async with self._sending:
                    await self._publish(ALERTS, self.teller.outbox.alerts)
                told = time.monotonic()
            if not self.ledger.knows(delivery):
                try:
                    self.teller.read(delivery)
                except Exception as error:
                    # Reading is a function of the bytes: what it stumbles over, it stumbles over again. The pump buries the
                    # frame, and then it must hold nothing back.
                    self._bad_frames += self.ledger.dead(delivery)
                    if isinstance(error, HauberkError):
                        raise
                    log.exception("a frame could not be judged and goes to the dead letters")
                    raise DecodeError(
                        f"expected a frame that can be judged, got {type(error).__name__}: {error}; report it with the dead letter"
                    ) from error
        self.teller.settle()
        await self.send()

    async def send(self) -> None:
        """Publish the outbox, alerts first. Raises Temporary; what was not published is kept."""
        async with self._sending:
            # Taken before publishing: only what these groups said is certain to be out when the outbox is empty.
            groups = list(self.teller.groups)
            box = self.teller.outbox
            for topic, records in ((ALERTS, box.alerts), (TELEMETRY, box.telemetry), (SUMMARIES, box.summaries)):
                await self._publish(topic, records)
            for group in groups:
                self.ledger.told(group)
            del self.teller.groups[: len(groups)]

    async def _publish(self, topic: Topic, records: list[Record]) -> None:
        most = _CHUNK
        while records:
            chunk = records[:most]
            try:
                await self._bus.publish(topic, chunk)
            except Permanent as error:
                if len(chunk) > 1:
                    # One that the bus will never take must not hold back the others.
                    most = len(chunk) // 2
                    continue
                await self._refused(topic, chunk[0], error)
            del records[: len(chunk)]
            most = _CHUNK

    async def _refused(self, topic: Topic, record: Record, error: Permanent) -> None:
        self._problem = f"a record of `{topic.name}` was refused and is lost: {error}"
        self._refused_records += 1
        log.error("%s", self._problem)
        headers: Headers = (
            ("dead.topic", topic.name.encode()),
            ("dead.stage", b"processors"),
            ("dead.reason", error.reason.value.encode()),
            ("dead.error", str(error)[:1024].encode("utf-8", "replace")),
        )
        with contextlib.suppress(Permanent):
            await self._bus.publish(DEAD, [Record(record.key[:_SHOWN], (record.value or b"")[:_SHOWN], headers)])

    async def _finish(self) -> None:
        """The pump stops. Parked rows stay uncommitted: the next start reads them again, perhaps knowing whose they are."""
        self.teller.settle(closing=True)
        await self.send()

    async def _tick_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_TICK):
                    await self._moved.wait()
            except TimeoutError:
                pass
            self._moved.clear()
            self.teller.settle()
            try:
                await self.send()
            except Temporary as error:
                self._problem = str(error)
                await asyncio.sleep(error.retry_after or 1.0)

    def _damaged(self, why: str) -> None:
        node = os.uname().nodename
        self.teller.outbox.alerts.append(notice(node, "PoliciesDamaged", why, severity=10))
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
