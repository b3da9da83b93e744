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


class HitCount:
    """`found`: policy key (`kind/namespace/name`) -> hits of the alerts that were counted; the alerts themselves are not kept."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.found: dict[str, PolicyHits] = {}
        self._rows: dict[tuple[str, str], RuleHits] = {}
        for policy in policies:
            key = str(policy.key)
            self.found[key] = PolicyHits(rules=rules_of(policy))
            self._rows |= {(key, row.rule): row for row in self.found[key].rules}
        self._known = named(self.found)

    def count(self, alert: bytes) -> None:
        """One alert. Of a policy that is gone it counts for nobody."""
        try:
            told = decode(alert)
        except DecodeError:
            # `get alerts` says which; a record that is none was nobody's hit.
            return
        key = told.whose(self._known)
        if not key:
            return
        mine = self.found[key]
        mine.suppressed += told.Suppressed
        if told.silence:
            return
        if told.Mode == "baseline":
            # Outside all of its rules: it is no rule's hit.
            mine.drift += told.Count
            mine.last = max(mine.last, told.UpdatedTime)
            return
        row = self._rows.get((key, told.Rule))
        for one in (mine, row) if row is not None else (mine,):
            if told.beside:
                one.shadow += told.Count
            else:
                one.hits += told.Count
            one.last = max(one.last, told.UpdatedTime)
