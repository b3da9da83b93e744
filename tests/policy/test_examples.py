# SPDX-License-Identifier: Apache-2.0
"""Every policy under examples/ is clean, and does to its own test events what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.parse import parse
from policy.rules.backends import held
from policy.rules.normalise import normalise
from policy.ruleset import compile_ruleset
from policy.text import annotations
from policy.text.coverage import unseen
from policy.text.diagnostics import Report, render
from policy.tools.cases import carried_cases, run_cases
from policy.tools.lint import lint
from schemas.policy import KINDS
from schemas.rules import Target
from schemas.verdict import Action, Mode

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "policies").glob("*.yaml"))
UNSEEN = {"pod-drop-capabilities.yaml", "host-usb-storage.yaml"}
"""Written for a version that sees what they are about; this one says that it does not."""
WITHOUT_TESTS = {"pod-traffic-quota.yaml", "pod-shadow-tmp-exec.yaml"}
"""A quota is about amounts and a shadow policy never decides: neither can be asked about one event."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_no_diagnostics(path: Path) -> None:
    parsed = parse(path.read_bytes(), path.name)
    said = [one for one in parsed.diagnostics if one.code != "P607"]
    assert [render(one, parsed.text) for one in said] == []
    assert (len(said) < len(parsed.diagnostics)) == (path.name in UNSEEN)
    assert parsed.policies


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.name not in WITHOUT_TESTS], ids=lambda path: path.name
)
def test_an_example_passes_its_own_tests(path: Path) -> None:
    parsed = parse(path.read_bytes(), path.name)
    ruleset = compile_ruleset(parsed.policies)
    for document in parsed.policies:
        cases, broken = carried_cases(normalise(document))
        assert not broken
        # One event that is meant and one that is not, at least: a rule that matches everything would pass the first kind alone.
        assert len(cases) >= 2
        assert {case.action for case in cases} != {"Allow"}
        assert "Allow" in {case.action for case in cases}
        assert [result.reason for result in run_cases(ruleset, cases) if not result.passed] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_lint_names_each_block_of_an_example_that_nothing_here_holds(path: Path) -> None:
    ruleset = compile_ruleset(parse(path.read_bytes(), path.name).policies)
    unheld = {
        (policy.key.name, rule.position)
        for policy in ruleset.policies
        for rule in policy.rules
        if policy.mode is Mode.ENFORCE
        and rule.action is Action.BLOCK
        and unseen(rule) is None
        and (policy.selection.target is Target.NODES or not held(rule, signal=policy.signal))
    }
    assert {(one.rule.policy, one.rule.position) for one in lint(ruleset) if one.code == "L110"} == unheld


def test_examples_show_every_kind_and_section() -> None:
    texts = [path.read_text() for path in EXAMPLES]
    for word in (*KINDS, "process:", "file:", "network:", "capabilities:", "syscalls:", "presets:", "device:", "ingress:", "egress:", "matchDNSQueries:", "matchPatterns:", "fromSource:", "readOnly:", "hauberk.io/mode: shadow"):  # fmt: skip
        assert any(word in text for text in texts), word
    assert len(EXAMPLES) >= 12


BROKEN = [
    ("a: 1", "not a list"),
    ("- event: {}", "expect.action"),
    ("- expect: {action: Block}", "expect.action"),
    ("- {event: {}, expect: {action: Deny}}", "expect.action"),
    ("- {event: {}, expect: {action: Block}, extra: 1}", "nothing else"),
    ("- [", "did not find"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_tests_that_cannot_be_read_are_told(text: str, words: str) -> None:
    report = Report("t")
    assert annotations.test_cases(text, report) == ()
    assert words in report.found[0].message


def test_the_good_tests_are_read_beside_the_broken() -> None:
    report = Report("t")
    (case,) = annotations.test_cases("- {event: {UID: 0}, expect: {action: Block, policy: p}}\n- 5\n", report)
    assert (case.event, case.action, case.policy, case.line) == (b'{"UID":0}', "Block", "p", 1)
    assert len(report.found) == 1
