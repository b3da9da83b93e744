# SPDX-License-Identifier: Apache-2.0
"""What a change of policies would change: stored behaviours judged by the set of before and by the set of after.

Behaviours come from the summary store, so a month of events costs as much as the number of different things that were done.
Pure and lazy: the caller reads the store and prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from policy.ruleset import Ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Identity
from schemas.verdict import Action, Verdict


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One stored behaviour: by whom, how often, when first and last (Unix ns)."""

    identity: Identity
    behaviour: Behaviour
    count: int = 1
    first: int = 0
    last: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One behaviour whose verdict differs. `kind`: `denied`, `permitted`, `told`, `silenced`, or `attributed` (another policy)."""

    kind: str
    observed: Observed
    before: Verdict
    after: Verdict


def diff(before: Ruleset, after: Ruleset, observed: Iterable[Observed]) -> Iterator[Change]:
    """The behaviours that change verdict, in the order they come. Arguments are not stored: rules on them count as acting."""
    for one in observed:
        old = before.scope(one.identity).judge(one.behaviour)
        new = after.scope(one.identity).judge(one.behaviour)
        kind = change_kind(old, new)
        if kind is not None:
            yield Change(kind=kind, observed=one, before=old, after=new)


def change_kind(before: Verdict, after: Verdict) -> str | None:
    """What changed between two verdicts; None when nothing a person would notice did."""
    was, now = _denies(before), _denies(after)
    if was != now:
        return "denied" if now else "permitted"
    if before.tell != after.tell:
        return "told" if after.tell else "silenced"
    if after.tell and (_key(before) != _key(after) or before.action is not after.action):
        return "attributed"
    return None


def _denies(verdict: Verdict) -> bool:
    # An audited Block is told, not done.
    return verdict.action is Action.BLOCK and verdict.mode.value == "enforce"


def _key(verdict: Verdict) -> tuple[str | None, str, int]:
    # By policy, not by place in it: moving a rule in its file changes nothing.
    if verdict.rule is None:
        return (verdict.policy, "", verdict.severity)
    return (verdict.policy, f"{verdict.rule.kind}/{verdict.rule.namespace}", verdict.severity)
