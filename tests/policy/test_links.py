# SPDX-License-Identifier: Apache-2.0
"""Rules on links: the link, its real path, directories and globs below links, sources, and programs that are many programs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.ruleset import PostureSettings, Ruleset, compile_ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.links import asked
from schemas.operations import Access, Backend, Operation
from schemas.verdict import Action

DEBIAN = {"/bin/sh": "/usr/bin/dash", "/bin/": "/usr/bin/", "/sbin/": "/usr/sbin/"}
ALPINE = {"/bin/wget": "/bin/busybox", "/bin/sh": "/bin/busybox"}


def ruleset(spec: dict[str, Any], action: str = "Block", **settings: Any) -> Ruleset:
    text = yaml.safe_dump(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": "p", "namespace": "demo", "annotations": {"hauberk.io/signal": "enabled"}},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": action} | spec,
        }
    )
    parsed = parse(text, "p")
    assert parsed.ok, parsed.diagnostics
    return compile_ruleset(parsed.policies, PostureSettings(**settings))


def container(links: dict[str, str], uid: str = "u1") -> Identity:
    return Identity(kind=Kind.CONTAINER, node="n1", uid=uid, namespace="demo", container_name="c", labels={"app": "web"},
                    orchestrated=True, links=links)  # fmt: skip


def ran(path: str, parent: str = "/usr/bin/bash") -> Behaviour:
    return Behaviour(operation=Operation.EXEC, resource=path, executable=path, parent=parent)


def paths(*values: str) -> dict[str, Any]:
    return {"process": {"matchPaths": [{"path": value} for value in values]}}


def test_a_rule_on_a_link_holds_for_the_link_its_place_and_its_target() -> None:
    scope = ruleset(paths("/bin/sh")).scope(container(DEBIAN))
    for path in ("/bin/sh", "/usr/bin/sh", "/usr/bin/dash"):
        verdict = scope.judge(ran(path))
        assert (verdict.action, verdict.rule and verdict.rule.position) == (Action.BLOCK, "spec.process.matchPaths[0]")
    assert scope.judge(ran("/usr/bin/bash")).action is Action.ALLOW


def test_what_is_not_there_yet_is_looked_for_in_the_real_directory() -> None:
    scope = ruleset({"file": {"matchPaths": [{"path": "/bin/evil"}]}}).scope(container(DEBIAN))
    made = Behaviour(
        operation=Operation.CREATE, access=Access.CREATE, resource="/usr/bin/evil", executable="/usr/bin/cp"
    )
    assert scope.judge(made).action is Action.BLOCK


@pytest.mark.parametrize("pattern", ["/bin/*sh", "/bin/{ba,da}sh", "/bin/d?sh", "/bin/**"])
def test_globs_below_a_linked_directory(pattern: str) -> None:
    scope = ruleset({"process": {"matchPatterns": [{"pattern": pattern}]}}).scope(container(DEBIAN))
    assert scope.judge(ran("/usr/bin/dash")).action is Action.BLOCK
    assert scope.judge(ran("/opt/dash")).action is Action.ALLOW


def test_directories_and_their_sources() -> None:
    entry = {"dir": "/sbin/", "recursive": True, "fromSource": [{"path": "/bin/sh"}]}
    scope = ruleset({"process": {"matchDirectories": [entry]}}).scope(container(DEBIAN))
    assert scope.judge(ran("/usr/sbin/ip", "/usr/bin/dash")).action is Action.BLOCK
    assert scope.judge(ran("/usr/sbin/ip", "/usr/bin/bash")).action is Action.ALLOW
    assert scope.judge(ran("/sbin/ip", "/bin/sh")).action is Action.BLOCK


def test_a_link_to_the_root_widens_nothing() -> None:
    spec = {"process": {"matchDirectories": [{"dir": "/data/", "recursive": True}]}}
    scope = ruleset(spec).scope(container({"/data/": "/"}))
    assert scope.judge(ran("/usr/bin/dash")).action is Action.ALLOW
    assert scope.judge(ran("/data/x")).action is Action.BLOCK


def test_a_program_that_is_many_is_told_by_the_name_it_was_called_with() -> None:
    scope = ruleset(paths("/bin/wget")).scope(container(ALPINE))
    busybox = ran("/bin/busybox")
    first = scope.judge(busybox)
    assert (first.action, first.needs_arguments) == (Action.ALLOW, True)
    assert scope.judge(busybox, ("wget", "http://x")).action is Action.BLOCK
    assert scope.judge(busybox, ("/bin/wget", "http://x")).action is Action.BLOCK
    assert scope.judge(busybox, ("busybox", "wget", "http://x")).action is Action.BLOCK
    assert scope.judge(busybox, ("sh", "-c", "wget")).action is Action.ALLOW
    assert scope.judge(ran("/bin/wget")).action is Action.BLOCK


def test_no_plan_stops_all_of_a_program_that_is_many() -> None:
    identity = container(ALPINE)
    plan, refused = plan_scope(ruleset(paths("/bin/wget")).scope(identity), identity, backends=(Backend.SIGNAL,))
    assert [rule.value for rule in plan.paths] == ["/bin/wget"]
    assert any("many programs" in one.reason for one in refused)


def test_a_posture_that_would_deny_an_allowed_name_is_not_held() -> None:
    identity = container(ALPINE)
    compiled = ruleset(paths("/bin/sh", "/bin/wget"), "Allow", file="block")
    plan, refused = plan_scope(compiled.scope(identity), identity, backends=(Backend.SIGNAL,))
    assert plan.posture == ()
    assert any("DefaultPosture" in one.ref.policy for one in refused)
    judged = compiled.scope(identity)
    assert judged.judge(ran("/bin/busybox"), ("sh",)).action is Action.ALLOW
    assert judged.judge(ran("/bin/busybox"), ("nc",)).action is Action.BLOCK


def test_the_planner_plans_for_the_real_path() -> None:
    identity = container(DEBIAN)
    plan, _ = plan_scope(ruleset(paths("/bin/sh")).scope(identity), identity, backends=(Backend.SIGNAL,))
    assert {rule.value for rule in plan.paths} == {"/bin/sh", "/usr/bin/sh", "/usr/bin/dash"}


def test_scopes_are_shared_by_links_that_matter() -> None:
    compiled = ruleset(paths("/bin/sh"))
    one = compiled.scope(container(DEBIAN, "u1"))
    assert compiled.scope(container(DEBIAN | {"/lib/": "/usr/lib/"}, "u2")) is one
    assert compiled.scope(container(ALPINE, "u3")) is not one
    assert compiled.scope(container({}, "u4")) is not one


NAMES = st.lists(st.sampled_from(["bin", "sh", "a", "b"]), min_size=1, max_size=4).map(
    lambda names: "/" + "/".join(names)
)


@given(NAMES, NAMES, NAMES, st.sampled_from(["Block", "Audit"]))
def test_a_rule_on_a_link_is_a_rule_on_both(link: str, real: str, seen: str, action: str) -> None:
    one = ruleset(paths(link), action).scope(container({link: real}))
    both = ruleset(paths(*dict.fromkeys((link, real))), action).scope(container({}))
    assert one.judge(ran(seen)).action is both.judge(ran(seen)).action


@given(NAMES, st.dictionaries(NAMES, NAMES, max_size=4))
def test_links_that_no_rule_names_change_nothing(seen: str, links: dict[str, str]) -> None:
    compiled = ruleset(paths("/bin/sh"))
    other = {key: real for key, real in links.items() if key not in asked("/bin/sh")}
    assert compiled.scope(container(other)) is compiled.scope(container({}))
