# SPDX-License-Identifier: Apache-2.0
"""The scope of a pod's cgroup: the Block rules on paths that any container of the pod is under, and nothing that a start needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from enforcers.plan import Planner, PlanSettings
from policy.ruleset import PostureSettings, compile_ruleset
from schemas.verdict import Action

SIGNAL = "{hauberk.io/signal: enabled}"
SHADOW = "file: {matchPaths: [{path: /etc/shadow}]}, action: Block"
UID = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def pod(identity: Any) -> Any:
    """Containers of one pod, whose cgroup has id 50."""

    def make(number: int, **changes: Any) -> Any:
        box = SimpleNamespace(id=100 + number, path=f"/kubepods/pod{UID}/{number}")
        words = {"pod_uid": UID, "pod_cgroup": 50, "container_name": f"c{number}", "orchestrated": True}
        return identity(box, **(words | changes))

    return make


def of_pod(
    policies: Any, text: str, identities: list[Any], postures: PostureSettings | None = None, **settings: Any
) -> Any:
    planner = Planner(
        compile_ruleset(policies(text), postures or PostureSettings()), PlanSettings(**({"pods": True} | settings))
    )
    return [scope for scope in planner.plan("n1", identities, 1).scopes if scope.uid.startswith("pod-")]


def test_the_next_container_of_a_pod_is_under_its_block_rules(policies: Any, ksp: Any, pod: Any) -> None:
    (scope,) = of_pod(policies, ksp("a", SHADOW, SIGNAL), [pod(1), pod(2)])
    assert (scope.uid, scope.cgroups, scope.cgroup_path) == (f"pod-{UID}", (50,), f"/kubepods/pod{UID}")
    assert [(rule.value, rule.action) for rule in scope.paths] == [("/etc/shadow", Action.BLOCK)]
    assert scope.signal


def test_the_limit_of_a_rule_that_allows_denies_from_birth_too(policies: Any, ksp: Any, pod: Any) -> None:
    limited = "file: {matchPaths: [{path: /etc/shadow, readOnly: true}]}, action: Allow"
    (scope,) = of_pod(policies, ksp("a", limited, SIGNAL), [pod(1)])
    assert [(rule.value, rule.read_only) for rule in scope.paths] == [("/etc/shadow", True)]


def test_it_is_off_unless_asked_for(policies: Any, ksp: Any, pod: Any) -> None:
    assert not of_pod(policies, ksp("a", SHADOW, SIGNAL), [pod(1)], pods=False)


def test_a_posture_and_network_rules_wait_until_the_container_is_known(policies: Any, ksp: Any, pod: Any) -> None:
    allow = "file: {matchPaths: [{path: /etc/hosts}]}, network: {matchProtocols: [{protocol: tcp}]}, action: Allow"
    blocking = PostureSettings(file="block", network="block")
    assert not of_pod(policies, ksp("a", allow, SIGNAL), [pod(1)], blocking)
    (scope,) = of_pod(policies, ksp("a", allow, SIGNAL) + ksp("b", SHADOW, SIGNAL), [pod(1)], blocking)
    assert (scope.network, scope.posture, scope.whitelist) == ((), (), ())
    assert {rule.value: rule.action for rule in scope.paths} == {
        "/etc/shadow": Action.BLOCK,
        "/etc/hosts": Action.ALLOW,
    }


def test_rules_of_one_container_are_not_its_neighbours(policies: Any, ksp: Any, pod: Any) -> None:
    named = ksp("a", SHADOW, SIGNAL).replace("{app: web}", '{app: web, kubearmor.io/container.name: "[c1]"}')
    assert not of_pod(policies, named, [pod(1), pod(2)])


@pytest.mark.parametrize("changes", [{"ended": 1.0}, {"complete": False}, {"confirmed": False}, {"pod_cgroup": 0}])
def test_only_what_a_runtime_has_said_of_living_containers_counts(
    policies: Any, ksp: Any, pod: Any, changes: dict[str, Any]
) -> None:
    assert not of_pod(policies, ksp("a", SHADOW, SIGNAL), [pod(1, **changes)])


def test_links_are_those_that_its_containers_agree_on(policies: Any, ksp: Any, pod: Any) -> None:
    sh = "process: {matchPaths: [{path: /bin/sh}]}, action: Block"
    links = {"/bin/sh": "/usr/bin/dash"}
    (agreed,) = of_pod(policies, ksp("a", sh, SIGNAL), [pod(1, links=links), pod(2)])
    assert "/usr/bin/dash" in {rule.value for rule in agreed.paths}
    (differing,) = of_pod(
        policies, ksp("a", sh, SIGNAL), [pod(1, links=links), pod(2, links={"/bin/sh": "/bin/busybox"})]
    )
    assert "/usr/bin/dash" not in {rule.value for rule in differing.paths}
