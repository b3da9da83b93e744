# SPDX-License-Identifier: Apache-2.0
"""Drift: what is outside a baseline is told once for each policy, workload and behaviour, and never blocked."""

import json

from policy.documents import from_json
from policy.ruleset import compile_ruleset
from policy.tools.cases import answer, judge_event
from policy.tools.events import parse_event
from policy.tools.explain import explain_event
from processors.alerts import LATER
from processors.drift import DriftTold
from schemas.alert import encode_alert
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Operation
from schemas.verdict import Verdict


def baseline(make_policy, **more):
    document = make_policy(file={"matchPaths": [{"path": "/etc/known"}]}, action="Allow", **more)
    document["metadata"]["annotations"] = {"hauberk.io/mode": "baseline"}
    return document


async def test_once_with_its_evidence(node, stage, make_policy):
    stage.policies(baseline(make_policy, message="not among what 9 behaviours showed", severity=7))
    known = node.behaviour(Operation.OPEN, "/etc/known", syscall=257)
    new = node.behaviour(Operation.OPEN, "/etc/new", syscall=257)
    for _ in range(3):
        node.row(known)
        first = node.row(new)
        node.row(new)
        await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Mode, alert.Action, alert.PolicyName, alert.Resource) == ("baseline", "Audit", "p", "/etc/new")
    assert alert.Message == "Drift: not among what 9 behaviours showed"
    assert alert.ATags == ["Drift"]
    assert alert.Severity == "7"
    assert alert.EventID.endswith(":baseline:p")
    assert alert.EventID != f"node-1:boot-a:{first}:baseline:p", "it is of the first time"
    await stage.finish()
    assert {entry.status for summary in stage.summaries for entry in summary.entries} == {"Allow"}


async def test_once_of_a_flood_and_after_policies_changed(node, stage, make_policy):
    stage.policies(baseline(make_policy))
    new = node.behaviour(Operation.OPEN, "/etc/new", syscall=257)
    for _ in range(500):
        node.row(new)
    await stage.take(node.record())
    other = make_policy(file={"matchPaths": [{"path": "/etc/other"}]}, action="Audit")
    other["metadata"]["name"] = "q"
    stage.policies(baseline(make_policy), other)
    node.row(new)
    node.row(node.behaviour(Operation.OPEN, "/etc/other", syscall=257))
    await stage.take(node.record())
    assert [(alert.PolicyName, alert.Mode, alert.Resource) for alert in stage.alerts] == [
        ("p", "baseline", "/etc/new"),
        ("q", "", "/etc/other"),
        ("p", "baseline", "/etc/other"),
    ]


async def test_an_alert_given_back_is_said_to_be_one_of_a_baseline(node, stage, make_policy):
    document = baseline(make_policy)
    stage.policies(document)
    node.row(node.behaviour(Operation.OPEN, "/etc/new", syscall=257))
    await stage.take(node.record())
    (alert,) = stage.alerts
    ruleset = compile_ruleset([from_json(json.dumps(document).encode())])
    event = parse_event(encode_alert(alert))
    verdict = judge_event(ruleset, event)
    assert [(one.policy, str(one.action), one.mode, one.message) for one in verdict.shadow] == [
        (alert.PolicyName, alert.Action, alert.Mode, alert.Message)
    ]
    assert answer(1, verdict).shadow == "Audit by p (baseline)"
    said = explain_event(ruleset, event.identity, event.behaviour, event.arguments)
    assert "Drift: outside the baseline p" in said.summary
    known = parse_event(json.dumps(json.loads(encode_alert(alert)) | {"Resource": "/etc/known"}).encode())
    (weighed,) = explain_event(ruleset, known.identity, known.behaviour, known.arguments).weighed
    assert not weighed.decides
    assert weighed.why == "baseline, decides nothing: most specific that matches: exact path `/etc/known`"


def instance(uid):
    return Identity(
        kind=Kind.CONTAINER, node="n", uid=uid, pod=uid, namespace="shop", owner=Owner("Deployment", "web", "shop")
    )


def test_what_there_is_no_room_for_is_counted():
    told, verdict = DriftTold(2), Verdict(policy="p")
    keys = [told.key(instance("u"), Behaviour(operation=Operation.OPEN, resource=path), verdict) for path in "abc"]
    assert len(set(keys)) == 3
    for key in keys:
        told.add(key)
    assert told.forgotten == 2
    assert [key in told for key in keys] == [False, False, True]
    same = told.key(
        instance("other pod"),
        Behaviour(operation=Operation.OPEN, resource="c", uid=7),
        verdict,
    )
    assert same in told, "of another instance and another user it is the same"


async def test_what_drifts_in_a_silence_is_told_once_when_it_is_over(node, stage, make_policy):
    """Nobody may do it a second time. It is not counted as silenced as well."""
    stage.policies(baseline(make_policy))
    names = [f"/etc/new{number}" for number in range(120)]
    for name in (*names, names[-1]):
        node.row(node.behaviour(Operation.OPEN, name, syscall=257))
    await stage.take(node.record())
    told = [alert for alert in stage.alerts if alert.Mode == "baseline"]
    assert 10 <= len(told) < 120, "the throttle holds back"
    assert stage.processor.throttle.suppressed == 0
    await stage.finish()
    told = [alert.Resource for alert in stage.alerts if alert.Mode == "baseline"]
    assert sorted(told) == sorted(names)
    assert not any(alert.Suppressed for alert in stage.alerts)
    node.row(node.behaviour(Operation.OPEN, names[-1], syscall=257))
    await stage.take(node.record())
    assert len([alert for alert in stage.alerts if alert.Mode == "baseline"]) == len(names)


async def test_there_is_an_end_to_what_waits_and_the_rest_is_counted(node, stage, make_policy):
    stage.policies(baseline(make_policy))
    for number in range(600):
        node.row(node.behaviour(Operation.OPEN, f"/etc/new{number}", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    told = [alert for alert in stage.alerts if alert.Mode == "baseline"]
    assert len(told) == len({alert.Resource for alert in told})
    assert len(told) + sum(alert.Suppressed for alert in stage.alerts) == 600
    assert len(told) >= LATER
