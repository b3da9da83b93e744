# SPDX-License-Identifier: Apache-2.0
"""What lint checks take and give: the rules that meet on the same workloads, and a finding with a recommendation."""

from __future__ import annotations

import msgspec

from policy.compile import judged, problem, table_of
from policy.ruleset import Ruleset
from schemas.rules import Policy, Rule, Selection, Target
from schemas.verdict import Mode, RuleRef


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `code` is stable; `other`: the rule it is about besides `rule`."""

    code: str
    rule: RuleRef
    message: str
    recommendation: str
    other: RuleRef | None = None


class Together:
    """Policies that select the same workloads, with the rules that count."""

    def __init__(self, selection: Selection, policies: list[Policy], ruleset: Ruleset) -> None:
        self.selection = selection
        self.policies = policies
        self.settings = ruleset.settings
        self.host = selection.target is Target.NODES
        self.rules = [
            rule
            for policy in policies
            if policy.mode is Mode.ENFORCE
            for rule in policy.rules
            if problem(rule) is None and judged(rule)
        ]
        self.signal = {policy.key: policy.signal for policy in policies}
        self.tables: dict[str, list[Rule]] = {}
        for rule in self.rules:
            self.tables.setdefault(table_of(rule), []).append(rule)
