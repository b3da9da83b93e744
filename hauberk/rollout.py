# SPDX-License-Identifier: Apache-2.0
"""Whether policies are in force on every node: plans, receipts and signs of life, followed. What `hauberk apply --wait` waits for.

Whether a plan has a policy is told by the mark of the set of policies that it was made of (`schemas.policy_sets`), never by time: clocks
of who applies differ. Neighbours: `verbs.apply` (the verb), `nodes` (what else the bus knows of nodes), `bus.follow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from bus.backoff import Backoff
from bus.contract import Bus
from bus.follow import Changes, Follower
from hauberk.nodes import STALE_SECONDS
from hauberk.output import age
from schemas.enforcement import Plan, Receipt, decode_plan, decode_receipt
from schemas.errors import DecodeError, HauberkError
from schemas.policy import reference
from schemas.policy_sets import PolicySets
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from sensors.containers.symlinks import named

_PATIENCE: Final = 1.0
"""Seconds after which the nodes that are waited for are named."""
_LOOK: Final = 0.5
"""Seconds between looks at the clock while nothing changes."""


class RolloutProgress(NamedTuple):
    """`done`: plans that are answered by a receipt; `waited`: nodes without one that are there; `away`: those that are not, with
    the seconds since they were heard of; `held`: node -> why its plan is not made of the present policies."""

    done: list[Plan]
    waited: list[str]
    away: dict[str, float]
    held: dict[str, str]

    @property
    def complete(self) -> bool:
        return bool(self.done) and not self.waited


class Rollout:
    """Policies, and the plans and receipts of all nodes. A plan counts that was made of all of `wanted` as they are now, once the
    symlinks on their paths were looked up. `heard`: node -> Unix seconds of its newest receipt or identity."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = frozenset(wanted)
        self._sets = PolicySets()
        self._paths: dict[str, bool] = {}
        self._plans: dict[bytes, Plan] = {}
        self.receipts: dict[str, Receipt] = {}
        self.heard: dict[str, float] = {}

    def take(self, changes: Changes) -> None:
        """Know of `changes`. What cannot be read counts as not there: its writer publishes it again."""
        if changes.whole:
            self._plans, self.receipts, self.heard = {}, {}, {}
            self._sets, self._paths = PolicySets(), {}
        for topic, record in changes.records:
            if topic.name == POLICIES.name:
                self._policy(record.key.decode("utf-8", "replace"), record.value)
                continue
            node = record.key.split(b"/", 1)[0].decode("utf-8", "replace")
            if topic.name == ENFORCEMENT_DESIRED.name:
                self._plans.pop(record.key, None)
                with contextlib.suppress(DecodeError):
                    if record.value is not None:
                        self._plans[record.key] = decode_plan(record.value)
                continue
            if record.value is not None:
                self.heard[node] = max(self.heard.get(node, 0.0), record.timestamp_ms / 1000)
            if topic.name == ENFORCEMENT_STATUS.name:
                self.receipts.pop(node, None)
                with contextlib.suppress(DecodeError):
                    if record.value is not None:
                        self.receipts[node] = decode_receipt(record.value)

    def _policy(self, key: str, value: bytes | None) -> None:
        self._sets.take(key, value)
        if key in self._wanted:
            self._paths[key] = value is not None and bool(named(value))

    @property
    def deleted(self) -> list[str]:
        """Wanted policies that are not on the bus."""
        return sorted(self._wanted - self._sets.documents.keys())

    def progress(self, now: float) -> RolloutProgress:
        """As of `now`, Unix seconds."""
        documents = self._sets.documents
        since = max((documents[key].since for key in self._wanted if key in documents), default=0)
        # What a path is in each root is looked up once the node has read the policy; the first plan may be without.
        linked = max((documents[key].since for key, paths in self._paths.items() if paths), default=0)
        done, silent, held = [], {}, {}
        for plan in self._plans.values():
            made, looked = self._sets.number(plan.policy_set), self._sets.number(plan.linked_set)
            if made >= since and looked >= linked and self._answered(plan):
                done.append(plan)
                continue
            silent[plan.node] = now - self.heard.get(plan.node, 0.0)
            if plan.held:
                held[plan.node] = plan.held
        away = {node: seconds for node, seconds in silent.items() if seconds > STALE_SECONDS}
        return RolloutProgress(done, sorted(silent.keys() - away.keys()), away, held)

    def _answered(self, plan: Plan) -> bool:
        receipt = self.receipts.get(plan.node)
        return receipt is not None and (receipt.generation, receipt.digest) == (plan.generation, plan.digest)


async def in_force(bus: Bus, names: Sequence[str], deadline: float) -> int:
    """Wait until each node's plan knows of the policies `names` and of the symlinks on their paths, and its receipt is of that plan;
    0 when all are, 1 when not within `deadline` seconds or when one of them was deleted meanwhile. Nodes that are away (`nodes.STALE_SECONDS`) are named and not waited for.
    Raises what the bus raises, a temporary failure only when it lasts until the deadline."""
    rollout, over, failures = Rollout(names), asyncio.Event(), []
    clock = asyncio.get_running_loop().time
    ends, patient = clock() + deadline, clock() + _PATIENCE
    waited: list[str] = []
    answer = -1

    async def look(changes: Changes) -> None:
        nonlocal waited, answer
        rollout.take(changes)
        found = rollout.progress(time.time())
        if found.complete or clock() > ends or rollout.deleted:
            answer = _report(rollout, found, set(names), deadline)
            over.set()
        elif found.waited != waited and clock() > patient:
            waited = found.waited
            if waited:
                print(f"waiting for {', '.join(waited)}", file=sys.stderr, flush=True)

    def failed(error: HauberkError) -> None:
        failures.append(error)
        if clock() > ends:
            over.set()

    def wait() -> float:
        return max(0.01, min(_LOOK, *(at - clock() for at in (ends, patient) if at > clock())))

    topics = (POLICIES, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY)
    backoff = Backoff(first_seconds=0.2, max_seconds=1.0)
    follower = Follower(bus, topics, stopping=over, failed=failed, backoff=backoff, retry_permanent=False)
    await follower.run(look, wait=wait)
    if answer < 0:
        raise failures[-1]
    return answer


def _report(rollout: Rollout, found: RolloutProgress, wanted: set[str], deadline: float) -> int:
    if rollout.deleted:
        print(
            f"hauberk apply: expected {', '.join(map(reference, rollout.deleted))} on the bus, somebody deleted it meanwhile; apply it again",
            file=sys.stderr,
        )
        return 1
    if found.complete:
        for plan in found.done:
            _tell(rollout.receipts[plan.node])
        if not any(_enforces(plan, wanted) for plan in found.done):
            print("in force; nothing to enforce on any node for this policy now (audit, or no workload matches)")
    for node, seconds in sorted(found.away.items()):
        when = f"last heard of {age(seconds)} ago" if node in rollout.heard else "never heard of"
        print(f"{node}: not waited for, {when}; `hauberk delete node {node}` drops it", file=sys.stderr)
    if found.complete:
        return 0
    for node, why in sorted(found.held.items()):
        print(f"{node}: {why}", file=sys.stderr)
    of = f" of {', '.join(found.waited)}" if found.waited else ""
    print(
        f"hauberk apply: expected a receipt{of} within {deadline:g} s, got none; is `hauberk up` or `hauberk node` "
        "running, with enforcement on?",
        file=sys.stderr,
    )
    return 1


def _enforces(plan: Plan, wanted: set[str]) -> bool:
    """Whether something of `wanted` is carried out by the plan, or is refused in it (which is told by itself)."""
    refs = [rule.ref for scope in plan.scopes for rule in scope.paths]
    refs += [rule.ref for scope in plan.scopes for rule in scope.network]
    refs += [refusal.ref for refusal in (*plan.refused, *plan.partial)]
    if any(f"{ref.kind}/{ref.namespace}/{ref.policy}" in wanted for ref in refs):
        return True
    # A posture has no rule of its own: where there is one, the policy may be why.
    return bool(wanted & set(plan.policies)) and any(scope.posture for scope in plan.scopes)


def _tell(receipt: Receipt) -> None:
    node = receipt.node
    print(f"{node}: generation {receipt.generation} in force, {receipt.rules} rules in {receipt.scopes} scopes")
    for refusal in receipt.refused:
        print(f"{node}: not enforced: {refusal.ref.policy} {refusal.ref.position}: {refusal.reason} [{refusal.code}]")
    # One sentence for all rules that it is true of: a policy of many would say it as many times.
    partial: dict[tuple[str, str], list[str]] = {}
    for one in receipt.partial:
        partial.setdefault((one.reason, one.code), []).append(f"{one.ref.policy} {one.ref.position}".rstrip())
    for (reason, code), rules in partial.items():
        more = f" and {len(rules) - 8} more" if len(rules) > 8 else ""
        print(f"{node}: enforced in part: {', '.join(rules[:8])}{more}: {reason} [{code}]")
    for sentence in receipt.failed:
        print(f"{node}: {sentence}", file=sys.stderr)
