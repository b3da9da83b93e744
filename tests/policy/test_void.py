# SPDX-License-Identifier: Apache-2.0
"""Rules that the API takes and nobody can mean: they never match, and the compiler, lint, explain and the plan all say so."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.ruleset import Ruleset, compile_ruleset
from policy.tools.explain import explain_event, explain_policy
from policy.tools.lint import lint
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.verdict import Action

CONTAINER = Identity(kind=Kind.CONTAINER, node="n", uid="u", namespace="shop", labels={"app": ""}, orchestrated=True, cgroups=(7,))  # fmt: skip
HOST = Identity(kind=Kind.NODE, node="n", uid="n")
VOID: dict[str, tuple[str, dict[str, Any]]] = {
    "preset": ("KubeArmorPolicy", {"presets": [{"name": "everything"}]}),
    "pattern": ("KubeArmorPolicy", {"file": {"matchPatterns": [{"pattern": "/{a"}]}}),
    "empty pattern": ("KubeArmorPolicy", {"process": {"matchPatterns": [{"pattern": ""}]}}),
    "domain": ("KubeArmorPolicy", {"network": {"matchDNSQueries": [{"domain": "http://a.b/c"}]}}),
    "empty domain": ("KubeArmorPolicy", {"network": {"matchDNSQueries": [{"domain": ""}]}}),
    "protocol": ("KubeArmorPolicy", {"network": {"matchProtocols": [{"protocol": "xxtcp"}]}}),
    "capability": ("KubeArmorPolicy", {"capabilities": {"matchCapabilities": [{"capability": "cap_net_raw"}]}}),
    "nothing named": ("KubeArmorPolicy", {"process": {"matchPaths": [{"severity": 3}]}}),
    "empty source": ("KubeArmorPolicy", {"file": {"matchPaths": [{"path": "/a", "fromSource": [{}]}]}}),
    "class": ("KubeArmorHostPolicy", {"device": {"matchDevice": [{"class": "STICK"}]}}),
    "network": ("KubeArmorNetworkPolicy", {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}]}),
    "port": ("KubeArmorNetworkPolicy", {"egress": [{"ports": [{"port": "70000"}]}]}),
    "range": ("KubeArmorNetworkPolicy", {"egress": [{"ports": [{"port": "90", "endPort": 80}]}]}),
    "half a quota": ("KubeArmorNetworkPolicy", {"egress": [{"limit": "2MB"}]}),
    "duration": ("KubeArmorNetworkPolicy", {"egress": [{"limit": "2MB", "duration": "soon"}]}),
}
BEHAVIOURS = [
    Behaviour(operation=Operation.EXEC, access=Access.EXEC, resource="/a", parent="/b"),
    Behaviour(operation=Operation.EXEC, access=Access.EXEC, resource="", parent="/b"),
    Behaviour(operation=Operation.OPEN, access=Access.READ, resource="/a", executable="/b"),
    Behaviour(operation=Operation.OPEN, access=Access.READ, resource="/{a", executable=""),
    Behaviour(operation=Operation.CONNECT, family=2, socket_type=1, protocol=6, address="10.0.0.1", port=80),
    Behaviour(operation=Operation.DNS, detail="a.b"),
    Behaviour(operation=Operation.CAPABLE, detail="net_raw"),
    Behaviour(operation=Operation.DEVICE, flags=0x030000),
]


def ruleset(kind: str, spec: dict[str, Any], action: str) -> Ruleset:
    selector = "selector" if kind == "KubeArmorPolicy" else "nodeSelector"
    text = yaml.safe_dump(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": kind,
            "metadata": {"name": "a", **({"namespace": "shop"} if selector == "selector" else {})},
            "spec": {selector: {}, "action": action, **spec},
        }
    )
    parsed = parse(text, "void.yaml")
    assert parsed.ok, [str(found) for found in parsed.diagnostics]
    assert any(found.level == "warning" for found in parsed.diagnostics)
    return compile_ruleset(parsed.policies)


@pytest.mark.parametrize("name", VOID)
def test_it_never_matches_and_everybody_says_so(name: str) -> None:
    kind, spec = VOID[name]
    known = ruleset(kind, spec, "Block")
    identity = CONTAINER if kind == "KubeArmorPolicy" else HOST
    scope = known.scope(identity)
    assert scope.members
    for behaviour in BEHAVIOURS:
        assert scope.judge(behaviour, ("x",)).action is Action.ALLOW
        explain_event(known, identity, behaviour, ("x",))
    assert len(known.problems) == 1
    assert "L100" in {finding.code for finding in lint(known)}
    (entry,) = explain_policy(known.policies[0])
    assert entry.problem
    assert all(why is not None and "can never match" in why for why in entry.backends.values())
    plan, refused = plan_scope(scope, identity)
    assert not plan.paths
    assert not plan.network
    assert all("can never match" in refusal.reason for refusal in refused)
    assert refused


@pytest.mark.parametrize("name", ["pattern", "protocol", "domain", "network", "nothing named"])
def test_an_allow_rule_that_matches_nothing_still_makes_a_whitelist(name: str) -> None:
    kind, spec = VOID[name]
    known = ruleset(kind, spec, "Allow")
    scope = known.scope(CONTAINER if kind == "KubeArmorPolicy" else HOST)
    assert len(scope.whitelist) == 1
    told = {scope.judge(behaviour, ("x",)).policy for behaviour in BEHAVIOURS}
    assert told == {None, "DefaultPosture"}


def test_of_a_list_only_what_is_wrong_is_left_out() -> None:
    known = ruleset("KubeArmorPolicy", {"network": {"matchProtocols": [{"protocol": "nothing, udp"}]}}, "Block")
    scope = known.scope(CONTAINER)
    asked = Behaviour(operation=Operation.SOCKET, family=2, socket_type=2, protocol=17)
    assert scope.judge(asked).action is Action.BLOCK
    peers = {"egress": [{"to": [{"ipBlock": {"cidr": "x"}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "x"}, {"port": "80"}]}]}  # fmt: skip
    scope = ruleset("KubeArmorNetworkPolicy", peers, "Block").scope(HOST)
    for address, port, action in (("10.0.0.1", 80, Action.BLOCK), ("10.0.0.1", 81, Action.ALLOW), ("9.9.9.9", 80, Action.ALLOW)):  # fmt: skip
        behaviour = Behaviour(operation=Operation.CONNECT, family=2, socket_type=1, protocol=6, address=address, port=port)  # fmt: skip
        assert scope.judge(behaviour).action is action


def test_a_value_without_an_equals_sign_is_nobodys_label() -> None:
    for operator, selected in (("In", False), ("NotIn", True)):
        spec = {"selector": {"matchExpressions": [{"key": "label", "operator": operator, "values": ["app"]}]}, "file": {"matchPaths": [{"path": "/a"}]}}  # fmt: skip
        assert bool(ruleset("KubeArmorPolicy", spec, "Block").scope(CONTAINER).members) is selected
