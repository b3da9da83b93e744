# SPDX-License-Identifier: Apache-2.0
"""What lint checks take and give: the rules that meet on the same workloads, and a finding with a recommendation."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from policy.judge.compile import judged, problem, table_of
from policy.rules.backends import HERE
from policy.ruleset import Ruleset
from schemas.operations import Backend
from schemas.rules import Policy, Rule, Selection, Target
from schemas.verdict import Mode, RuleRef


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `code` is stable; `other`: the rule it is about besides `rule`. `level`: `warning` for a mistake in the policy,
    `note` for a rule that is right and has no effect with this version or these settings."""

    code: str
    rule: RuleRef
    message: str
    recommendation: str
    other: RuleRef | None = None
    level: Literal["warning", "note"] = "warning"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """With what Block rules are held, as the settings say. `signal`: kills for every policy; `hosts`: there are cgroups in which
    host policies are held; `rings_stopped`: io_uring is not to be used where `signal` holds rules."""

    backends: tuple[Backend, ...] = HERE
    signal: bool = False
    hosts: bool = False
    rings_stopped: bool = False


EVERYTHING: Final = Holding()
"""The backends that a node uses by default, and no opt-in but those of the policies."""


class Together:
    """Policies that select the same workloads, with the rules that count."""

    def __init__(self, selection: Selection, policies: list[Policy], ruleset: Ruleset, holding: Holding) -> None:
        self.selection = selection
        self.policies = policies
        self.settings = ruleset.settings
        self.holding = holding
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
