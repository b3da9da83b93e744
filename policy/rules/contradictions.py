# SPDX-License-Identifier: Apache-2.0
"""What a valid document means that its author may not have meant: rules twice, rules that contradict, no rules at all.

Only inside of one policy: what policies do to each other is `lint`'s question.
"""

from __future__ import annotations

from policy.rules.normalise import normalise
from policy.text import codes
from policy.text.diagnostics import Report
from schemas.policy import PolicyDocument
from schemas.rules import Rule
from schemas.verdict import Action

_WEIGHT = {Action.BLOCK: 2, Action.AUDIT: 1, Action.ALLOW: 0}


def check_meaning(document: PolicyDocument, report: Report) -> None:
    """Report on one document."""
    policy = normalise(document)
    if not policy.rules and not policy.native:
        report.add(codes.NO_RULES, f"`{document.name}` has no rules", line=document.line, column=1, path="spec")
    columns = {position.path: position.column for position in document.positions}
    seen: dict[tuple[object, ...], Rule] = {}
    told: set[tuple[int, str]] = set()
    for rule in policy.rules:
        same = (
            rule.class_,
            rule.match,
            rule.value,
            rule.recursive,
            frozenset(rule.sources),
            rule.owner_only,
            rule.read_only,
            rule.pts,
            rule.allowed_args,
            rule.has_args,
            rule.device,
            rule.peer,
            rule.syscalls,
        )
        before = seen.setdefault(same, rule)
        if before is rule or (rule.line, rule.position + before.position) in told:
            continue
        told.add((rule.line, rule.position + before.position))
        place = f"`{before.position}` (line {before.line})" if before.line else f"`{before.position}`"
        line, column = rule.line or document.line, columns.get(rule.position, 1)
        if before.action is rule.action:
            report.add(
                codes.DUPLICATE_RULE,
                f"`{rule.value}` is already in {place}",
                line=line,
                column=column,
                path=rule.position,
                suggestion="remove one of the two",
            )
        else:
            winner = max(before.action, rule.action, key=lambda action: _WEIGHT[action])
            report.add(
                codes.CONTRADICTION,
                f"`{rule.value}` is {rule.action} here and {before.action} in {place}",
                line=line,
                column=column,
                path=rule.position,
                suggestion=f"{winner} wins; keep one of the two",
            )
