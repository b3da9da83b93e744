# SPDX-License-Identifier: Apache-2.0
"""What nodes answered for each policy, from plans and receipts as they come; pure.

A node has answered for a document when its plan was made of a set of policies that has it, and its receipt is of that plan. Sets are
told apart by their marks, never by time.
Kept of each node is only what a status needs: plans and receipts of a thousand nodes are never held whole.
Neighbours: `policy_status` (words for it), `teller` (who feeds it).
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final

import msgspec

from schemas.cluster import PolicyFact
from schemas.enforcement import PlanHead, Receipt, Refusal
from schemas.policy_sets import PolicySets

_NO_PLAN: Final = (0, "")


class NodeAnswer(msgspec.Struct):
    """`plan`, `receipt`: generation and digest. `selected`: policy -> containers. `refused`: policy -> (rule, reason with code).
    `policy_set`: mark of the policies that the plan was made of. `failed`: what the node could not do at all. `held`: why its plan is not made of the present policies."""

    plan: tuple[int, str] = _NO_PLAN
    receipt: tuple[int, str] = _NO_PLAN
    policy_set: str = ""
    held: str = ""
    selected: dict[str, int] = {}
    refused: dict[str, tuple[tuple[str, str], ...]] = {}
    failed: tuple[str, ...] = ()


class PolicyOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one policy. `nodes`, `containers`: it is for; `waiting`: nodes that have not answered; `held`: why not, of one of
    them; `refused`: (rule, reason) -> nodes; `applied`: the document on the bus is the object's."""

    nodes: int = 0
    containers: int = 0
    waiting: tuple[str, ...] = ()
    held: str = ""
    refused: dict[tuple[str, str], list[str]] = {}
    applied: bool = False
    known_nodes: int = 0


class Answers:
    """`policy`, `document`, `plan`, `receipt` take what the bus says; None: it is gone. `touched`: keys of policies of which something
    may be other than before; whoever tells them takes them out."""

    def __init__(self) -> None:
        self.policies: dict[str, PolicyFact] = {}
        self.touched: set[str] = set()
        self._nodes: dict[str, NodeAnswer] = {}
        self._by_policy: dict[str, set[str]] = {}
        self._sets = PolicySets()
        self._made_of: Counter[str] = Counter()
        self._oldest = 0

    def policy(self, key: str, fact: PolicyFact | None) -> None:
        """One object of the cluster, by the key of its policy."""
        if fact is None:
            self.policies.pop(key, None)
        else:
            self.policies[key] = fact
        self.touched.add(key)

    def document(self, key: str, value: bytes | None) -> None:
        """One record of `policies.v1`."""
        self._sets.take(key, value)
        self.touched.add(key)
        self._aged()

    def plan(self, node: str, head: PlanHead | None) -> None:
        """One record of `enforcement.desired.v1`."""
        if head is None:
            known = self._nodes.pop(node, None)
            self._counted(node, {} if known is None else known.selected, {})
            if known is not None and known.plan != _NO_PLAN:
                self._made_of[known.policy_set] -= 1
        else:
            known = self._nodes.setdefault(node, NodeAnswer())
            selected = {sys.intern(key): many for key, many in head.selected}
            self._counted(node, known.selected, selected)
            if known.plan != _NO_PLAN:
                self._made_of[known.policy_set] -= 1
            self._made_of[head.policy_set] += 1
            known.plan, known.policy_set, known.held = (head.generation, head.digest), head.policy_set, head.held
            known.selected = selected
        self._aged()

    def _aged(self) -> None:
        """Find the oldest set that a plan is of."""
        self._made_of = +self._made_of
        before, self._oldest = self._oldest, min((self._sets.number(one) for one in self._made_of), default=0)
        if before != self._oldest:
            # Whoever waited for the last node that had not heard of it.
            least = min(before, self._oldest)
            self.touched |= {key for key, one in self._sets.documents.items() if least < one.since}

    def _counted(self, node: str, before: dict[str, int], after: dict[str, int]) -> None:
        for key in before.keys() - after.keys():
            self._by_policy[key].discard(node)
        for key in after.keys() - before.keys():
            self._by_policy.setdefault(key, set()).add(node)
        self.touched |= before.keys() | after.keys()

    def receipt(self, node: str, receipt: Receipt | None) -> None:
        """One record of `enforcement.status.v1`; a node repeats its receipt, which touches nothing."""
        known = self._nodes.setdefault(node, NodeAnswer())
        before = (known.receipt, known.refused, known.failed)
        if receipt is None:
            known.receipt, known.refused, known.failed = _NO_PLAN, {}, ()
            if known.plan == _NO_PLAN:
                del self._nodes[node]
        else:
            known.receipt, known.failed = (receipt.generation, receipt.digest), receipt.failed
            known.refused = _by_policy((*receipt.refused, *receipt.partial))
        if before != (known.receipt, known.refused, known.failed):
            self.touched |= known.selected.keys() | before[1].keys() | known.refused.keys()

    def outcome(self, key: str) -> PolicyOutcome:
        """Of the policy `key` as of now."""
        fact, document = self.policies.get(key), self._sets.documents.get(key)
        applied = fact is not None and document is not None and bool(fact.document) and fact.document == document.mark
        concerned = self._by_policy.get(key, set())
        waiting: set[str] = set()
        if document is not None and self._oldest < document.since:
            waiting = {
                name for name, one in self._nodes.items()
                if one.plan != _NO_PLAN and self._sets.number(one.policy_set) < document.since
            }  # fmt: skip
        refused: dict[tuple[str, str], list[str]] = {}
        containers = 0
        for name in sorted(concerned):
            one = self._nodes[name]
            containers += one.selected[key]
            if one.receipt != one.plan:
                waiting.add(name)
            for why in one.refused.get(key, ()):
                refused.setdefault(why, []).append(name)
            for sentence in one.failed:
                refused.setdefault(("", sentence), []).append(name)
        held = next((self._nodes[name].held for name in sorted(waiting) if self._nodes[name].held), "")
        return PolicyOutcome(
            nodes=len(concerned), containers=containers, waiting=tuple(sorted(waiting)), held=held, refused=refused,
            applied=applied, known_nodes=sum(one.plan != _NO_PLAN for one in self._nodes.values()),
        )  # fmt: skip


def _by_policy(refusals: tuple[Refusal, ...]) -> dict[str, tuple[tuple[str, str], ...]]:
    found: dict[str, dict[tuple[str, str], None]] = {}
    for one in refusals:
        key = sys.intern(f"{one.ref.kind}/{one.ref.namespace}/{one.ref.policy}")
        how = "enforced in part: " if one.code.partial else ""
        found.setdefault(key, {})[one.ref.position, f"{how}{one.reason} [{one.code}]"] = None
    return {key: tuple(sorted(whys)) for key, whys in found.items()}
