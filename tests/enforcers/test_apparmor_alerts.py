# SPDX-License-Identifier: Apache-2.0
"""A record of the audit stream to an alert: which rule it was, whose, what is left out and told."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from enforcers.apparmor_alerts import PER_SECOND, DenialAlerts
from kernel.audit import AuditDenial, parse
from schemas.alert import HEADERS, decode_alert
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.identity import Identity, Kind
from schemas.operations import Class
from schemas.verdict import Action, RuleRef

BOX = Identity(
    kind=Kind.CONTAINER, node="n", uid="u", cgroups=(7,), container_name="box", namespace="shop", labels={"a": "b"}
)


def ref(name: str, kind: str = "KubeArmorPolicy") -> RuleRef:
    return RuleRef(name, kind=kind, namespace="shop", position=f"spec.{name}")


def rule(value: str, match: str = "path", cls: Class = Class.FILE, **more: Any) -> PathRule:
    return PathRule(**({"cls": cls, "match": match, "value": value, "action": Action.BLOCK, "ref": ref(match)} | more))


SCOPE = ScopePlan(
    uid="u", cgroups=(7,), cgroup_path="/none/u",
    paths=(
        rule("/etc/free", action=Action.ALLOW, ref=ref("free")), rule("/etc/shadow"), rule("/srv/", "directory"),
        rule("/data/", "directory_recursive"), rule("/**/*.key", "pattern"), rule("nc", "execname", Class.PROCESS),
        rule("net_raw", "capability", Class.CAPABILITIES), rule("/opt/kept", read_only=True, action=Action.ALLOW, ref=ref("kept")),
    ),
    network=(NetworkRule(protocol="raw", action=Action.BLOCK, ref=ref("net", "KubeArmorHostPolicy")),),
    posture=((Class.PROCESS, Action.BLOCK),),
)  # fmt: skip


def denial(name: str = "/etc/shadow", operation: str = "open", mask: str = "r", **more: Any) -> AuditDenial:
    words: dict[str, Any] = {
        "profile": "hauberk-web", "operation": operation, "name": name, "pid": 0, "comm": "cat", "mask": mask, "serial": 5,
        "seconds": 1_700_000_000.25,
    }  # fmt: skip
    return AuditDenial(**(words | more))


def made(*denials: AuditDenial, scope: ScopePlan = SCOPE, **more: Any) -> tuple[DenialAlerts, list[Any]]:
    alerts = DenialAlerts("n", "boot", {7: BOX}.get)
    records = alerts.records(denials, (scope,), {"hauberk-web": {"u"}}, **more)
    for record in records:
        assert {name for name, _ in record.headers} == set(HEADERS)
    return alerts, [decode_alert(record.value) for record in records]


@pytest.mark.parametrize(
    ("asked", "policy", "operation"),
    [
        (denial(), "path", "File"), (denial("/srv/x"), "directory", "File"), (denial("/srv/x/y"), "", "File"),
        (denial("/srv/"), "directory", "File"), (denial("/data/a/b"), "directory_recursive", "File"), (denial("/a/b.key"), "pattern", "File"),
        (denial("/usr/bin/nc", "exec", "x"), "execname", "Process"), (denial("/usr/bin/id", "exec", "x"), "DefaultPosture", "Process"),
        (denial("", "capable", ""), "", "Capabilities"), (denial("net_raw", "capable", ""), "capability", "Capabilities"),
        (denial("", "create", ""), "net", "Network"), (denial("/opt/kept", "open", "w"), "kept", "File"), (denial("/proc/kcore"), "", "File"),
    ],
)  # fmt: skip
def test_the_rule_is_the_plans(
    asked: AuditDenial, policy: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enforcers.apparmor_alerts.told_by_sensor", lambda *_: False)
    _, (alert,) = made(asked)
    assert (alert.PolicyName, alert.Operation, alert.Resource) == (policy, operation, asked.name)
    assert (alert.Enforcer, alert.Action, alert.Result) == ("AppArmor", "Block", "Permission denied")
    assert (alert.ContainerName, alert.NamespaceName, alert.Labels) == ("box", "shop", "a=b")
    assert alert.Rule == (f"spec.{policy}" if policy not in ("", "DefaultPosture") else "")
    assert alert.Type == ("MatchedHostPolicy" if policy == "net" else "MatchedPolicy")
    assert alert.EventID == "n:boot:audit:5"
    assert ("baseline" in alert.Message) is (policy == "")


@pytest.mark.parametrize(
    ("asked", "once"),
    [
        (denial(), True), (denial("/usr/bin/nc", "exec", "x"), True), (denial("", "create", ""), True),
        (denial("/usr/bin/id", "exec", "x"), False), (denial("/proc/kcore"), False), (denial("net_raw", "capable", ""), False),
        (denial("/usr/bin/nc", "file_mmap", "x"), False),
    ],
)  # fmt: skip
def test_what_the_sensor_reports_with_the_same_rule_is_not_told_again(asked: AuditDenial, once: bool) -> None:
    alerts, told = made(asked)
    assert (alerts.counts.elsewhere, alerts.counts.told, len(told)) == (int(once), int(not once), int(not once))


@pytest.mark.parametrize(
    ("asked", "watched", "once"),
    [
        (denial("/usr/bin/id", "exec", "x"), 1 << Class.PROCESS, True), (denial("/usr/bin/id", "exec", "x"), 1 << Class.FILE, False),
        (denial("/usr/bin/id", "exec", "x"), 0, False), (denial("/usr/bin/id", "file_mmap", "x"), 1 << Class.PROCESS, False),
        (denial("/proc/kcore"), 1 << Class.FILE, False),
    ],
)  # fmt: skip
def test_what_a_posture_denied_is_told_once_where_its_class_is_watched(
    asked: AuditDenial, watched: int, once: bool
) -> None:
    alerts, told = made(asked, scope=msgspec.structs.replace(SCOPE, visibility=watched))
    assert (alerts.counts.elsewhere, len(told)) == (int(once), int(not once))


def test_the_order_stays_and_foreign_profiles_are_passed_over() -> None:
    alerts, told = made(
        denial("/x", serial=1), denial("/x", profile="docker-default", serial=2), denial("/y", serial=3)
    )
    assert [one.EventID for one in told] == ["n:boot:audit:1", "n:boot:audit:3"]
    assert (alerts.counts.told, alerts.counts.silenced, alerts.counts.dropped) == (2, 0, 0)


def test_what_came_too_fast_and_what_was_lost_is_counted_and_told() -> None:
    many = [denial("/x", serial=number, seconds=time.time() + 60) for number in range(PER_SECOND + 30)]
    alerts, told = made(*many, lost=2)
    assert len(told) == PER_SECOND
    assert (alerts.counts.told, alerts.counts.silenced, alerts.counts.dropped) == (PER_SECOND, 30, 2)
    alerts.unpublished(4)
    later = alerts.records([denial("/x", seconds=time.time() + 90)], (SCOPE,), {"hauberk-web": {"u"}})
    (first, notice) = [decode_alert(record.value) for record in later]
    assert first.Resource == "/x"
    assert (notice.Type, notice.Operation, notice.Data) == ("SystemEvent", "EventsLost", "apparmor=36")
    assert alerts.records([], (SCOPE,), {}) == []


def test_a_capability_as_the_kernel_writes_it() -> None:
    text = (
        'audit(1700000000.250:9): apparmor="DENIED" operation="capable" class="cap" profile="hauberk-web" pid=4 comm="ping" '
        'capability=13  capname="net_raw"'
    )
    found = parse(text)
    assert found is not None
    _, (alert,) = made(found)
    assert (alert.PolicyName, alert.Resource) == ("capability", "net_raw")
