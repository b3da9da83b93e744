# SPDX-License-Identifier: Apache-2.0
"""What is valid and still a mistake: one small check per code, each with what to do about it.

`policy/text/check.py` says what is wrong with a text; this says what is wrong with the rules of policies that are fine by themselves.
Checks look at policies with one selection together, because those meet on the same workloads. Pure; order of policies does not
matter; never stops at the first finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from policy.ruleset import Ruleset
from policy.tools import lint_checks as checks
from policy.tools.lint_findings import EVERYTHING, Finding, Holding, Together
from policy.tools.lint_unenforced import invisible, ringed, unenforceable
from schemas.rules import Policy, Selection

Check = Callable[[Together], Iterator[Finding]]


def lint(ruleset: Ruleset, holding: Holding = EVERYTHING) -> tuple[Finding, ...]:
    """Everything found in `ruleset` on nodes set up as `holding` says, sorted by policy and place."""
    groups: dict[Selection, list[Policy]] = {}
    for policy in ruleset.policies:
        if policy.enabled:
            groups.setdefault(policy.selection, []).append(policy)
    found = list(broken(ruleset))
    found += [
        finding
        for selection, policies in groups.items()
        for check in CHECKS.values()
        for finding in check(Together(selection, policies, ruleset, holding))
    ]
    return tuple(
        sorted(found, key=lambda one: (one.rule.kind, one.rule.namespace, one.rule.policy, one.rule.index, one.code))
    )


def broken(ruleset: Ruleset) -> Iterator[Finding]:
    """L100: a rule that does not compile."""
    for ref, text in ruleset.problems:
        yield Finding(
            code="L100", rule=ref, message=text, recommendation="correct it; until then the rule never matches"
        )


CHECKS: Final[dict[str, Check]] = {
    "L101": checks.shadowed,
    "L102": checks.contradictory,
    "L103": checks.repeated,
    "L104": checks.unreachable,
    "L105": checks.over_broad,
    "L106": checks.protected,
    "L107": checks.invisible,
    "L108": checks.plain_pattern,
    "L109": checks.linked,
    "L110": unenforceable,
    "L111": checks.toothless,
    "L112": checks.presets_allow,
    "L113": invisible,
    "L114": ringed,
}
"""Every check by its code; L100 (`broken`) asks the ruleset itself."""
