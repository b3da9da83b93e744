# SPDX-License-Identifier: Apache-2.0
"""What events are judged with: the policies, the inventory and facts of the cluster, followed on the bus from their latest values on.

A broadcast reader: every processor sees all of these topics. A policy that cannot be read is left out and counted, and the
others stay in force. Compiling runs in a thread, judging goes on with the old set meanwhile; the new one is used from the
next frame on. Neighbours: `bus.follow`, `policy.policy_set` (the set of policies), `processors.inventory`, `processors.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from bus.contract import Bus, Partition, Record
from bus.follow import Changes, Follower
from policy.policy_set import PolicySet, Row
from policy.ruleset import PostureSettings, RulesetCompiler
from processors.inventory import Inventory
from processors.judge import CompiledPolicies
from schemas.enforcement import Plan, decode_plan
from schemas.errors import DecodeError, HauberkError, Permanent, Refused
from schemas.policy import PolicyDocument
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, INVENTORY, POLICIES, Topic

log = logging.getLogger(__name__)

Compile = Callable[[list[PolicyDocument]], CompiledPolicies]


class Followed:
    """`run` follows until cancelled; `ready` is set when the latest values are in force. `refused`: records not readable;
    `damage`: why the policies are fewer than those that plans were made of, "" when they are whole; `told(damage)` is called
    when that is news; `problem`: the last reason; `recompiled`: rulesets put in force; `policies`: documents in force."""

    def __init__(
        self,
        bus: Bus,
        inventory: Inventory,
        use: Callable[[CompiledPolicies], None],
        moved: Callable[[], None],
        postures: PostureSettings,
        compile_documents: Compile | None = None,
        told: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._bus = bus
        self._inventory = inventory
        self._use = use
        self._moved = moved
        self._told = told
        self._policies: PolicySet[CompiledPolicies] = PolicySet(
            compile_documents or RulesetCompiler(postures), self._refuse
        )
        self._plans: list[Plan] = []
        self._follower = Follower(bus, (CLUSTER, INVENTORY, POLICIES), prepare=self._read_plans, failed=self._failed)
        self.ready = self._follower.ready
        self.refused = 0
        self.problem = ""
        self.damage = ""
        self.recompiled = 0
        self.policies = 0

    @property
    def position(self) -> dict[Partition, int]:
        """Offset after the newest record that is in force here."""
        return self._follower.position

    @property
    def failure(self) -> str:
        """Why it cannot follow the bus now; "" when it does."""
        return self._follower.problem

    @property
    def outages(self) -> int:
        """Times that the topics could not be read, since start."""
        return self._follower.failures

    @property
    def damaged_reads(self) -> int:
        """Outages because a file of the bus was damaged."""
        return self._follower.damaged

    async def run(self) -> None:
        """Follow the topics. Ends only by cancelling. What is in force is judged with while they cannot be read; before the
        first time nothing is judged at all."""
        await self._follower.run(self._apply)

    async def _apply(self, changes: Changes) -> None:
        mine: list[Row] = []
        for topic, record in changes.records:
            if topic.name == POLICIES.name:
                mine.append((record.key, record.value, record.timestamp_ms))
            else:
                self._identity(topic, record)
        if changes.whole:
            if not self._bus.damaged():
                # Deleted while this process could not follow, for longer than tombstones are kept. Of a damaged file it is not known.
                for topic in (CLUSTER, INVENTORY):
                    for key in changes.vanished[topic.name]:
                        self._identity(topic, Record(key, None))
            changed = self._policies.whole(mine, changes.vanished[POLICIES.name])
            self._look()
            # What a damaged table forgot was not deleted: it is judged with as long as this process knows it.
            changed = (not self.damage and self._policies.drop_absent()) or changed
        else:
            changed = self._policies.take(mine)
        if changed or not self.recompiled:
            await self._recompile()
        if changed and self.damage:
            self._look()
        if changes.records or changes.whole:
            self._moved()

    async def _read_plans(self) -> None:
        # Strictly before the policies, which then are never older in a whole set.
        self._plans = []
        for record in (await self._bus.latest(ENFORCEMENT_DESIRED)).values():
            with contextlib.suppress(DecodeError):
                self._plans.append(decode_plan(record.value or b""))

    def _look(self) -> None:
        """In `damage` whether the policies on the bus are fewer than those that plans were made of: reported when it is news."""
        why = next(filter(None, (self._policies.lost(plan, on_bus=True) for plan in self._plans)), "")
        if why and why != self.damage:
            log.error("policies: %s", why)
            self._told(why)
        self.damage = why
        if not why:
            self._plans = []

    def _identity(self, topic: Topic, record: Record) -> None:
        apply = self._inventory.apply_fact if topic.name == CLUSTER.name else self._inventory.apply
        try:
            apply(record.key, record.value)
        except DecodeError as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self.refused += 1
        self.problem = str(error)

    def _failed(self, error: HauberkError) -> None:
        self.problem = str(error)
        self.refused += isinstance(error, Permanent)

    async def _recompile(self) -> None:
        count = len(self._policies.documents)
        try:
            ruleset = await asyncio.to_thread(self._policies.compile)
        except Refused as error:
            if not self.recompiled:
                raise
            log.exception("the policies could not be compiled; the ones before stay in force")
            self._refuse(error)
            return
        self._use(ruleset)
        self.recompiled += 1
        self.policies = count
