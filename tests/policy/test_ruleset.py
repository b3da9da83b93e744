# SPDX-License-Identifier: Apache-2.0
"""Rulesets and scopes: sharing, modes, what is told, visibility, symlinks, rules that cannot be compiled."""

from __future__ import annotations

import errno
import time
from typing import Any

import msgspec
import pytest
import yaml

from policy.parse import parse
from policy.ruleset import PostureSettings, Ruleset, Scope, compile_ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Backend, Class, Operation
from schemas.policy import PolicyDocument
from schemas.verdict import Action, Mode


def document(name: str, spec: dict[str, Any], *, kind: str = "KubeArmorPolicy", **metadata: Any) -> PolicyDocument:
    if kind == "KubeArmorPolicy":
        metadata.setdefault("namespace", "demo")
        spec = {"selector": {"matchLabels": {"app": "web"}}} | spec
    text = yaml.safe_dump(
        {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
    )
    parsed = parse(text, name)
    assert parsed.ok, parsed.diagnostics
    return parsed.policies[0]


def container(**fields: Any) -> Identity:
    base: dict[str, Any] = {
        "kind": Kind.CONTAINER,
        "node": "n1",
        "uid": "u1",
        "namespace": "demo",
        "container_name": "c",
        "labels": {"app": "web"},
        "orchestrated": True,
    }
    return Identity(**(base | fields))


HOST = Identity(kind=Kind.HOST, node="n1", uid="n1/sshd")
SHADOW_FILE = {"file": {"matchPaths": [{"path": "/etc/shadow"}]}}


def opened(path: str, **fields: Any) -> Behaviour:
    return Behaviour(operation=Operation.OPEN, access=Access.READ, resource=path, executable="/bin/cat", **fields)


def test_equal_containers_share_one_scope() -> None:
    ruleset = compile_ruleset([document("p", SHADOW_FILE), document("q", {"file": {"matchPaths": [{"path": "/x"}]}})])
    scopes = {
        id(
            ruleset.scope(
                container(
                    uid=f"u{number}", pod=f"web-{number}", labels={"app": "web", "pod-template-hash": str(number)}
                )
            )
        )
        for number in range(500)
    }
    assert len(scopes) == 1
    assert ruleset.scope(container(labels={"app": "db"})).policies == ()


def test_containers_told_apart_by_name_share_what_they_have_in_common() -> None:
    named = {"selector": {"matchLabels": {"app": "web", "kubearmor.io/container.name": "[a]"}}}
    ruleset = compile_ruleset(
        [document("p", SHADOW_FILE), document("q", named | {"file": {"matchPaths": [{"path": "/x"}]}})]
    )
    assert ruleset.scope(container(container_name="b")) is ruleset.scope(container(container_name="c"))
    assert len(ruleset.scope(container(container_name="a")).policies) == 2


def test_a_hit_costs_the_same_under_many_policies() -> None:
    def cost(policies: int) -> float:
        documents = [document(f"p{number}", SHADOW_FILE, namespace=f"ns{number % 7}") for number in range(policies)]
        ruleset = compile_ruleset(documents)
        identity = container(namespace="ns1")
        ruleset.scope(identity)
        best = 1.0
        for _ in range(20):
            started = time.thread_time()
            for _ in range(500):
                ruleset.scope(identity)
            best = min(best, time.thread_time() - started)
        return best

    assert cost(300) < 3 * cost(3)


def test_digest_says_whether_anything_differs() -> None:
    one, two = document("p", SHADOW_FILE), document("q", SHADOW_FILE)
    assert compile_ruleset([one, two]).digest == compile_ruleset([two, one, one]).digest
    assert compile_ruleset([one]).digest != compile_ruleset([two]).digest
    assert compile_ruleset([one]).digest != compile_ruleset([one], PostureSettings(file="block")).digest


@pytest.mark.parametrize(
    ("result", "enforcer", "told"),
    [
        (0, Backend.OBSERVER, True),
        (-errno.EACCES, Backend.OBSERVER, True),
        (-errno.EPERM, Backend.BPF_LSM, True),
        (-errno.ENOENT, Backend.OBSERVER, False),
    ],
)
def test_a_named_block_is_told_when_it_happened_or_was_denied(result: int, enforcer: Backend, told: bool) -> None:
    scope = compile_ruleset([document("p", SHADOW_FILE)]).scope(container())
    verdict = scope.judge(opened("/etc/shadow", result=result, enforcer=enforcer))
    assert verdict.tell is told
    assert (verdict.action is Action.BLOCK) is told


@pytest.mark.parametrize("posture", ["audit", "block"])
def test_a_denial_by_somebody_else_is_not_told_as_a_posture(posture: Any) -> None:
    allow = {"action": "Allow", "file": {"matchPaths": [{"path": "/a"}]}}
    scope = compile_ruleset([document("p", allow)], PostureSettings(file=posture)).scope(container())
    assert scope.judge(opened("/b")).tell
    assert not scope.judge(opened("/b", result=-errno.EACCES)).tell
    assert scope.judge(opened("/b", result=-errno.EACCES, enforcer=Backend.APPARMOR)).tell


def test_attributes_travel_with_the_verdict() -> None:
    spec = {"severity": 7, "tags": ["A"], "message": "no", "nodeSelector": {"matchLabels": {}}} | SHADOW_FILE
    verdict = (
        compile_ruleset([document("h", spec, kind="KubeArmorHostPolicy")]).scope(HOST).judge(opened("/etc/shadow"))
    )
    assert (verdict.severity, verdict.tags, verdict.message, verdict.host) == (7, ("A",), "no", True)
    assert verdict.rule is not None
    assert verdict.rule.position == "spec.file.matchPaths[0]"


def test_host_and_container_policies_do_not_mix() -> None:
    host = document("h", {"nodeSelector": {"matchLabels": {}}} | SHADOW_FILE, kind="KubeArmorHostPolicy")
    ruleset = compile_ruleset([host, document("p", SHADOW_FILE)])
    assert ruleset.scope(HOST).policies == ("KubeArmorHostPolicy//h",)
    assert ruleset.scope(container()).policies == ("KubeArmorPolicy/demo/p",)


def test_host_policies_hold_for_a_container_that_nobody_confirms() -> None:
    """Each is judged by itself: an Allow for containers never loosens what the host's policies say."""
    secret = {"file": {"matchPaths": [{"path": "/secret"}]}, "action": "Block"}
    free = {"file": {"matchPaths": [{"path": "/secret"}, {"path": "/other"}]}, "action": "Allow"}
    host = document("h", {"nodeSelector": {"matchLabels": {}}} | secret, kind="KubeArmorHostPolicy")
    ruleset = compile_ruleset([host, document("p", free)])
    doubtful = ruleset.scope(container(confirmed=False))
    assert ruleset.scope(container(confirmed=False)) is doubtful
    assert set(doubtful.policies) == {"KubeArmorHostPolicy//h", "KubeArmorPolicy/demo/p"}
    opened = Behaviour(operation=Operation.OPEN, resource="/secret", executable="/bin/cat")
    assert ruleset.scope(container()).judge(opened).action is Action.ALLOW
    verdict = doubtful.judge(opened)
    assert (verdict.action, verdict.rule and verdict.rule.policy) == (Action.BLOCK, "h")
    elsewhere = msgspec.structs.replace(opened, resource="/x")
    assert doubtful.judge(elsewhere).policy == ruleset.scope(container()).judge(elsewhere).policy
    assert doubtful.watched >= ruleset.scope(HOST).watched


def test_audited_workloads_and_policies_say_so() -> None:
    ruleset = compile_ruleset([document("p", SHADOW_FILE)])
    audited = ruleset.scope(container(annotations={"kubearmor-policy": "audited"}))
    assert audited.mode is Mode.AUDITED
    verdict = audited.judge(opened("/etc/shadow"))
    assert (verdict.action, verdict.mode, verdict.tell) == (Action.BLOCK, Mode.AUDITED, True)
    assert ruleset.scope(container()).judge(opened("/etc/shadow")).mode is Mode.ENFORCE


def test_shadow_policies_say_what_would_have_happened() -> None:
    ghost = document("ghost", SHADOW_FILE, annotations={"hauberk.io/mode": "shadow"})
    watch = document("watch", {"file": {"action": "Audit", "matchDirectories": [{"dir": "/etc/"}]}})
    scope = compile_ruleset([ghost, watch]).scope(container())
    verdict = scope.judge(opened("/etc/shadow"))
    assert (verdict.action, verdict.policy, verdict.mode) == (Action.AUDIT, "watch", Mode.ENFORCE)
    (shadow,) = verdict.shadow
    assert (shadow.action, shadow.policy, shadow.mode) == (Action.BLOCK, "ghost", Mode.SHADOW)
    assert scope.judge(opened("/etc/hosts")).shadow == ()


def test_a_shadow_that_an_enforced_rule_outranks_would_not_have_happened() -> None:
    ghost = document(
        "ghost", {"file": {"matchDirectories": [{"dir": "/etc/"}]}}, annotations={"hauberk.io/mode": "shadow"}
    )
    allow = document("allow", {"action": "Allow", "file": {"matchPaths": [{"path": "/etc/shadow"}]}})
    assert compile_ruleset([ghost, allow]).scope(container()).judge(opened("/etc/shadow")).shadow == ()


def beside(name: str, mode: str, spec: dict[str, Any], **more: Any) -> PolicyDocument:
    return document(name, spec, annotations={"hauberk.io/mode": mode}, **more)


def test_what_shadows_and_baselines_of_both_sides_say_of_a_container_that_nobody_confirms() -> None:
    known = {"file": {"matchPaths": [{"path": "/known"}]}, "action": "Allow"}
    nodes: dict[str, Any] = {"nodeSelector": {"matchLabels": {}}}
    for action in ("Block", "Audit"):
        loud = document("loud", {"action": action, **SHADOW_FILE})
        host = [
            beside("host-ghost", "shadow", nodes | SHADOW_FILE, kind="KubeArmorHostPolicy"),
            beside("host-drift", "baseline", nodes | known, kind="KubeArmorHostPolicy"),
        ]
        own = [beside("drift", "baseline", known), beside("ghost", "shadow", SHADOW_FILE)]
        scope = compile_ruleset([loud, *own, *host]).scope(container(confirmed=False))
        verdict = scope.judge(opened("/etc/shadow"))
        assert (verdict.policy, verdict.action.value) == ("loud", action)
        said = [(one.policy, one.mode.value) for one in verdict.shadow]
        assert ("drift", "baseline") in said
        assert said[-2:] == [("host-ghost", "shadow"), ("host-drift", "baseline")]


@pytest.mark.parametrize("mode", ["shadow", "audited", "baseline"])
def test_policies_beside_the_enforced_ones_are_asked_with_the_arguments(mode: str) -> None:
    rule = {"process": {"matchPaths": [{"path": "/bin/ls", "allowedArgs": ["-l"]}]}, "action": "Allow"}
    annotations = {"kubearmor-policy" if mode == "audited" else "hauberk.io/mode": mode}
    scope = compile_ruleset([document("p", rule, annotations=annotations)]).scope(container())
    behaviour = Behaviour(operation=Operation.EXEC, resource="/bin/ls")
    assert scope.judge(behaviour).needs_arguments
    assert not any(one.tell for one in scope.judge(behaviour, ("ls", "-l")).shadow)
    assert any(one.tell for one in scope.judge(behaviour, ("ls", "-R")).shadow) == (mode != "audited")
    assert not scope.judge(behaviour, ("ls", "-l")).needs_arguments


def test_needs_arguments_until_they_are_known() -> None:
    spec = {"process": {"matchPaths": [{"path": "/bin/ls", "allowedArgs": ["-l"]}]}}
    scope = compile_ruleset([document("p", spec)]).scope(container())
    behaviour = Behaviour(operation=Operation.EXEC, resource="/bin/ls")
    assert scope.judge(behaviour).needs_arguments
    assert scope.judge(behaviour, ("ls", "-l")) == msgspec.structs.replace(scope.judge(behaviour, ("x", "-l")))
    assert scope.judge(behaviour, ("ls", "-l")).action is Action.ALLOW
    assert scope.judge(behaviour, ("ls", "-R")).action is Action.BLOCK
    assert not scope.judge(Behaviour(operation=Operation.EXEC, resource="/bin/cat")).needs_arguments


def test_symlinks_hold_for_the_link_and_what_it_points_to() -> None:
    spec = {"process": {"matchPaths": [{"path": "/bin/sh"}], "matchDirectories": [{"dir": "/sbin/"}]}}
    ruleset = compile_ruleset([document("p", spec)])
    links = {"/bin/sh": "/usr/bin/dash", "/bin/": "/usr/bin/", "/sbin/": "/usr/sbin/"}
    scope = ruleset.scope(container(links=links))

    def blocked(scope: Scope, path: str) -> bool:
        return scope.judge(Behaviour(operation=Operation.EXEC, resource=path)).action is Action.BLOCK

    assert [blocked(scope, path) for path in ("/bin/sh", "/usr/bin/dash", "/usr/sbin/ip", "/usr/bin/ls")] == [True, True, True, False]  # fmt: skip
    assert not blocked(ruleset.scope(container()), "/usr/bin/dash")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {Class.PROCESS, Class.SYSCALL}),
        ({"namespace_annotations": {"kubearmor-visibility": "file, network"}}, {Class.FILE, Class.NETWORK}),
        (
            {
                "namespace_annotations": {"kubearmor-visibility": "file"},
                "annotations": {"kubearmor-visibility": "none"},
            },
            set(),
        ),
        ({"annotations": {"kubearmor-visibility": "dns,capabilities"}}, {Class.CAPABILITIES}),
        ({"namespace": "kube-system"}, set()),
        # What is not understood makes nothing dark: the setting stays, beside the words that are.
        ({"namespace_annotations": {"kubearmor-visibility": "proces"}}, {Class.PROCESS, Class.SYSCALL}),
        (
            {
                "annotations": {"kubearmor-visibility": "fle"},
                "namespace_annotations": {"kubearmor-visibility": "network"},
            },
            {Class.NETWORK},
        ),
        ({"annotations": {"kubearmor-visibility": "File,netwrk"}}, {Class.PROCESS, Class.SYSCALL, Class.FILE}),
        ({"annotations": {"kubearmor-visibility": "none,netwrk"}}, set()),
        ({"annotations": {"kubearmor-visibility": "file,ima"}}, {Class.FILE}),
    ],
)
def test_visibility_comes_from_the_innermost_annotation(fields: dict[str, Any], expected: set[Class]) -> None:
    ruleset = compile_ruleset([], PostureSettings(visibility=("process",)))
    assert ruleset.scope(container(**fields)).visible == expected


@pytest.mark.parametrize(
    ("said", "posture"), [("block", "block"), ("Block", "block"), ("Audit", "audit"), ("blok", "allow"), ("", "allow")]
)
def test_a_posture_is_taken_in_any_case_and_a_slip_of_the_pen_leaves_the_setting(said: str, posture: str) -> None:
    ruleset = compile_ruleset([], PostureSettings(file="allow"))
    scope = ruleset.scope(container(namespace_annotations={"kubearmor-file-posture": said}))
    assert scope.postures["file"] == posture


def test_rules_are_watched_whatever_is_visible() -> None:
    spec = {"file": {"action": "Audit", "matchPaths": [{"path": "/a"}]}}
    scope = compile_ruleset([document("p", spec)], PostureSettings(visibility=("none",))).scope(container())
    assert scope.visible == frozenset()
    assert scope.watched == {Class.FILE}
    assert scope.judge(opened("/a")).tell


def test_a_rule_that_does_not_compile_is_named_and_left_out() -> None:
    ruleset = compile_ruleset([document("p", SHADOW_FILE)])
    policy = ruleset.policies[0]
    rule = policy.rules[0]
    from schemas.rules import Match

    broken = msgspec.structs.replace(rule, match=Match.PATTERN, value="/[", index=1)
    again = Ruleset([msgspec.structs.replace(policy, rules=(rule, broken))], PostureSettings(), "x")
    ((ref, text),) = again.problems
    assert ref.index == 1
    assert "closing `]`" in text
    assert again.scope(container()).judge(opened("/etc/shadow")).action is Action.BLOCK


def test_every_operation_gets_a_verdict() -> None:
    presets = [
        {"name": name, "action": "Block"}
        for name in ("filelessExec", "anonymousMapExec", "protectEnv", "exec", "protectProc")
    ]
    spec = {
        "presets": presets,
        "network": {"matchProtocols": [{"protocol": "all"}], "matchDNSQueries": [{"domain": "x.org"}]},
        "capabilities": {"matchCapabilities": [{"capability": "net_raw"}]},
        "syscalls": {"matchSyscalls": [{"syscall": ["ptrace"]}], "matchPaths": [{"path": "/a"}]},
    } | SHADOW_FILE
    scope = compile_ruleset([document("p", spec)]).scope(container())
    for operation in Operation:
        for path in ("", "/", "a", "/a//b", "/\udcff", "/" + "x/" * 3000):
            behaviour = Behaviour(
                operation=operation, resource=path, detail=path, address=path, family=999, socket_type=15
            )
            assert scope.judge(behaviour).action in Action


@pytest.mark.parametrize("name", ["protectEnv", "protectProc"])
@pytest.mark.parametrize(("request_", "action"), [(16, Action.BLOCK), (0x4206, Action.BLOCK), (0, Action.ALLOW)])
def test_who_attaches_to_a_process_reads_its_environment(name: str, request_: int, action: Action) -> None:
    """PTRACE_ATTACH and PTRACE_SEIZE; a process that lets itself be traced (PTRACE_TRACEME, 0) gives it away."""
    scope = compile_ruleset([document("p", {"presets": [{"name": name, "action": "Block"}]})]).scope(container())
    assert scope.judge(Behaviour(operation=Operation.PTRACE, args=(request_, 42))).action is action


def test_cluster_policies_reach_every_namespace_they_name() -> None:
    spec = {
        "selector": {"matchExpressions": [{"key": "namespace", "operator": "NotIn", "values": ["prod"]}]}
    } | SHADOW_FILE
    ruleset = compile_ruleset([document("c", spec, kind="KubeArmorClusterPolicy"), document("p", SHADOW_FILE)])
    assert ruleset.scope(container(namespace="later")).policies == ("KubeArmorClusterPolicy//c",)
    assert ruleset.scope(container(namespace="prod")).policies == ()
    assert len(ruleset.scope(container()).policies) == 2


def test_containers_outside_kubernetes_are_selected_by_label() -> None:
    ruleset = compile_ruleset([document("p", SHADOW_FILE), document("q", SHADOW_FILE, namespace="default")])
    outside = container(namespace="container_namespace", orchestrated=False)
    assert len(ruleset.scope(outside).policies) == 2
