# SPDX-License-Identifier: Apache-2.0
"""How often each rule of each policy was told of, counted over the alerts that the bus still has; what shadow policies would
have said is counted apart. What `get policies` and `describe policy` show. Reads the bus, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from schemas.alerted_policy import decode, named
from schemas.errors import DecodeError

if TYPE_CHECKING:
    from schemas.rules import Policy


class RuleHits(msgspec.Struct, kw_only=True):
    """One rule. `hits`: occurrences told; `shadow`: occurrences that a shadow policy would have acted on; `last`: UpdatedTime."""

    rule: str
    match: str
    action: str
    hits: int = 0
    shadow: int = 0
    last: str = ""


class PolicyHits(msgspec.Struct, kw_only=True):
    """One policy. `drift`: occurrences of what is outside it, of a baseline. `suppressed`: occurrences that were throttled; they count for the policy, their rule is not known."""

    rules: list[RuleHits]
    hits: int = 0
    shadow: int = 0
    drift: int = 0
    suppressed: int = 0
    last: str = ""


def rules_of(policy: Policy) -> list[RuleHits]:
    """A row for each rule as it was written: the elements of one comma list share one."""
    rows: dict[str, RuleHits] = {}
    for rule in policy.rules:
        what = rule.value + ("**" if rule.recursive else "")
        if rule.peer is not None:
            what = f"{rule.value} {', '.join(rule.peer.networks) or 'any'}"
        elif not what and rule.syscalls:
            what = ", ".join(rule.syscalls)
        row = rows.get(rule.position)
        if row is None:
            rows[rule.position] = RuleHits(rule=rule.position, match=what, action=rule.action.value)
        elif what not in row.match.split(", "):
            row.match += f", {what}"
    return list(rows.values())


def count(policies: Iterable[Policy], alerts: Iterable[bytes]) -> dict[str, PolicyHits]:
    """Policy key (`kind/namespace/name`) -> hits. Alerts of policies that are gone count for nobody."""
    found: dict[str, PolicyHits] = {}
    rows: dict[tuple[str, str], RuleHits] = {}
    for policy in policies:
        key = str(policy.key)
        found[key] = PolicyHits(rules=rules_of(policy))
        rows |= {(key, row.rule): row for row in found[key].rules}
    known = named(found)
    for value in alerts:
        try:
            told = decode(value)
        except DecodeError:
            # `get alerts` says which; a record that is none was nobody's hit.
            continue
        key = told.whose(known)
        if not key:
            continue
        mine = found[key]
        mine.suppressed += told.Suppressed
        if told.silence:
            continue
        if told.Mode == "baseline":
            # Outside all of its rules: it is no rule's hit.
            mine.drift += told.Count
            mine.last = max(mine.last, told.UpdatedTime)
            continue
        row = rows.get((key, told.Rule))
        for one in (mine, row) if row is not None else (mine,):
            if told.beside:
                one.shadow += told.Count
            else:
                one.hits += told.Count
            one.last = max(one.last, told.UpdatedTime)
    return found
