# SPDX-License-Identifier: Apache-2.0
"""The engine of a node's enforcement: the saved plan at start, then every plan that is desired, each answered by a receipt.

The bus is not needed to go on enforcing. Plans are carried out in a thread, one at a time, newest only. A plan is saved
before it is carried out and the file is replaced whole, so that a crash leaves the old or the new one. Neighbours: `apply`
(the work), `planner` (who desires), the sensor (whose pins are used).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Final

import msgspec

from bus.contract import Bus, Record
from bus.follow import Changes, Follower
from bus.rest import until_look
from enforcers import trial_watch, trials
from enforcers.apply import Applier
from enforcers.holding import HeldStarts
from enforcers.settings import EnforceSettings
from enforcers.swap import opened, saved_file, saved_plan
from enforcers.trials import Standing, TrialRecord, boot_id
from kernel.audit import AuditStream
from kernel.descriptors import DescriptorReserve
from schemas.enforcement import Plan, Receipt, decode_plan, encode
from schemas.errors import DecodeError, DiskFull, HauberkError, Permanent, Temporary
from schemas.identity import Identity
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS

log = logging.getLogger(__name__)

HEARTBEAT: Final = 30.0
"""Seconds after which, at most, the latest receipt is said again: who waits for nodes tells by it that this one is there."""


class EnforcementStats(msgspec.Struct):
    """Plans on this node since start. `plans`: carried out; `failed`: not, by an error of this program; `unreadable`: records that
    are no plan; `kept`: plans of older policies than the one in force, left alone; `receipts`: published; `cut_receipts`: refused by
    the bus as they were, published without their lists of rules or not at all. `lsm_*`: what the LSM hooks did since they were
    loaded, by `schemas.lsm.HookCount`: all but `lsm_denied` and `lsm_shadowed` are answers that were given without asking the rules. `apparmor_*`: denials in
    the audit stream that became alerts, that the sensor reports with the same rule, that came too fast for that, and that were lost (by the kernel: times)."""

    plans: int = 0
    failed: int = 0
    unreadable: int = 0
    kept: int = 0
    receipts: int = 0
    cut_receipts: int = 0
    lsm_denied: int = 0
    lsm_shadowed: int = 0
    lsm_unresolved: int = 0
    lsm_elsewhere: int = 0
    lsm_no_scratch: int = 0
    lsm_claim_lost: int = 0
    lsm_no_header: int = 0
    lsm_no_actor: int = 0
    apparmor_denials: int = 0
    apparmor_elsewhere: int = 0
    apparmor_silenced: int = 0
    apparmor_dropped: int = 0


class Enforcement:
    """`run` until `stop`. `receipt`: the latest; `said(receipt)` is called after each plan."""

    def __init__(
        self,
        bus: Bus,
        pin_dir: str,
        node: str,
        settings: EnforceSettings | None = None,
        find: Callable[[int], Identity | None] = lambda cgroup: None,
    ) -> None:
        self._find = find
        self._bus = bus
        self._settings = settings or EnforceSettings()
        self._pin_dir = pin_dir
        self._node = node
        self._file = saved_file(self._settings)
        self._trials = TrialRecord(self._settings.state_dir)
        self._lock = -1
        self._one = asyncio.Lock()
        self._watched: tuple[str, ...] = ()
        self._lifting: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._applier: Applier | None = None
        self._reserve: DescriptorReserve | None = None
        self._unsaid: Receipt | None = None
        self._said = 0.0
        self._next = HEARTBEAT
        self.holding = HeldStarts()
        self.plan: Plan | None = None
        self.receipt: Receipt | None = None
        self.problem = ""
        self.stats = EnforcementStats()
        self.ready = asyncio.Event()
        """Set when the first plan, saved or desired, is in force, or there is none."""

    @property
    def applier(self) -> Applier:
        """Whoever carries plans out; opened by `run`."""
        assert self._applier is not None, "`run` opens the applier"
        return self._applier

    @property
    def idle(self) -> str:
        """Why nothing is enforced although backends are asked for; "" when something can be."""
        if not (self._settings.backends or self._settings.lsm) or self._applier is None or self._applier.usable:
            return ""
        return "; ".join(self._applier.problems)

    def stop(self) -> None:
        """Ask `run` to return. What is in force stays in force."""
        self._stopping.set()

    async def run(self) -> None:
        """Carry out the saved plan, then what is desired. Raises KernelError when pins cannot be opened."""
        self._applier = await asyncio.to_thread(opened, self._pin_dir, self._node, self._settings)
        for problem in self._applier.problems:
            log.warning("enforcement: %s", problem)
        self._reserve = DescriptorReserve()
        if self._settings.state_dir:
            self._lock = await asyncio.to_thread(self._locked)
        reading: asyncio.Task[None] | None = None
        try:
            if self._applier.profiled is not None:
                reading = asyncio.create_task(self._read_audit())
            saved = self._load()
            if saved is not None:
                await self._apply(saved, save=False)
            follower = Follower(
                self._bus,
                (ENFORCEMENT_DESIRED,),
                stopping=self._stopping,
                keys={self._node.encode()},
                failed=self._away,
                retry_permanent=False,
            )
            await follower.run(self._changed, wait=lambda: self._next)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            if self._lifting is not None:
                self._lifting.cancel()
                await asyncio.gather(self._lifting, return_exceptions=True)
            if self._lock >= 0:
                os.close(self._lock)
            self._reserve.close()
            self._applier.close()

    async def _changed(self, changes: Changes) -> None:
        await self._desired([record for _, record in changes.records])
        self.ready.set()
        await self._tell()
        for which, count in self.applier.hook_counts().items():
            setattr(self.stats, f"lsm_{which.name.lower()}", count)
        wait = self.applier.sweep()
        # A plan ends the wait at once; a receipt that the bus did not take is offered again soon.
        longest = until_look(HEARTBEAT) if self._unsaid is None else 0.2
        self._next = longest if wait is None else max(0.001, min(wait, longest))

    def _away(self, error: HauberkError) -> None:
        self.problem = str(error)
        self.ready.set()  # the bus is away; the saved plan is in force

    async def _desired(self, records: list[Record]) -> None:
        if not records or records[-1].value is None:
            return
        try:
            plan = decode_plan(records[-1].value)
        except DecodeError as error:
            self.stats.unreadable += 1
            await self._keep(f"the plan on the bus cannot be read: {error}; what is in force stays")
            return
        if self.plan is not None and (plan.digest, plan.generation) == (self.plan.digest, self.plan.generation):
            return
        if self.plan is not None and plan.created_ns < self.plan.created_ns and plan.digest != self.plan.digest:
            self.stats.kept += 1
            await self._keep(
                "the plan on the bus is of older policies than the one in force, so records of them are lost; what is in "
                "force stays. Apply all policies again"
            )
            return
        await self._apply(plan, save=True)

    async def _keep(self, why: str) -> None:
        """What is in force stays, and the receipt says why."""
        if self.problem == why:
            return
        self.problem = why
        log.error("%s", why)
        if self.receipt is not None:
            self.receipt = msgspec.structs.replace(self.receipt, failed=(*self.receipt.failed, why))
            self._unsaid = self.receipt
            await self._tell()

    async def _read_audit(self) -> None:
        """AppArmor's denials to alerts, until cancelled. Enforcement never hangs on it."""
        try:
            stream = AuditStream()
        except HauberkError as error:
            self.problem = f"denials by AppArmor are not told: {error}"
            log.warning("%s", self.problem)
            return
        # Half a megabyte that a node without AppArmor does without.
        from enforcers.apparmor_alerts import DenialAlerts

        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        alerts, lost = DenialAlerts(self._node, boot_id(), self._find), 0
        loop.add_reader(stream.fileno(), ready.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1 if alerts.untold else None):
                        await ready.wait()
                ready.clear()
                denials = stream.take()
                scopes = self.plan.scopes if self.plan is not None else ()
                records = alerts.records(denials, scopes, self.applier.profiled or {}, stream.lost - lost)
                lost = stream.lost
                if records:
                    try:
                        await self._bus.publish(ALERTS, records)
                    except HauberkError as error:
                        alerts.unpublished(len(records))
                        log.warning("denials by AppArmor could not be published: %s", error)
                counts = alerts.counts
                self.stats.apparmor_denials, self.stats.apparmor_silenced = counts.told, counts.silenced
                self.stats.apparmor_dropped, self.stats.apparmor_elsewhere = counts.dropped, counts.elsewhere
        finally:
            loop.remove_reader(stream.fileno())
            stream.close()

    def _locked(self) -> int:
        try:
            return trial_watch.locked(self._settings.state_dir)
        except OSError:
            # A full disk or a read-only one: rules matter more, and a switch then acts without asking.
            return -1

    async def _lift(self, seconds: float) -> None:
        """Carry the plan out again when a minute is over."""
        await asyncio.sleep(seconds)
        self._lifting = None
        if self.plan is not None:
            await self._apply(self.plan, save=False)

    def _watch(self, standing: Standing) -> Standing:
        """Have somebody lift what is not confirmed also when this process is gone; where nobody can, it is not put in force at all."""
        names = tuple(one.name for one in standing.plan.trials)
        if standing.left is None or names == self._watched:
            return standing
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + standing.left
        watch = trial_watch.TrialWatch(self._pin_dir, self._node, self._settings, until)
        if why := trial_watch.start(watch):
            log.error("policies that wait for a confirmation are not held: nobody can be started to lift them: %s", why)
            return trials.standing(standing.plan, {}, "", 0.0)
        self._watched = names
        return standing

    async def _apply(self, plan: Plan, save: bool) -> None:
        async with self._one:
            await self._carry_out(plan, save)

    async def _carry_out(self, plan: Plan, save: bool) -> None:
        # Strictly first: when a policy was first seen is on disk before anything of it holds.
        standing = await asyncio.to_thread(self._trials.now, plan)
        if save:
            await asyncio.to_thread(self._save, plan)
        standing = await asyncio.to_thread(self._watch, standing)
        assert self._reserve is not None, "`run` keeps descriptors aside"
        try:
            # Whatever else took all descriptors: there are some for the rules.
            with self._reserve.lent():
                self.receipt = await asyncio.to_thread(self.applier.apply, standing.plan)
        except HauberkError:
            raise
        except Exception as error:
            # One plan with a value that nobody thought of must not end enforcement, nor be tried for ever.
            self.stats.failed += 1
            log.exception("a plan could not be carried out")
            await self._keep(
                f"plan {plan.generation} could not be carried out: {type(error).__name__}: {error}; what is in force stays"
            )
            if save and self.plan is not None:
                await asyncio.to_thread(self._save, self.plan)
            self.ready.set()
            return
        self.plan = plan
        self.holding.carried_out(plan, self.receipt)
        self.stats.plans += 1
        if standing.over:
            await asyncio.to_thread(self._trials.lifted, standing.over)
        if self._lifting is not None and self._lifting is not asyncio.current_task():
            self._lifting.cancel()
        self._lifting = None if standing.left is None else asyncio.create_task(self._lift(standing.left))
        for sentence in self.receipt.failed:
            log.warning("enforcement: %s", sentence)
        self._unsaid = self.receipt
        self.ready.set()
        await self._tell()

    async def _tell(self) -> None:
        if self._unsaid is None and asyncio.get_running_loop().time() - self._said >= HEARTBEAT / 2:
            self._unsaid = self.receipt
        if self._unsaid is None:
            return
        receipt = self._unsaid
        try:
            try:
                await self._publish(receipt)
            except Permanent as error:
                # It would be refused each time, and what ends by it would never see another plan.
                self.stats.cut_receipts += 1
                await self._publish(_cut(receipt, error))
        except Temporary as error:
            self.problem = str(error)
            return
        except Permanent as error:
            self.problem = f"no receipt can be published: {error}"
            log.error("%s; what is in force stays", self.problem)
        else:
            self.stats.receipts += 1
        self._said = asyncio.get_running_loop().time()
        if self._unsaid is receipt:
            self._unsaid = None

    async def _publish(self, receipt: Receipt) -> None:
        await self._bus.publish(ENFORCEMENT_STATUS, [Record(self._node.encode(), encode(receipt))])

    def _load(self) -> Plan | None:
        try:
            return saved_plan(self._settings)
        except (DecodeError, OSError) as error:
            self.problem = f"{self._file}: {error}; waiting for the bus"
            self.stats.unreadable += 1
            log.error("%s", self.problem)
            return None

    def _save(self, plan: Plan) -> None:
        if self._file is None:
            return
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What is enforced here is nobody else's business.
            with open(new, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(encode(plan))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._file)
        except OSError as error:
            # Enforcing matters more than remembering: the plan is carried out all the same.
            self.problem = str(DiskFull(f"cannot save the plan at {self._file}: {error.strerror}; free some space"))
            log.error("%s", self.problem)


def _cut(receipt: Receipt, error: Permanent) -> Receipt:
    """`receipt` without what grows with policies and containers; `failed` says what was left out."""
    why = (
        f"the bus refused this receipt: {error}; left out are {len(receipt.refused)} rules not enforced, "
        f"{len(receipt.partial)} enforced in part, {len(receipt.failed)} failures; raise `record_bytes` of the bus"
    )
    return msgspec.structs.replace(receipt, refused=(), partial=(), failed=(why,))
