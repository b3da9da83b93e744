# SPDX-License-Identifier: Apache-2.0
"""Policies tested as policies: one answer per event (`hauberk policy test --events`), and the tests a policy carries.

Tests stand in the annotation `hauberk.io/tests` or in a file beside the policy; both have the form that
`policy.text.annotations.test_cases` reads. A test asks the whole ruleset, because that is what a node does. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from policy.ruleset import Ruleset
from policy.text.annotations import TestCase, test_cases
from policy.text.diagnostics import Diagnostic, Report
from policy.tools.event import Event
from policy.tools.events import BadLine, Notice, parse_event, read_events
from schemas.errors import DecodeError
from schemas.policy import ANNOTATION_TESTS, Position
from schemas.rules import Policy
from schemas.verdict import Action, Mode, Verdict


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `hauberk policy test -o json`. `event`: number of the event, from 1; `rule` null when none decided.

    `action` is what happens: a Block of an audited policy or workload is `Audit`. `shadow`, only where there is one, says what a
    shadow policy would do: `Block by NAME`, and that it is outside a baseline: `Audit by NAME (baseline)`.
    """

    event: int
    action: str
    policy: str | None
    rule: dict[str, Any] | None
    shadow: str = ""


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one test of a policy came to. `name`: its own, or `test N`; `policy`: the one that carries it, "" for a file of tests;
    `file`, `line`: where it stands. `got` is None when its event could not be read; `reason` says what is wrong."""

    name: str
    policy: str
    file: str
    line: int
    passed: bool
    expected: str
    got: Answer | None
    reason: str = ""


def judge_event(ruleset: Ruleset, event: Event) -> Verdict:
    """The verdict on one event."""
    return ruleset.scope(event.identity).judge(event.behaviour, event.arguments)


def answer(number: int, verdict: Verdict) -> Answer:
    """A verdict in the words of the contract."""
    rule = msgspec.structs.asdict(verdict.rule) if verdict.rule is not None else None
    action = Action.AUDIT if verdict.mode is Mode.AUDITED and verdict.action is Action.BLOCK else verdict.action
    shadow = ", ".join(
        f"{one.action.value} by {one.policy}" + (" (baseline)" if one.mode is Mode.BASELINE else "")
        for one in verdict.shadow
    )
    return Answer(event=number, action=action.value, policy=verdict.policy, rule=rule, shadow=shadow)


def answer_events(ruleset: Ruleset, lines: Iterable[str | bytes]) -> Iterator[Answer | BadLine | Notice]:
    """One answer for every event of a JSON Lines text, in order; lines that are none come back as `BadLine`, those
    that the agent wrote of itself as `Notice`."""
    number = 0
    for event in read_events(lines):
        if isinstance(event, BadLine | Notice):
            yield event
            continue
        number += 1
        yield answer(number, judge_event(ruleset, event))


def carried_cases(
    policy: Policy, positions: Iterable[Position] = ()
) -> tuple[tuple[TestCase, ...], tuple[Diagnostic, ...]]:
    """The tests in a policy's annotation, and what is wrong with those that cannot be read. With the `positions` of its document
    their lines are those of the file."""
    if not policy.tests:
        return (), ()
    cases, found = read_cases(policy.tests, policy.origin)
    lines = {position.path: position.line for position in positions}
    path = f"metadata.annotations.{ANNOTATION_TESTS}"
    return tuple(
        msgspec.structs.replace(case, line=lines.get(f"{path}[{number}]", case.line))
        for number, case in enumerate(cases)
    ), found


def read_cases(text: str, origin: str) -> tuple[tuple[TestCase, ...], tuple[Diagnostic, ...]]:
    """The tests in a YAML text."""
    report = Report(origin)
    return test_cases(text, report), tuple(report.found)


def run_cases(ruleset: Ruleset, cases: Iterable[TestCase], policy: str = "", file: str = "") -> Iterator[CaseResult]:
    """Every test asked of `ruleset`. `policy`, `file`: where they came from."""
    for number, case in enumerate(cases, 1):
        expected = case.action if case.policy is None else f"{case.action} by {case.policy}"
        got, reason = None, ""
        try:
            got = answer(number, judge_event(ruleset, parse_event(case.event)))
        except DecodeError as error:
            reason = str(error)
        if got is not None and (got.action != case.action or case.policy not in (None, got.policy)):
            reason = f"expected {expected}, got {got.action} by {got.policy or 'no policy'}"
        yield CaseResult(
            name=case.name or f"test {number}",
            policy=policy,
            file=file,
            line=case.line,
            passed=not reason,
            expected=expected,
            got=got,
            reason=reason,
        )
