# SPDX-License-Identifier: Apache-2.0
"""Policy, event, verdict: every group of `cases/*.yaml`, judged through the parser, the event reader and the judge.

A policy entry is `{name, kind?, namespace?, annotations?, spec}`; selectors default to `app=web` and to every node. `base` is
merged under each event. The answer must not depend on the order of the policies, so each group is judged both ways round.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy.parse import parse
from policy.rules.normalise import normalise
from policy.ruleset import PostureSettings, Ruleset, compile_ruleset
from policy.text.annotations import TestCase as Case
from policy.tools.cases import Answer, answer_events, carried_cases, read_cases, run_cases
from policy.tools.events import BadLine, Notice, parse_event
from policy.tools.explain import explain_event
from schemas.alert import Alert, encode_alert
from schemas.errors import DecodeError

FILES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
GROUPS = [
    pytest.param(group, id=f"{file.stem}-{number}")
    for file in FILES
    for number, group in enumerate(yaml.safe_load(file.read_text()))
]
SELECTORS = {
    "KubeArmorPolicy": {"selector": {"matchLabels": {"app": "web"}}},
    "KubeArmorHostPolicy": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "*"}}},
    "KubeArmorNetworkPolicy": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "*"}}},
    "KubeArmorClusterPolicy": {},
}


def documents(group: dict[str, Any]) -> list[Any]:
    texts = []
    for entry in group["policies"]:
        kind = entry.get("kind", "KubeArmorPolicy")
        metadata: dict[str, Any] = {"name": entry["name"], "annotations": entry.get("annotations", {})}
        if kind == "KubeArmorPolicy":
            metadata["namespace"] = entry.get("namespace", "demo")
        texts.append(
            yaml.safe_dump(
                {
                    "apiVersion": "security.kubearmor.com/v1",
                    "kind": kind,
                    "metadata": metadata,
                    "spec": SELECTORS[kind] | entry["spec"],
                }
            )
        )
    parsed = parse("---\n".join(texts), "cases")
    assert parsed.ok, [str(diagnostic) for diagnostic in parsed.diagnostics]
    return list(parsed.policies)


def expected(case: dict[str, Any], answer: Answer) -> None:
    wanted = case["expect"]
    assert answer.action == wanted["action"], (case, answer)
    if "policy" in wanted:
        assert answer.policy == wanted["policy"], (case, answer)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("backwards", [False, True])
def test_group(group: dict[str, Any], backwards: bool) -> None:
    found = documents(group)
    ruleset = compile_ruleset(reversed(found) if backwards else found, PostureSettings(**group.get("settings", {})))
    lines = [json.dumps(group.get("base", {}) | case["event"]) for case in group["cases"]]
    answers = list(answer_events(ruleset, lines))
    assert len(answers) == len(lines)
    for case, answer in zip(group["cases"], answers, strict=True):
        assert isinstance(answer, Answer), (case, answer)
        expected(case, answer)


@pytest.mark.parametrize("group", GROUPS)
def test_explain_names_the_rule_of_the_verdict(group: dict[str, Any]) -> None:
    ruleset = compile_ruleset(documents(group), PostureSettings(**group.get("settings", {})))
    for case in group["cases"]:
        event = parse_event(json.dumps(group.get("base", {}) | case["event"]).encode())
        told = explain_event(ruleset, event.identity, event.behaviour, event.arguments)
        deciding = {entry.rule for entry in told.weighed if entry.decides}
        assert deciding == ({told.verdict.rule} if told.verdict.rule is not None else set()), (case, told)
        assert told.summary
        assert all(entry.why for entry in told.weighed)


def ruleset_of(text: str) -> Ruleset:
    parsed = parse(text, "policy.yaml")
    assert parsed.ok, parsed.diagnostics
    return compile_ruleset(parsed.policies)


CARRYING = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: carrying
  namespace: demo
  annotations:
    hauberk.io/tests: |
      - name: the hashes are kept
        event: {Operation: File, Resource: /etc/shadow, NamespaceName: demo, ContainerName: c, Labels: app=web}
        expect: {action: Block, policy: carrying}
      - event: {Operation: File, Resource: /etc/hosts, NamespaceName: demo, ContainerName: c, Labels: app=web}
        expect: {action: Block}
      - event: {Operation: Fool}
        expect: {action: Allow}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchPaths: [{path: /etc/shadow}]}
"""


def test_a_policy_carries_its_own_tests() -> None:
    ruleset = ruleset_of(CARRYING)
    cases, wrong = carried_cases(ruleset.policies[0])
    assert not wrong
    first, second, third = run_cases(ruleset, cases, "carrying")
    assert first.passed
    assert not second.passed
    assert "expected Block, got Allow by no policy" in second.reason
    assert third.got is None
    assert "expected Process, File" in third.reason
    assert [(one.name, one.policy) for one in (first, second, third)] == [
        ("the hashes are kept", "carrying"), ("test 2", "carrying"), ("test 3", "carrying"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        (CARRYING, [9, 12, 14]),
        (re.sub(r"tests: \|\n(?: {6}.*\n)+", "tests: '[{event: {}, expect: {action: Allow}}]'\n", CARRYING), [8]),
        (re.sub(r"tests: \|\n(?: {6}.*\n)+", 'tests: "\\n\\n- {event: {}, expect: {action: Allow}}"\n', CARRYING), [8]),
        ("# a comment\n---\n" + CARRYING.replace("  annotations:", "  labels: {}\n  annotations:"), [12, 15, 17]),
    ],
)
def test_a_test_knows_its_line_of_the_file(form: str, lines: list[int]) -> None:
    (document,) = parse(form, "p.yaml").policies
    cases, wrong = carried_cases(normalise(document), document.positions)
    assert not wrong
    assert [case.line for case in cases] == lines
    results = list(run_cases(compile_ruleset([document]), cases, "carrying", "p.yaml"))
    assert [(one.file, one.line) for one in results] == [("p.yaml", line) for line in lines]


def test_cases_beside_a_policy_report_what_cannot_be_read() -> None:
    cases, wrong = read_cases("- event: {Operation: File}\n- nonsense\n", "p_test.yaml")
    assert cases == ()
    assert len(wrong) == 2
    assert run_cases(ruleset_of(CARRYING), [Case(b"{}", "Allow")])


def test_notices_of_the_pipeline_are_passed_over_and_do_not_count() -> None:
    good = '{"Operation": "File", "Resource": "/etc/shadow", "NamespaceName": "demo", "ContainerName": "c", "Labels": "app=web"}'
    lost = Alert(Timestamp=1, UpdatedTime="x", Type="SystemEvent", Operation="EventsLost", Data="ring=7", HostName="vm")
    lines = [good, encode_alert(lost), '{"type": "SystemEvent", "operation": "AlertThreshold"}', good]
    answers = list(answer_events(ruleset_of(CARRYING), lines))
    assert answers[1:3] == [Notice(2, "EventsLost"), Notice(3, "AlertThreshold")]
    assert [one.event for one in answers if isinstance(one, Answer)] == [1, 2]
    with pytest.raises(DecodeError, match="nothing to judge in a notice of the pipeline, got `EventsLost`"):
        parse_event(encode_alert(lost))


def test_bad_lines_keep_their_numbers_and_stop_nothing() -> None:
    ruleset = ruleset_of(CARRYING)
    good = '{"Operation": "File", "Resource": "/etc/shadow", "NamespaceName": "demo", "ContainerName": "c", "Labels": "app=web"}'
    answers = list(answer_events(ruleset, [good, "", "{", "[1]", '{"Operation": "File", "UID": [1]}', good]))
    assert [type(answer) for answer in answers] == [Answer, BadLine, BadLine, BadLine, Answer]
    assert [answer.line for answer in answers if isinstance(answer, BadLine)] == [3, 4, 5]
    assert [answer.event for answer in answers if isinstance(answer, Answer)] == [1, 2]
    last = answers[-1]
    assert isinstance(last, Answer)
    assert last.rule is not None
    assert last.rule["position"] == "spec.file.matchPaths[0]"
