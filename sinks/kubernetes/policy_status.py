# SPDX-License-Identifier: Apache-2.0
"""The `status` of a policy object, from what nodes answered for it; pure.

One word for people and columns (`InForce`, `Audited`, `Shadow`, `Baseline`, `Partial`, `Refused`, `Waiting`, `NoEffect`, `Disabled`), the numbers, each reason, and conditions as
Kubernetes' tools wait for them: `kubectl wait --for=condition=InForce ksp/NAME`. Never says more than receipts do.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from schemas.cluster import PolicyFact
from schemas.decoding import Count
from sinks.kubernetes.answers import PolicyOutcome

MOST_REASONS: Final = 20
"""Reasons that a status lists; by feel, what is more repeats itself."""
_SHORT: Final = 128
"""Characters of a reason in a status that is to be short."""
_FEW: Final = 3
"""Nodes that a sentence names."""
_BESIDE: Final = {"shadow": "Shadow", "baseline": "Baseline"}
"""Modes of policies of which nothing is enforced, and their words."""


class Hits(msgspec.Struct, kw_only=True):
    """`blocked`, `audited`: operations that alerts of the policy told of, `suppressed`: of which the throttle gave only the number, `shadow`: that
    it would have acted on, or that are outside of what it learnt, in the modes `shadow` and `baseline`; `last`: time of the newest, RFC 3339;
    `counted`: which alerts these are, so that whoever reads them again counts none twice (`policy_hits`)."""

    blocked: Count = 0
    audited: Count = 0
    suppressed: Count = 0
    shadow: Count = 0
    last: str = ""
    counted: str = ""


class Told(NamedTuple):
    """The word of a status and the sentence behind it."""

    word: str
    sentence: str


def told(fact: PolicyFact, outcome: PolicyOutcome) -> Told:
    """What became of the policy."""
    if fact.errors:
        before = "; what was valid before stays in force" if fact.document else ""
        more = f" and {len(fact.errors) - 1} more" if len(fact.errors) > 1 else ""
        return Told("Refused", f"not applied: {fact.errors[0]}{more}{before}")
    if fact.owner:
        return Told(
            "NoEffect",
            f"{fact.owner} put a policy of this name in force; this object has no effect until `hauberk delete`",
        )
    if fact.mode == "disabled":
        return Told("Disabled", "switched off by its annotation `kubearmor-policy`")
    if not outcome.applied:
        return Told("Waiting", "not on the bus yet")
    if not outcome.known_nodes:
        return Told("Waiting", "no node has a plan yet; is `hauberk planner` running, and `hauberk node` on the nodes?")
    if outcome.waiting:
        why = f": {outcome.held}" if outcome.held else ""
        return Told("Waiting", f"not answered by {_names(outcome.waiting)}{why}")
    if not outcome.nodes:
        return Told("NoEffect", "no container or node is selected now")
    where = f"{_many(outcome.containers, 'container')} on {_many(outcome.nodes, 'node')}"
    if outcome.refused:
        (position, reason), nodes = min(outcome.refused.items())
        return Told("Partial", f"{where}, but not all of it: {_reason(position, reason, nodes)}")
    if fact.mode in _BESIDE:
        return Told(
            _BESIDE[fact.mode], f"judged beside the others for {where}; nothing of it is enforced (`hauberk.io/mode`)"
        )
    if fact.mode == "audited":
        return Told("Audited", f"{where}; what it would block is audited alone (`kubearmor-policy`)")
    return Told("InForce", where)


def status(fact: PolicyFact, outcome: PolicyOutcome, hits: Hits, before: dict[str, Any], now: str) -> dict[str, Any]:
    """The status to write. `before`: the one that is there, whose times of transition stay; `now`: RFC 3339."""
    word, sentence = told(fact, outcome)
    reasons = [_reason(position, reason, nodes) for (position, reason), nodes in sorted(outcome.refused.items())]
    if len(reasons) > MOST_REASONS:
        reasons = [*reasons[:MOST_REASONS], f"and {len(reasons) - MOST_REASONS} more"]
    in_force = {"InForce": "True", "Audited": "True", "Waiting": "Unknown"}.get(word, "False")
    conditions = [
        ("Accepted", "False" if fact.errors else "True", "Invalid" if fact.errors else "Valid", "" if not fact.errors else sentence),
        ("InForce", in_force, word, sentence),
    ]  # fmt: skip
    known = {one.get("type"): one for one in before.get("conditions") or () if isinstance(one, dict)}
    return {
        "status": word, "observedGeneration": fact.generation, "nodes": outcome.nodes, "containers": outcome.containers,
        "errors": list(fact.errors), "refused": reasons,
        "hits": {"blocked": hits.blocked, "audited": hits.audited, "suppressed": hits.suppressed,
                 "shadow": hits.shadow, "last": hits.last or None, "counted": hits.counted or None},
        "conditions": [
            {"type": kind, "status": value, "reason": reason, "message": message[:32768], "observedGeneration": fact.generation,
             "lastTransitionTime": _since(known.get(kind, {}), value, now)}
            for kind, value, reason, message in conditions
        ],
    }  # fmt: skip


def shortened(status: dict[str, Any]) -> dict[str, Any]:
    """The status in about 1 KiB: one reason of each kind, and each cut."""
    short = dict(status)
    for name in ("errors", "refused"):
        listed = status.get(name) or []
        short[name] = [one[:_SHORT] for one in listed[:1]] + (
            [f"and {len(listed) - 1} more"] if len(listed) > 1 else []
        )
    short["conditions"] = [
        one | {"message": str(one.get("message", ""))[:_SHORT]} for one in status.get("conditions") or ()
    ]
    return short


def differs(status: dict[str, Any], before: dict[str, Any]) -> tuple[bool, bool]:
    """Whether `status` says something else than `before`, and whether that is more than hits."""

    def said(one: dict[str, Any]) -> dict[str, Any]:
        # What the API server leaves out when it is empty or null is no difference.
        return {key: value for key, value in one.items() if key != "hits" and value not in (None, [], {}, "", 0)}

    def hit(one: dict[str, Any]) -> list[int]:
        found = one.get("hits") or {}
        return [found.get(what) or 0 for what in ("blocked", "audited", "suppressed", "shadow")]

    more = said(status) != said(before)
    return more or hit(status) != hit(before), more


def _since(known: dict[str, Any], value: str, now: str) -> str:
    return str(known["lastTransitionTime"]) if known.get("status") == value and known.get("lastTransitionTime") else now


def _reason(position: str, reason: str, nodes: list[str]) -> str:
    return f"{_names(nodes)}: {f'{position}: ' if position else ''}{reason}"[:2048]


def _names(nodes: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(nodes) - _FEW} more" if len(nodes) > _FEW else ""
    return ", ".join(nodes[:_FEW]) + more


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
