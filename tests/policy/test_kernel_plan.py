# SPDX-License-Identifier: Apache-2.0
"""What goes into a plan, in which order, and what is refused with which reason."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.rules.backends import AUTOBIND, OTHER_FAMILIES
from policy.ruleset import PostureSettings, Ruleset, compile_ruleset
from policy.tools.explain import explain_policy
from schemas.backends import FLOOR
from schemas.enforcement import Refusal, ScopePlan
from schemas.identity import Identity, Kind
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action

CONTAINER = Identity(kind=Kind.CONTAINER, node="n1", uid="u1", namespace="demo", labels={"app": "web"}, cgroups=(7,), orchestrated=True)  # fmt: skip
HOST = Identity(kind=Kind.HOST, node="n1", uid="n1/x")
SIGNAL = {"hauberk.io/signal": "enabled"}


def ruleset(*entries: tuple[str, dict[str, Any], dict[str, str]], settings: PostureSettings | None = None) -> Ruleset:
    texts = []
    for number, (kind, spec, notes) in enumerate(entries):
        metadata: dict[str, Any] = {"name": f"p{number}", "annotations": notes}
        if kind == "KubeArmorPolicy":
            metadata["namespace"] = "demo"
            spec = {"selector": {"matchLabels": {"app": "web"}}} | spec
        else:
            spec = {"nodeSelector": {"matchLabels": {}}} | spec
        texts.append(
            yaml.safe_dump(
                {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": metadata, "spec": spec}
            )
        )
    parsed = parse("---\n".join(texts), "plan")
    assert parsed.ok, parsed.diagnostics
    return compile_ruleset(parsed.policies, settings or PostureSettings())


def planned(
    spec: dict[str, Any], annotations: dict[str, str] | None = None, **settings: Any
) -> tuple[ScopePlan, tuple[Refusal, ...]]:
    found = ruleset(("KubeArmorPolicy", spec, annotations or {}), settings=PostureSettings(**settings))
    return plan_scope(found.scope(CONTAINER), CONTAINER)


def test_network_rules_go_to_the_cgroup_backend() -> None:
    plan, refused = planned({"network": {"matchProtocols": [{"protocol": "tcp"}, {"protocol": "udp", "fromSource": [{"path": "/bin/dig"}]}]}})  # fmt: skip
    assert not refused
    assert [(rule.protocol, rule.source, rule.direction) for rule in plan.network] == [
        ("udp", "/bin/dig", "egress"),
        ("udp", "/bin/dig", "ingress"),
        ("tcp", "", "egress"),
        ("tcp", "", "ingress"),
    ]
    assert (plan.uid, plan.cgroups, plan.signal) == ("u1", (7,), False)


def test_path_rules_need_an_opt_in_to_kills() -> None:
    spec = {"process": {"matchPaths": [{"path": "/bin/x"}]}}
    plan, refused = plan_scope(ruleset(("KubeArmorPolicy", spec, {})).scope(CONTAINER), CONTAINER, backends=FLOOR)
    assert plan.paths == ()
    assert {refusal.backend for refusal in refused} == {Backend.CGROUP, Backend.SIGNAL}
    assert any("opt in" in refusal.reason for refusal in refused)
    # An LSM hook needs none: what a node without hooks leaves of it is in its receipt.
    plan, refused = planned(spec)
    assert (len(plan.paths), plan.signal, refused) == (1, False, ())
    plan, refused = planned(spec, SIGNAL)
    assert plan.signal
    assert not refused
    assert [(rule.match, rule.value, rule.action) for rule in plan.paths] == [("path", "/bin/x", Action.BLOCK)]


def test_a_family_that_guards_do_not_see_is_in_the_plan_for_the_hooks() -> None:
    spec = {"network": {"matchProtocols": [{"protocol": "packet"}]}}
    plan, refused = planned(spec)
    assert {rule.protocol for rule in plan.network} == {"packet"}
    assert refused == ()
    scope = ruleset(("KubeArmorPolicy", spec, {})).scope(CONTAINER)
    plan, refused = plan_scope(scope, CONTAINER, backends=(Backend.CGROUP, Backend.SIGNAL))
    assert plan.network == ()
    assert {one.backend: one.code for one in refused} == {
        Backend.CGROUP: RefusalCode.SOCKET_FAMILY,
        Backend.SIGNAL: RefusalCode.WRONG_CLASS,
    }


def test_a_terminal_is_in_the_plan_of_a_rule_on_sockets() -> None:
    """It was lost: who had no terminal was denied too, or who had one was not."""
    words = [{"protocol": "tcp", "pts": False}, {"protocol": "udp", "action": "Allow", "pts": False}]
    plan, refused = planned({"network": {"matchProtocols": words}, "action": "Block"})
    assert refused == ()
    assert {(one.protocol, one.action, one.no_terminal) for one in plan.network} == {
        ("tcp", Action.BLOCK, True),
        ("udp", Action.ALLOW, True),
    }


def test_of_equal_rules_the_strictest_comes_first() -> None:
    """Who looks one up by its key takes the first: plain Block, then a limit, then Allow."""
    words = [{"protocol": "tcp", "action": "Allow"}, {"protocol": "tcp", "pts": False}, {"protocol": "tcp"}]
    plan, _ = planned({"network": {"matchProtocols": words}, "action": "Block"})
    assert [(one.action, one.no_terminal) for one in plan.network[::2]] == [
        (Action.BLOCK, False),
        (Action.BLOCK, True),
        (Action.ALLOW, False),
    ]


def test_a_preset_that_allows_is_in_no_plan() -> None:
    plan, refused = planned({"presets": [{"name": "protectProc", "action": "Allow"}]})
    assert (plan.paths, refused) == ((), ())


def test_first_match_is_the_judges_choice() -> None:
    spec = {
        "file": {
            "action": "Allow",
            "matchDirectories": [
                {"dir": "/", "recursive": True},
                {"dir": "/s/", "recursive": True, "action": "Block"},
                {"dir": "/s/", "recursive": True, "fromSource": [{"path": "/bin/app"}]},
            ],
            "matchPaths": [{"path": "/s/x"}],
            "matchPatterns": [{"pattern": "/**.key", "action": "Block"}],
        }
    }
    scope = ruleset(("KubeArmorPolicy", spec, {})).scope(CONTAINER)
    plan, _ = plan_scope(scope, CONTAINER, backends=(Backend.BPF_LSM,))
    assert [(rule.match, rule.value, rule.source) for rule in plan.paths] == [
        ("directory_recursive", "/s/", "/bin/app"),
        ("path", "/s/x", ""),
        ("pattern", "/**.key", ""),
        ("directory_recursive", "/s/", ""),
        ("directory_recursive", "/", ""),
    ]
    assert plan.posture == ((Class.FILE, Action.AUDIT),)


def test_limits_on_one_path_are_merged_to_the_strictest() -> None:
    spec = {
        "file": {"matchPaths": [{"path": "/a", "readOnly": True}, {"path": "/a", "ownerOnly": True, "action": "Allow"}]}
    }
    plan, _ = planned(spec, SIGNAL)
    (rule,) = plan.paths
    assert rule.owner_only
    assert rule.read_only


def test_audit_audited_and_shadow_rules_are_not_planned() -> None:
    audit = {"action": "Audit", "network": {"matchProtocols": [{"protocol": "tcp"}]}}
    block = {"network": {"matchProtocols": [{"protocol": "tcp"}]}}
    for spec, notes in (
        (audit, {}),
        (block, {"kubearmor-policy": "audited"}),
        (block, {"hauberk.io/mode": "shadow"}),
        (block, {"kubearmor-policy": "disabled"}),
    ):
        plan, refused = planned(spec, notes)
        assert plan.network == ()
        assert refused == ()


def test_a_block_without_its_exception_is_refused() -> None:
    spec = {
        "process": {
            "matchDirectories": [{"dir": "/bin/", "recursive": True}, {"dir": "/opt/"}],
            "matchPaths": [{"path": "/bin/ls", "allowedArgs": ["-l"]}],
        }
    }
    plan, refused = planned(spec, SIGNAL)
    assert [rule.value for rule in plan.paths] == ["/opt/"]
    assert any("exception p0 spec.process.matchPaths[0]" in refusal.reason for refusal in refused)


def test_posture_block_is_left_to_the_judge_when_the_list_is_not_complete() -> None:
    spec = {"action": "Allow", "network": {"matchProtocols": [{"protocol": "tcp"}]}}
    plan, refused = planned(spec, network="block")
    assert plan.posture == ((Class.NETWORK, Action.BLOCK),)
    assert plan.whitelist == (Class.NETWORK,)
    assert [(one.code, one.reason) for one in refused] == [OTHER_FAMILIES]
    spec["network"]["matchProtocols"].append({"protocol": "udp", "fromSource": [{"dir": "/usr/"}]})
    plan, refused = planned(spec, network="block")
    assert plan.posture == ((Class.NETWORK, Action.BLOCK),)
    assert [(one.protocol, one.source_match, one.source) for one in plan.network if one.source] == [
        ("udp", "directory", "/usr/")
    ] * 2
    spec = {"action": "Allow", "process": {"matchPaths": [{"path": "/bin/a"}]}}
    assert planned(spec, file="block")[0].posture == ((Class.PROCESS, Action.BLOCK),)
    spec["process"]["matchPaths"].append({"path": "/bin/b", "allowedArgs": ["-l"]})
    plan, refused = planned(spec, file="block")
    assert plan.posture == ()
    assert any("posture block of process" in refusal.reason for refusal in refused)


@pytest.mark.parametrize("word", ["all", "raw", "stream", "dgram", "seqpacket", "tcp", "udp", "icmp"])
def test_what_a_guard_holds_in_part_is_said_rule_by_rule(word: str) -> None:
    spec = {"network": {"matchProtocols": [{"protocol": word}, {"protocol": word, "action": "Audit"}]}}
    plan, refused = planned(spec)
    assert {rule.protocol for rule in plan.network} == {word}
    whole = word in ("tcp", "udp", "icmp")
    assert [(one.backend, (one.code, one.reason)) for one in refused] == (
        [] if whole else [(Backend.CGROUP, OTHER_FAMILIES)]
    )
    first, second = explain_policy(ruleset(("KubeArmorPolicy", spec, {})).policies[0])
    assert (first.note, second.note) == ("" if whole else f"cgroup in part: {OTHER_FAMILIES.text}", "")


def test_a_port_of_ingress_is_held_at_bind_alone() -> None:
    spec = {"ingress": [{"ports": [{"port": 22, "protocol": "TCP"}]}], "egress": [{"ports": [{"port": 22}]}]}
    plan, refused = plan_scope(ruleset(("KubeArmorNetworkPolicy", spec, {})).scope(HOST), HOST)
    assert {rule.direction for rule in plan.network} == {"ingress", "egress"}
    assert [(one.ref.position, (one.code, one.reason)) for one in refused] == [("spec.ingress[0]", AUTOBIND)]


def test_host_firewall_rules_with_a_catch_all_for_the_posture() -> None:
    spec = {
        "egress": [
            {
                "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "ports": [{"port": 443, "protocol": "TCP"}],
                "action": "Allow",
            },
            {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "action": "Block"},
        ],
        "ingress": [{"iface": ["eth0"], "ports": [{"port": 22}], "action": "Block"}],
    }
    found = ruleset(("KubeArmorNetworkPolicy", spec, {}), settings=PostureSettings(host_network="block"))
    plan, refused = plan_scope(found.scope(HOST), HOST)
    assert [(rule.cidr, rule.port, rule.protocol, rule.action, rule.ref.policy) for rule in plan.network] == [
        ("10.1.0.0/16", 0, "all", Action.BLOCK, "p0"),
        ("10.0.0.0/8", 443, "tcp", Action.ALLOW, "p0"),
        ("", 0, "all", Action.BLOCK, "DefaultPosture"),
    ]
    assert any("interface" in refusal.reason for refusal in refused)


def test_rules_without_a_backend_say_why() -> None:
    spec = {
        "capabilities": {"matchCapabilities": [{"capability": "net_raw"}]},
        "presets": [{"name": "filelessExec", "action": "Block"}],
        "network": {"matchDNSQueries": [{"domain": "x.org"}]},
    }
    scope = ruleset(("KubeArmorPolicy", spec, SIGNAL)).scope(CONTAINER)
    plan, refused = plan_scope(scope, CONTAINER, backends=(Backend.CGROUP, Backend.SIGNAL))
    assert plan.paths == plan.network == ()
    assert len(refused) == 5
    assert [(one.backend, one.reason) for one in refused if "capabilities" in one.ref.position] == [
        (Backend.OBSERVER, "this node cannot see it: capability checks are not watched; neither reported nor enforced")
    ]
    assert all(refusal.reason and refusal.uid == "u1" for refusal in refused)


def test_explain_says_for_every_backend() -> None:
    spec = {
        "process": {"matchPaths": [{"path": "/x", "pts": False}]},
        "network": {"matchProtocols": [{"protocol": "tcp"}]},
    }
    (first, second) = explain_policy(ruleset(("KubeArmorPolicy", spec, SIGNAL)).policies[0])
    assert set(first.backends) == {"bpf-lsm", "apparmor", "cgroup", "signal"}
    assert first.backends["bpf-lsm"] is None
    assert "terminal" in str(first.backends["signal"])
    assert second.backends["cgroup"] is second.backends["bpf-lsm"] is None
    assert second.backends["signal"] is not None


@pytest.mark.parametrize("action", ["Audit", "Block"])
def test_a_rule_that_nothing_sees_is_refused_whatever_its_action(action: str) -> None:
    spec = {
        "capabilities": {"matchCapabilities": [{"capability": "net_raw"}]},
        "presets": [{"name": "anonymousMapExec"}, {"name": "filelessExec", "action": "Audit"}],
        "syscalls": {
            "matchSyscalls": [{"syscall": ["clone"]}, {"syscall": ["ptrace", "clone"]}, {"syscall": ["umount"]}]
        },
        "action": action,
    }
    _, refused = planned(spec)
    blind = {one.ref.position: one.reason for one in refused if one.reason.startswith("this node cannot see it")}
    # What the hooks deny they tell by themselves.
    held = {"spec.capabilities.matchCapabilities[0]", "spec.presets[0]"}
    calls = {"spec.syscalls.matchSyscalls[0]", "spec.syscalls.matchSyscalls[1]"}
    assert set(blind) == (calls if action == "Block" else calls | held)
    explained = explain_policy(ruleset(("KubeArmorPolicy", spec, {})).policies[0])
    assert {one.rule.position for one in explained if one.unseen} == calls | held
    told = {one.rule.position for one in explained if "reported and enforced where bpf-lsm denies it" in one.unseen}
    assert told == (held if action == "Block" else set())
    assert not any(
        "told by the judge" in str(why) for one in explained if "neither" in one.unseen for why in one.backends.values()
    )


def test_explain_says_what_of_a_rule_on_files_comes_too_late() -> None:
    spec = {
        "process": {"matchPaths": [{"path": "/bin/a"}]},
        "file": {"matchPaths": [{"path": "/etc/a"}, {"path": "/etc/b", "action": "Audit"}]},
        "action": "Block",
    }
    for notes, late in ((SIGNAL, ["/etc/a"]), ({}, [])):
        policy = ruleset(("KubeArmorPolicy", spec, notes)).policies[0]
        explained = zip(policy.rules, explain_policy(policy), strict=True)
        assert [rule.value for rule, one in explained if "have happened by then" in one.note] == late
