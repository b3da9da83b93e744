# SPDX-License-Identifier: Apache-2.0
"""Plans: equal content, equal digest; fences around what keeps the node alive; a reason for everything left out."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from enforcers.plan import Planner, PlanSettings
from enforcers.protected import chosen
from policy.rules.lockout import EXECUTABLES
from policy.ruleset import PostureSettings, compile_ruleset
from schemas.enforcement import decode_plan, encode
from schemas.identity import Kind
from schemas.operations import Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action
from schemas.visibility import bits

ALL = bits(Class)
TCP = "network: {matchProtocols: [{protocol: tcp}]}, action: Block"
BIN = "process: {matchDirectories: [{dir: /usr/sbin/}]}, file: {matchPaths: [{path: /etc/shadow}]}, action: Block"
HSP = """---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: host, annotations: {{hauberk.io/signal: enabled}}}}
spec: {{nodeSelector: {{matchLabels: {{kubernetes.io/hostname: n1}}}}, {spec}}}
"""


def box(number: int) -> Any:
    return SimpleNamespace(id=100 + number, path=f"/docker/{number}")


@pytest.fixture
def host(identity: Any) -> Any:
    def make(path: str, number: int = 1, kind: Kind = Kind.HOST) -> Any:
        labels = {"kubernetes.io/hostname": "n1"}
        words = {"kind": kind, "labels": {}, "namespace": "", "node_labels": labels, "cgroup_path": path}
        return identity(box(number), **words)

    return make


def test_order_changes_nothing(policies: Any, ksp: Any, identity: Any) -> None:
    documents = policies(ksp("a", TCP) + ksp("b", BIN, "{hauberk.io/signal: enabled}") + ksp("c", TCP))
    identities = [identity(box(n)) for n in range(20)]
    digests = set()
    for seed in range(5):
        random.Random(seed).shuffle(documents)
        random.Random(seed).shuffle(identities)
        plan = Planner(compile_ruleset(documents)).plan("n1", identities, 7)
        digests.add(plan.digest)
        assert (plan.generation, len(plan.scopes)) == (7, 20)
        assert decode_plan(encode(plan)) == plan
    assert len(digests) == 1


def test_only_living_selected_containers_of_the_node(policies: Any, ksp: Any, identity: Any) -> None:
    identities = [
        identity(box(1)), identity(box(2), ended=1.0), identity(box(3), node="n2"), identity(box(4), labels={}),
    ]  # fmt: skip
    plan = Planner(compile_ruleset(policies(ksp("a", TCP)))).plan("n1", identities, 1)
    assert [scope.cgroups for scope in plan.scopes] == [(101,)]
    assert plan.policies == ("KubeArmorPolicy/shop/a",)


def test_a_reason_is_told_once_for_all_containers(policies: Any, ksp: Any, identity: Any) -> None:
    planner = Planner(compile_ruleset(policies(ksp("a", BIN + ", syscalls: {matchSyscalls: [{syscall: [clone]}]}"))))
    plan = planner.plan("n1", [identity(box(n)) for n in range(50)], 1)
    reasons = {one.ref.position.split(".")[1].split("[")[0]: one.reason for one in plan.refused}
    assert len(plan.refused) == 1
    assert "not watched" in reasons["syscalls"]


def test_a_host_policy_holds_in_chosen_cgroups_only(policies: Any, host: Any) -> None:
    ruleset = compile_ruleset(policies(HSP.format(spec=TCP)))
    identities = [host("/", 0, Kind.NODE), host("/user.slice/a.scope", 1), host("/system.slice/cron.service", 2),
                  host("/user.slice/ssh.service", 3)]  # fmt: skip
    assert Planner(ruleset).plan("n1", identities, 1).scopes == ()
    refused = Planner(ruleset).plan("n1", identities, 1).refused
    assert ["host_cgroups" in one.reason for one in refused] == [True]
    limited = HSP.format(spec="file: {matchPaths: [{path: /etc/shadow, readOnly: true}]}, action: Allow")
    refused = Planner(compile_ruleset(policies(limited))).plan("n1", identities, 1).refused
    assert ["host_cgroups" in one.reason for one in refused] == [True], "the limit of a rule that allows denies"
    plan = Planner(ruleset, PlanSettings(host_cgroups=("/user.slice/*", "/"))).plan("n1", identities, 1)
    assert [scope.cgroup_path for scope in plan.scopes] == ["/user.slice/a.scope"]
    assert plan.refused == ()  # held where it was asked for: nobody calls it refused


def test_a_name_takes_no_chosen_cgroup_out_of_the_hosts_rules(policies: Any, host: Any) -> None:
    ruleset = compile_ruleset(policies(HSP.format(spec=TCP)))
    planner = Planner(ruleset, PlanSettings(host_cgroups=("/user.slice/*",)))
    named = host("/user.slice/docker-x.scope", 1, Kind.CONTAINER)
    confirmed = planner.plan("n1", [host("/", 0, Kind.NODE), named], 1)
    assert not any(scope.network for scope in confirmed.scopes)
    doubtful = msgspec.structs.replace(named, confirmed=False)
    (scope,) = planner.plan("n1", [host("/", 0, Kind.NODE), doubtful], 1).scopes
    assert scope.cgroup_path == "/user.slice/docker-x.scope"
    assert {rule.ref.policy for rule in scope.network} >= {"host"}
    waiting = msgspec.structs.replace(doubtful, complete=False)
    assert not any(one.network for one in planner.plan("n1", [host("/", 0, Kind.NODE), waiting], 1).scopes)


def test_protected_services_need_their_name_or_the_override() -> None:
    for path in ("/system.slice/ssh.service", "/system.slice/containerd.service", "/init.scope", "/kubelet.service/x"):
        assert not chosen(path, ("*",), False)
        assert chosen(path, ("*",), True)
        assert chosen(path, (path,), False)
    assert chosen("/system.slice/cron.service", ("/system.slice/*",), False)
    assert not chosen("/", ("*", "/"), True)


def test_protected_executables_are_excepted_from_broad_rules(policies: Any, host: Any) -> None:
    settings = PlanSettings(host_cgroups=("/user.slice/*",))
    documents = policies(HSP.format(spec=f"{BIN.replace(', action: Block', '')}, {TCP}"))
    (scope,) = Planner(compile_ruleset(documents), settings).plan("n1", [host("/user.slice/a")], 1).scopes
    first = scope.paths[: 2 * len(EXECUTABLES)]
    assert {rule.action for rule in first} == {Action.ALLOW}
    assert ("/usr/sbin/sshd", Class.PROCESS) in {(rule.value, rule.cls) for rule in first}
    assert ("/", "/usr/sbin/sshd", Class.FILE) in {(rule.value, rule.source, rule.cls) for rule in first}
    assert {rule.source for rule in scope.network if rule.action is Action.ALLOW} == set(EXECUTABLES)
    overridden = PlanSettings(host_cgroups=("/user.slice/*",), override_protected=True)
    (bare,) = Planner(compile_ruleset(documents), overridden).plan("n1", [host("/user.slice/a")], 1).scopes
    assert not [rule for rule in (*bare.paths, *bare.network) if rule.action is Action.ALLOW]


def test_what_is_named_is_not_protected(policies: Any, host: Any) -> None:
    settings = PlanSettings(host_cgroups=("/user.slice/*",))
    documents = policies(HSP.format(spec="process: {matchPaths: [{path: /usr/bin/kubelet}]}, action: Block"))
    (scope,) = Planner(compile_ruleset(documents), settings).plan("n1", [host("/user.slice/a")], 1).scopes
    mine = [rule for rule in scope.paths if rule.value == "/usr/bin/kubelet"]
    assert [rule.action for rule in mine] == [Action.BLOCK]


def test_what_locks_the_operator_out_is_refused_unless_forced(policies: Any, host: Any) -> None:
    settings = PlanSettings(host_cgroups=("/*",))
    spec = "process: {matchPaths: [{path: /usr/sbin/sshd}, {path: /usr/bin/nc}]}, action: Block"
    identities = [host("/", 0, Kind.NODE), host("/user.slice/a")]
    plan = Planner(compile_ruleset(policies(HSP.format(spec=spec))), settings).plan("n1", identities, 1)
    assert [(one.code, one.ref.position) for one in plan.refused] == [
        (RefusalCode.LOCKOUT, "spec.process.matchPaths[0]")
    ]
    assert "lock the operator out" in plan.refused[0].reason
    (scope,) = plan.scopes
    assert {rule.value for rule in scope.paths if rule.action is Action.BLOCK} == {"/usr/bin/nc"}
    forced = HSP.replace("hauberk.io/signal: enabled", "hauberk.io/signal: enabled, hauberk.io/force: enabled")
    plan = Planner(compile_ruleset(policies(forced.format(spec=spec))), settings).plan("n1", identities, 1)
    assert plan.refused == ()
    assert "/usr/sbin/sshd" in {rule.value for rule in plan.scopes[0].paths if rule.action is Action.BLOCK}


def test_a_glob_stops_below_what_holds_containers_or_protected_services(
    policies: Any, host: Any, identity: Any
) -> None:
    planner = Planner(compile_ruleset(policies(HSP.format(spec=TCP))), PlanSettings(host_cgroups=("/*",)))
    docker = identity(box(6), labels={}, cgroup_path="/system.slice/docker-x.scope")
    cron, ssh = host("/system.slice/cron.service", 1), host("/system.slice/ssh.service", 2)
    slices = [host("/system.slice", 3), host("/user.slice", 4)]
    plan = planner.plan("n1", [docker, cron, ssh, *slices], 1)
    # What lies in a cgroup is held like it from its birth: a chosen /system.slice would hold sshd and containers.
    assert {one.cgroup_path for one in plan.scopes} == {"/system.slice/cron.service", "/user.slice"}
    assert "/system.slice" in {one.cgroup_path for one in planner.plan("n1", [cron, *slices], 1).scopes}


@pytest.mark.parametrize("name", ["x", "sshd.service", "x/kubelet.service", "docker-x.scope"])
def test_a_cgroup_that_a_user_makes_takes_no_rule_off_him(policies: Any, host: Any, name: str) -> None:
    """systemd gives the cgroups below user@UID.service to that user, who names them as he likes."""
    user = "/user.slice/user-1000.slice"
    kind = Kind.CONTAINER if name.startswith("docker") else Kind.HOST
    mine = msgspec.structs.replace(host(f"{user}/user@1000.service/{name}", 2, kind), confirmed=kind is Kind.HOST)
    for patterns in (("/user.slice/*",), (user,)):
        planner = Planner(compile_ruleset(policies(HSP.format(spec=TCP))), PlanSettings(host_cgroups=patterns))
        held = {one.cgroup_path: bool(one.network) for one in planner.plan("n1", [host(user, 1), mine], 1).scopes}
        assert held.get(user)
        # A cgroup without a scope has that of the nearest above it.
        assert held.get(mine.cgroup_path, True)


def test_who_is_not_chosen_inside_of_what_is_has_a_scope_without_rules(policies: Any, host: Any, identity: Any) -> None:
    settings = PlanSettings(host_cgroups=("/system.slice",))
    planner = Planner(compile_ruleset(policies(HSP.format(spec=TCP))), settings)
    docker = identity(box(6), labels={}, cgroup_path="/system.slice/docker-x.scope")
    plan = planner.plan("n1", [docker, host("/system.slice/ssh.service", 2), host("/system.slice", 3)], 1)
    ruled = {one.cgroup_path: bool(one.network) for one in plan.scopes}
    assert ruled == {
        "/system.slice": True, "/system.slice/ssh.service": False, "/system.slice/docker-x.scope": False,
    }  # fmt: skip
    assert all(one.visibility >= 0 for one in plan.scopes)


def test_containers_get_no_exceptions(policies: Any, ksp: Any, identity: Any) -> None:
    documents = policies(ksp("a", BIN, "{hauberk.io/signal: enabled}"))
    (scope,) = Planner(compile_ruleset(documents)).plan("n1", [identity(box(1))], 1).scopes
    assert {rule.action for rule in scope.paths} == {Action.BLOCK}


def machine(identity: Any) -> Any:
    return identity(box(0), kind=Kind.NODE, namespace="", labels={}, cgroup_path="/")


def test_scopes_for_visibility_only_where_it_differs(identity: Any) -> None:
    off = PostureSettings(host_visibility=("none",))
    boxes = [identity(box(n)) for n in range(1, 4)]
    own = identity(box(9), annotations={"kubearmor-visibility": "file"})
    plan = Planner(compile_ruleset([])).plan("n1", [machine(identity), *boxes, own], 1)
    assert (plan.host_visibility, plan.new_visibility, plan.host_cgroups) == (ALL, ALL, ())
    assert [(one.cgroups, one.visibility) for one in plan.scopes] == [((109,), 1 << Class.FILE)]
    service = identity(box(7), kind=Kind.HOST, namespace="", labels={})
    unsure = identity(box(8), kind=Kind.HOST, namespace="", labels={}, complete=False)
    plan = Planner(compile_ruleset([], off)).plan("n1", [machine(identity), *boxes, service, unsure], 1)
    assert (plan.host_visibility, plan.new_visibility, plan.host_cgroups) == (0, ALL, (107,))
    assert [one.visibility for one in plan.scopes] == [ALL] * 3
    # The node is not known yet: its kernel keeps what the sensor was told.
    plan = Planner(compile_ruleset([], off)).plan("n1", boxes, 1)
    assert (plan.host_visibility, plan.new_visibility) == (-1, -1)


def test_who_is_not_described_yet_is_watched_for_every_rule(policies: Any, ksp: Any, identity: Any) -> None:
    none = PostureSettings(visibility=("none",), host_visibility=("none",))
    ruleset = compile_ruleset(policies(ksp("a", "file: {matchPaths: [{path: /etc/shadow}]}, action: Audit")), none)
    stranger = identity(box(1), labels={}, complete=False)
    plan = Planner(ruleset).plan("n1", [machine(identity), stranger, identity(box(2), labels={})], 1)
    assert {one.cgroups: one.visibility for one in plan.scopes} == {(101,): 1 << Class.FILE, (102,): 0}
    assert plan.new_visibility == 1 << Class.FILE


def test_what_is_told_is_never_more_than_what_is_watched(policies: Any, ksp: Any, identity: Any) -> None:
    words = ("process", "file", "network", "capabilities", "dns", "none")
    ruleset = compile_ruleset(policies(ksp("a", TCP)), PostureSettings(visibility=("process",)))
    digests = set()
    for word in words:
        who = identity(box(1), annotations={"kubearmor-visibility": word})
        plan = Planner(ruleset).plan("n1", [machine(identity), who], 1)
        (scope,) = plan.scopes
        assert bits(ruleset.scope(who).visible) & ~scope.visibility == 0
        assert scope.visibility >> Class.NETWORK & 1  # the rule asks for it
        digests.add((scope.visibility, plan.digest))
    assert len({digest for _, digest in digests}) == len({visible for visible, _ in digests}) == 3
