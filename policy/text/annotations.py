# SPDX-License-Identifier: Apache-2.0
"""The annotations that mean something: `hauberk.io/mode`, `hauberk.io/signal`, `hauberk.io/force`, `hauberk.io/unconfirmed-since`, `hauberk.io/tests`, `kubearmor-policy`.

The tests of a policy travel inside of it as YAML text: a list of `{event: {KubeArmor log fields}, expect: {action,
policy?}}`. `test_cases` is the one reader of that form, for the annotation and for files beside a policy alike.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from policy.text import codes, yaml_lines
from policy.text.check import Checker
from policy.text.diagnostics import Report
from policy.text.suggest import nearest
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence, plain
from schemas.policy import (
    ANNOTATION_FORCE,
    ANNOTATION_MODE,
    ANNOTATION_SIGNAL,
    ANNOTATION_STATUS,
    ANNOTATION_TESTS,
    ANNOTATION_UNCONFIRMED,
    Position,
)

WORDS: Final[dict[str, tuple[str, ...]]] = {
    ANNOTATION_MODE: ("enforce", "shadow", "baseline"),
    ANNOTATION_SIGNAL: ("enabled", "disabled"),
    ANNOTATION_FORCE: ("enabled", "disabled"),
    ANNOTATION_STATUS: ("enabled", "audited", "disabled"),
}
KNOWN: Final = (*WORDS, ANNOTATION_TESTS, ANNOTATION_UNCONFIRMED)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)
ACTIONS: Final = ("Allow", "Audit", "Block")


class TestCase(msgspec.Struct, frozen=True):
    """One test: `event` as JSON in KubeArmor's log field names, the action expected, the policy expected if any."""

    event: bytes
    action: str
    policy: str | None = None
    line: int = 0
    """Line in the text the case was read from."""
    name: str = ""


def check_annotations(metadata: Mapping, checker: Checker, *, namespaced: bool) -> None:
    """Report annotations with wrong values or names, and a namespace on a kind that has none."""
    for key, value in metadata.pairs:
        if not isinstance(key, Scalar):
            continue
        if key.text == "namespace" and not namespaced and isinstance(value, Scalar) and value.text:
            checker.say(
                codes.NAMESPACE_IGNORED,
                value,
                f"a {checker.kind.__name__} belongs to no namespace",
                "metadata.namespace",
                suggestion="remove it",
            )
        if key.text != "annotations" or not isinstance(value, Mapping):
            continue
        for name, setting in value.pairs:
            if isinstance(name, Scalar) and isinstance(setting, Scalar):
                _annotation(name, setting, checker)


def _annotation(name: Scalar, setting: Scalar, checker: Checker) -> None:
    path = f"metadata.annotations.{name.text}"
    words = WORDS.get(name.text)
    if words is not None:
        if setting.text not in words:
            near = nearest(setting.text, words)
            checker.say(
                codes.ANNOTATION,
                setting,
                f"`{name.text}` is `{setting.text}`",
                path,
                expected=", ".join(words),
                suggestion=f"did you mean `{near}`?" if near else "",
            )
    elif name.text == ANNOTATION_UNCONFIRMED:
        if not _MOMENT.fullmatch(setting.text):
            checker.say(
                codes.ANNOTATION, setting, f"`{name.text}` is `{setting.text}`", path, expected="a time such as 2026-01-31T12:00:00Z",
                suggestion="`hauberk apply --confirm` writes it",
            )  # fmt: skip
    elif name.text == ANNOTATION_TESTS:
        inner = Report(checker.report.origin)
        for number, case in enumerate(test_cases(setting.text, inner)):
            # Quoted text is folded: only the line on which it begins is sure.
            line = setting.line + case.line if setting.literal else setting.line
            checker.positions.append(Position(f"{path}[{number}]", line, setting.column))
        for found in inner.found:
            checker.say(
                codes.TESTS,
                setting,
                f"line {found.line} of `{name.text}`: {found.message}",
                path,
                expected=found.expected,
            )
    elif name.text.startswith("hauberk.io/"):
        near = nearest(name.text, KNOWN)
        checker.say(
            codes.ANNOTATION_UNKNOWN,
            name,
            f"there is no annotation `{name.text}`",
            path,
            expected=", ".join(KNOWN),
            suggestion=f"did you mean `{near}`?" if near else "",
        )


def test_cases(text: str, report: Report) -> tuple[TestCase, ...]:
    """The cases in YAML text; what cannot be read goes to `report`, the rest is returned."""
    cases: list[TestCase] = []
    for document in yaml_lines.read(text, report):
        if not isinstance(document, Sequence):
            report.add(
                codes.TESTS,
                "the tests are not a list",
                line=document.line,
                column=document.column,
                expected="a list of `{event: {...}, expect: {action: ...}}`",
            )
            continue
        cases += [case for item in document.items if (case := _case(item, report)) is not None]
    return tuple(cases)


def _case(item: Node, report: Report) -> TestCase | None:
    held = (
        {key.text: value for key, value in item.pairs if isinstance(key, Scalar)} if isinstance(item, Mapping) else {}
    )
    event, expect = held.get("event"), held.get("expect")
    answer = (
        {key.text: value for key, value in expect.pairs if isinstance(key, Scalar)}
        if isinstance(expect, Mapping)
        else {}
    )
    action, policy = answer.get("action"), answer.get("policy")
    if not isinstance(event, Mapping) or not isinstance(action, Scalar) or action.text not in ACTIONS:
        report.add(
            codes.TESTS,
            "a test needs `event` and `expect.action`",
            line=item.line,
            column=item.column,
            expected="`{event: {...}, expect: {action: Allow|Audit|Block}}`",
        )
        return None
    if set(held) - {"event", "expect", "name"} or set(answer) - {"action", "policy"}:
        report.add(
            codes.TESTS,
            "a test has `name`, `event` and `expect` with `action` and `policy`, nothing else",
            line=item.line,
            column=item.column,
        )
        return None
    wanted = policy.text if isinstance(policy, Scalar) and policy.kind == "str" else None
    name = held.get("name")
    try:
        encoded = msgspec.json.encode(plain(event))
    except (msgspec.EncodeError, ValueError, OverflowError):
        report.add(codes.TESTS, "the event cannot be written as JSON", line=item.line, column=item.column)
        return None
    return TestCase(encoded, action.text, wanted, item.line, name.text if isinstance(name, Scalar) else "")
