# SPDX-License-Identifier: Apache-2.0
"""The engine that turns policies, inventory and facts of the cluster into one plan per node, on the bus.

Follows the three compacted topics from their latest values, waits a few milliseconds for what comes together, and publishes a
plan when its content changed, or when the policies did: then the same content gets a new generation and `created_ns`, so
that its receipt tells who applied a policy that it was seen (the node finds no difference and writes no map). Generations only grow, also across restarts. It keeps no state of its own: everything is
on the bus. It must never touch a kernel. Neighbours: `plan` (the pure part), `apply` (who carries a plan out).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Final

import msgspec

from bus.contract import Bus, Record
from bus.follow import Changes, Follower
from bus.paced_log import PacedLog
from enforcers.plan import Planner, PlanSettings
from policy.cluster_facts import ClusterFacts
from policy.policy_set import PolicySet
from policy.ruleset import PostureSettings, Ruleset, RulesetCompiler
from schemas.enforcement import Plan, decode_plan, encode
from schemas.errors import DecodeError, HauberkError, Permanent, Refused, Temporary
from schemas.identity import Identity, Kind
from schemas.identity import decode as decode_identity
from schemas.stats import Gauge, Level
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, INVENTORY, POLICIES

log = logging.getLogger(__name__)

_AT_ONCE: Final = 32
"""Nodes that are planned in one turn of a thread: a turn of its own for each costs as much again as a small plan."""
_REFUSED: Final = (
    "the bus refused the plan that was to replace this one, the planner's log says why; this one stays in force. Let fewer or "
    "shorter rules select the containers of this node, or raise `record_bytes` of the bus"
)


class PlannerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The planner: what it waits for, and what plans are made for."""

    debounce_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=315_360_000, description="Seconds to wait for changes that come together.", examples=[0.02]
        ),
    ] = 0.005
    longest_wait_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=315_360_000,
            description="Longest delay of a plan while changes keep coming, seconds.",
            examples=[0.2],
        ),
    ] = 0.05
    plan: Annotated[PlanSettings, msgspec.Meta(description="What plans are made for.")] = PlanSettings()
    postures: Annotated[
        PostureSettings, msgspec.Meta(description="Default postures and visibility.", extra={"setting": "derived"})
    ] = PostureSettings()


class PlannerStats(msgspec.Struct):
    """Plain counts since start. `active`: 1 while this planner is the one that plans, 0 while it stands by for another; `plan_ms`: the latest round of planning, compile included; `held`: nodes whose plan stays,
    because policies of it are lost or because the bus refused the newer one; `refused_plans`: plans that the bus refused;
    `failed`: plans and compilations that ended with an error; `outages`: times that policies and inventory could not be read,
    `damaged_reads`: of these, because a file of the bus was damaged."""

    active: Gauge = 0
    plans: int = 0
    unchanged: int = 0
    refused_records: int = 0
    held: Gauge = 0
    refused_plans: int = 0
    failed: int = 0
    compiled: int = 0
    outages: int = 0
    damaged_reads: int = 0
    plan_ms: Level = 0.0
    problem: str = ""


def _planned(identity: Identity) -> Identity:
    return msgspec.structs.replace(identity, cgroups=identity.cgroups[:1])


class PlannerEngine:
    """`run` until `stop`; `ready` is set once plans for everything on the bus are published."""

    def __init__(self, bus: Bus, settings: PlannerSettings | None = None) -> None:
        self._bus = bus
        self._settings = settings or PlannerSettings()
        self._policies: PolicySet[Ruleset] = PolicySet(RulesetCompiler(self._settings.postures), self._refuse)
        self._identities: dict[str, dict[bytes, Identity]] = {}
        self._facts = ClusterFacts()
        self._desired: set[str] = set()
        self._published: dict[str, Plan] = {}
        self._gone: set[str] = set()
        self._held: set[str] = set()
        self._planner: Planner | None = None
        self._stale = True
        self._stopping = asyncio.Event()
        self._left_out = PacedLog(log)
        self._follower = Follower(
            bus, (CLUSTER, INVENTORY, POLICIES), stopping=self._stopping, prepare=self._read_plans, failed=self._failed
        )
        self.ready = self._follower.ready
        self.stats = PlannerStats()

    @property
    def failure(self) -> str:
        """Why it cannot follow the bus now; "" when it does."""
        return self._follower.problem

    @property
    def unplanned(self) -> list[str]:
        """Nodes that something is known of and that have no plan."""
        return sorted(self._identities.keys() - self._published.keys())

    def stop(self) -> None:
        """Ask `run` to finish the round in hand and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Follow, plan, publish. Cancelling is safe at any point: the bus holds everything. What cannot be read makes no plan:
        those in force stay."""
        settings = self._settings
        await self._follower.run(self._apply, together=(settings.debounce_seconds, settings.longest_wait_seconds))

    async def _read_plans(self) -> None:
        # Strictly before policies are read, which then are never older in a whole set.
        desired = await self._bus.latest(ENFORCEMENT_DESIRED)
        self._desired = {key.decode("utf-8", "replace") for key in desired}
        for record in desired.values():
            try:
                plan = decode_plan(record.value or b"")
            except DecodeError as error:
                self._refuse(error)
                continue
            self._published.setdefault(plan.node, plan)

    async def _apply(self, changes: Changes) -> None:
        nodes = self._take_in(changes)
        if changes.whole:
            for node in self._published.keys() - self._identities.keys() - self._desired:
                del self._published[node]  # dropped while the bus was away
        if changes.whole or self._stale:
            nodes = set(self._identities) | set(self._published)
        if nodes or changes.whole or self._stale:
            await self._plan_all(nodes)

    def _take_in(self, changes: Changes) -> set[str]:
        """Nodes whose identities changed; policies mark everything stale."""
        nodes: set[str] = set()
        policies: list[Record] = []
        if changes.whole:
            self._identities, self._facts = {}, ClusterFacts()
        for topic, record in changes.records:
            if topic.name == POLICIES.name:
                policies.append(record)
            elif topic.name == CLUSTER.name:
                nodes |= self._fact(record)
            elif node := self._identity(record):
                nodes.add(node)
        before = self._policies.mark
        rows = [(record.key, record.value, record.timestamp_ms) for record in policies]
        if changes.whole:
            self._stale |= self._policies.whole(rows, changes.vanished[POLICIES.name])
            if not self._policies.went_back:
                self._stale |= self._policies.drop_absent()
        else:
            self._stale |= self._policies.take(rows)
        # Also where no document changed: whoever tells what became of policies waits for a plan of this very set.
        self._stale |= self._policies.mark != before
        # While plans are held, saying that a policy is gone may be all they wait for.
        self._stale |= bool(self._held) and any(record.value is None for record in policies)
        return nodes

    def _identity(self, record: Record) -> str:
        node = record.key.split(b"/", 1)[0].decode("utf-8", "replace")
        if record.value is None:
            self._facts.identity(record.key, None)
            mine = self._identities.get(node, {})
            known = mine.pop(record.key, None)
            # A node may have had two: one before its machine id changed.
            if (
                known is not None
                and known.kind is Kind.NODE
                and all(one.kind is not Kind.NODE for one in mine.values())
            ):
                self._gone.add(node)
            return node if known is not None else ""
        try:
            identity = self._facts.identity(record.key, decode_identity(record.value))
        except DecodeError as error:
            self._refuse(error)
            return ""
        assert identity is not None
        return self._put(node, record.key, identity)

    def _fact(self, record: Record) -> set[str]:
        """Nodes with an identity that a fact of the cluster changed."""
        try:
            changed = self._facts.fact(record.key, record.value)
        except DecodeError as error:
            self._refuse(error)
            return set()
        return {self._put(identity.node, key, identity) for key, identity in changed} - {""}

    def _put(self, node: str, key: bytes, identity: Identity) -> str:
        mine = self._identities.setdefault(node, {})
        before = mine.get(key)
        mine[key] = identity
        # Cgroups below its own are not in plans: one that makes them all the time must not have them all made anew.
        if before is not None and _planned(before) == _planned(identity):
            return ""
        if identity.kind is Kind.NODE:
            self._gone.discard(node)
        return node

    def _refuse(self, error: Exception) -> None:
        self.stats.refused_records += 1
        self.stats.problem = str(error)
        self._left_out.say(logging.WARNING, f"a record was left out of the plans: {error}")

    def _failed(self, error: HauberkError) -> None:
        self.stats.problem = str(error)
        self.stats.refused_records += isinstance(error, Permanent)
        self.stats.outages, self.stats.damaged_reads = self._follower.failures, self._follower.damaged

    async def _plan_all(self, nodes: set[str]) -> None:
        started = time.monotonic()
        answer = self._stale and self._planner is not None
        if self._stale or self._planner is None:
            self._stale = False
            await self._compile()
        gone = {node for node in self._gone if node in self._published or node in nodes}
        changed: dict[str, Plan] = {}
        asked: list[str] = []
        for node in sorted(nodes - gone):
            old = self._published.get(node)
            if old is not None and (why := self._policies.lost(old)):
                self._held.add(node)
                if old.held != why:
                    log.error("node `%s`: %s", node, why)
                    self.stats.problem = why
                    changed[node] = msgspec.structs.replace(old, generation=old.generation + 1, held=why)
                continue
            asked.append(node)
        for node, plan in await self._plan_each(asked):
            old = self._published.get(node)
            # Refusals count too: who applied a policy must hear why nothing of it is in force. `answer`: policies changed,
            # by the record's time also while this was down; whoever applied them waits for a receipt.
            same = old and (old.digest, old.refused, old.partial, old.policies, old.selected, old.policy_set, old.held) == (
                plan.digest, plan.refused, plan.partial, plan.policies, plan.selected, plan.policy_set, "",
            )  # fmt: skip
            if (
                old
                and same
                and not answer
                and old.created_ns >= self._policies.newest_ns
                and old.linked_set == plan.linked_set
                # Whoever starts a container waits to hear that it was thought of.
                and set(plan.starting) <= set(old.starting)
            ):
                self.stats.unchanged += 1
                self._held.discard(node)
                continue
            changed[node] = plan
        self.stats.plan_ms = (time.monotonic() - started) * 1000
        try:
            await self._publish(changed, gone)
        except Temporary:
            self._stale = True
            raise
        for node in gone:
            # Somebody dropped it (`hauberk delete node`): whoever waits for receipts must not wait for its.
            self._published.pop(node, None)
            self._identities.pop(node, None)
        self._gone -= gone
        self._held &= self._published.keys()
        self.stats.held = len(self._held)

    async def _publish(self, changed: dict[str, Plan], gone: set[str]) -> None:
        """All together, or each for itself when the bus refuses that: a plan that it does not take holds back no other."""
        records = [Record(node.encode(), None) for node in sorted(gone)]
        records += [Record(node.encode(), encode(plan)) for node, plan in changed.items()]
        if not records:
            return
        try:
            await self._bus.publish(ENFORCEMENT_DESIRED, records)
        except Permanent:
            if gone:
                await self._bus.publish(ENFORCEMENT_DESIRED, records[: len(gone)])
            for plan in changed.values():
                await self._publish_alone(plan)
            return
        for plan in changed.values():
            self._is_published(plan)

    async def _publish_alone(self, plan: Plan) -> None:
        """One plan; when the bus refuses it the node hears that the one in force stays, and why."""
        try:
            await self._bus.publish(ENFORCEMENT_DESIRED, [Record(plan.node.encode(), encode(plan))])
        except Permanent as error:
            self.stats.refused_plans += 1
            self.stats.problem = f"node `{plan.node}`: {error}"
            old = self._published.get(plan.node)
            log.error(
                "the bus refused the plan of node `%s`, what is in force there stays: %s. Let fewer or shorter rules select its "
                "containers, or raise `record_bytes` of the bus", plan.node, error,
            )  # fmt: skip
            if old is not None:
                self._held.add(plan.node)
                if not plan.held and old.held != _REFUSED:
                    await self._publish_alone(
                        msgspec.structs.replace(old, generation=old.generation + 1, held=_REFUSED)
                    )
        else:
            self._is_published(plan)

    def _is_published(self, plan: Plan) -> None:
        self._published[plan.node] = plan
        self.stats.plans += 1
        if plan.held:
            self._held.add(plan.node)
        else:
            self._held.discard(plan.node)

    async def _plan_each(self, nodes: list[str]) -> list[tuple[str, Plan]]:
        """Plans of the nodes; one that cannot be made is told and left out: other nodes have theirs all the same."""
        found: list[tuple[str, Plan]] = []
        for first in range(0, len(nodes), _AT_ONCE):
            made = await asyncio.to_thread(self._plan_some, nodes[first : first + _AT_ONCE])
            found += [(plan.node, plan) for plan in made]
        return found

    def _plan_some(self, nodes: list[str]) -> list[Plan]:
        """In a thread, while nothing is taken in."""
        return [plan for node in nodes if (plan := self._plan(node)) is not None]

    def _plan(self, node: str) -> Plan | None:
        assert self._planner is not None
        identities, old = list(self._identities.get(node, {}).values()), self._published.get(node)
        # Never before the plan it replaces, whatever the clocks say: an older one is not carried out.
        created = max(self._policies.newest_ns, old.created_ns if old else 0)
        try:
            plan = self._planner.plan(node, identities, old.generation + 1 if old else 1, created)
            return msgspec.structs.replace(plan, policy_set=self._policies.mark)
        except Exception as error:
            log.exception("no plan could be made for node `%s`; what is in force there stays", node)
            self.stats.failed += 1
            self.stats.problem = f"node `{node}`: {type(error).__name__}: {error}"
            return None

    async def _compile(self) -> None:
        """A planner of the present policies. When they cannot be compiled the one before stays, and that is told."""
        try:
            ruleset = await asyncio.to_thread(self._policies.compile)
        except Refused as error:
            log.exception("the policies could not be compiled; plans are made of the ones before")
            self.stats.failed += 1
            self.stats.problem = str(error)
            if self._planner is None:
                raise
            return
        self._planner = Planner(ruleset, self._settings.plan)
        self.stats.compiled += 1
