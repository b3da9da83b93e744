# SPDX-License-Identifier: Apache-2.0
"""Stored behaviours judged again: what a change of policies changes, and what a policy would have done."""

from __future__ import annotations

import yaml

from policy.parse import parse
from policy.ruleset import Ruleset, compile_ruleset
from policy.tools.backtest import BacktestProgress, BacktestReport, BacktestSettings, backtest
from policy.tools.diff import Observed, change_kind, diff
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.verdict import Action, Mode, Verdict

WEB = Identity(kind=Kind.CONTAINER, node="n1", uid="u1", namespace="demo", container_name="web", labels={"app": "web"}, orchestrated=True)  # fmt: skip


def rules(action: str, mode: str = "enforce", *paths: str) -> Ruleset:
    text = yaml.safe_dump(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": "p", "namespace": "demo", "annotations": {"hauberk.io/mode": mode}},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "action": action,
                "file": {"matchPaths": [{"path": path} for path in paths]},
            },
        }
    )
    return compile_ruleset(parse(text, "p").policies)


def seen(path: str, count: int = 1, at: int = 0) -> Observed:
    behaviour = Behaviour(operation=Operation.OPEN, access=Access.READ, resource=path)
    return Observed(identity=WEB, behaviour=behaviour, count=count, first=at, last=at + 10)


def test_diff_tells_only_what_changes() -> None:
    changes = list(
        diff(
            rules("Block", "enforce", "/a", "/b"),
            rules("Block", "enforce", "/b", "/c"),
            map(seen, ("/a", "/b", "/c", "/d")),
        )
    )
    assert [(change.kind, change.observed.behaviour.resource) for change in changes] == [
        ("permitted", "/a"),
        ("denied", "/c"),
    ]


def test_kinds_of_change() -> None:
    allow, audit, block = Verdict(), Verdict(action=Action.AUDIT, policy="p", tell=True), Verdict(action=Action.BLOCK, policy="p", tell=True)  # fmt: skip
    other = Verdict(action=Action.AUDIT, policy="q", tell=True)
    would = Verdict(action=Action.BLOCK, policy="p", tell=True, mode=Mode.AUDITED)
    assert change_kind(allow, allow) is None
    assert change_kind(allow, block) == "denied"
    assert change_kind(block, audit) == "permitted"
    assert change_kind(allow, audit) == "told"
    assert change_kind(audit, allow) == "silenced"
    assert change_kind(audit, other) == "attributed"
    assert change_kind(allow, would) == "told"


def test_backtest_counts_events_and_names_rules() -> None:
    past = [seen("/a", 5, 100), seen("/a", 7, 50), seen("/b", 1, 70), seen("/c", 100)]
    *progress, report = backtest(rules("Block", "enforce", "/a", "/b"), past, BacktestSettings(every=2, examples=1))
    assert [type(step) for step in progress] == [BacktestProgress, BacktestProgress]
    assert isinstance(report, BacktestReport)
    assert report.totals == BacktestProgress(behaviours=4, events=113, blocked=13, audited=0)
    first, second = report.rows
    assert (first.workload, first.action, first.policy, first.count, first.behaviours) == (
        "demo/web",
        "Block",
        "p",
        12,
        2,
    )
    assert (first.first, first.last, first.resources) == (50, 110, (("/a", 12),))
    assert second.rule is not None
    assert second.rule.position == "spec.file.matchPaths[1]"


def test_backtest_says_of_how_many_events_the_names_were_left_out() -> None:
    untold = Behaviour(operation=Operation.OPEN, access=Access.READ | Access.UNTOLD, resource="/a/")
    *_, report = backtest(
        rules("Block", "enforce", "/a/x"), [seen("/a/x", 3), Observed(identity=WEB, behaviour=untold, count=9)]
    )
    assert isinstance(report, BacktestReport)
    assert (report.totals.events, report.totals.blocked, report.totals.untold) == (12, 3, 9)


def test_backtest_of_a_shadow_policy_blocks_nothing() -> None:
    *_, report = backtest(rules("Block", "shadow", "/a"), [seen("/a", 3)])
    assert isinstance(report, BacktestReport)
    assert report.totals.blocked == 0
    assert [(row.mode, row.count) for row in report.rows] == [(Mode.SHADOW, 3)]


def test_backtest_rows_are_bounded_and_the_rest_is_counted() -> None:
    *_, report = backtest(rules("Block", "enforce", "/a", "/b"), [seen("/a"), seen("/b", 4)], BacktestSettings(rows=1))
    assert isinstance(report, BacktestReport)
    assert (len(report.rows), report.beyond) == (1, 4)
