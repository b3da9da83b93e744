# SPDX-License-Identifier: Apache-2.0
"""What a compiler keeps from the call before, and whom the index leaves out, changes no answer."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from policy.documents import from_json
from policy.judge import prepared
from policy.rules import select
from policy.ruleset import PostureSettings, Ruleset, RulesetCompiler, compile_ruleset
from schemas.identity import Identity, Kind
from schemas.policy import PolicyDocument

SETTINGS = PostureSettings(untracked_namespaces=("kube-system",))
LABELS: tuple[dict[str, str], ...] = (
    {}, {"app": "web"}, {"app": "db"}, {"app": "web", "tier": "a"}, {"tier": "a"}, {"namespaceName": "shop"}, {"namespaceName": "shop", "app": "web"},
    {"kubearmor.io/container.name": "[main]"}, {"kubearmor.io/container.name": "[main, side]", "app": "web"}, {"app": ""},
)  # fmt: skip
EXPRESSIONS: tuple[list[dict[str, Any]], ...] = (
    [], [{"key": "namespace", "operator": "In", "values": ["shop"]}], [{"key": "namespace", "operator": "NotIn", "values": ["shop"]}],
    [{"key": "label", "operator": "NotIn", "values": ["app=web"]}, {"key": "namespace", "operator": "In", "values": ["shop", "bank"]}],
)  # fmt: skip


def document(kind: str, name: str, selector: dict[str, Any], path: str, namespace: str = "") -> PolicyDocument:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    spec = {"file": {"matchPaths": [{"path": path}], "matchPatterns": [{"pattern": "/srv/*/x"}]}, "action": "Block"}
    return from_json(msgspec.json.encode(
        {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": meta, "spec": {**spec, **selector}}
    ))  # fmt: skip


def every() -> list[PolicyDocument]:
    """Each form of a selector, in two namespaces, for the cluster and for nodes."""
    found = [
        document("KubeArmorPolicy", f"p{number}", {"selector": {"matchLabels": labels}}, f"/etc/{number}", place)
        for number, labels in enumerate(LABELS)
        for place in ("shop", "bank")
    ]
    found += [
        document("KubeArmorClusterPolicy", f"c{number}", {"selector": {"matchExpressions": one}}, f"/var/{number}")
        for number, one in enumerate(EXPRESSIONS)
    ]
    return [*found, document("KubeArmorHostPolicy", "h", {"nodeSelector": {"matchLabels": {"zone": "a"}}}, "/root/x")]


def identities() -> list[Identity]:
    carried: tuple[dict[str, str], ...] = (
        *LABELS[:6],
        {"app": "web", "other": "x"},
        {"namespaceName": "bank", "app": "web"},
    )
    found = [
        Identity(kind=Kind.CONTAINER, node="n1", uid=f"{number}", namespace=place, container_name=name, labels=labels, orchestrated=orchestrated)
        for number, labels in enumerate(carried)
        for place in ("shop", "bank", "kube-system", "", "container_namespace")
        for name in ("main", "side", "other")
        for orchestrated in (True, False)
    ]  # fmt: skip
    return [*found, Identity(kind=Kind.NODE, node="n1", uid="n1", node_labels={"zone": "a"})]


def selected(ruleset: Ruleset, identity: Identity) -> list[str]:
    return [str(policy.key) for policy, _ in ruleset.scope(identity).members]


def test_the_index_leaves_out_nobody_that_a_selection_takes() -> None:
    ruleset = compile_ruleset(every(), SETTINGS)
    many = 0
    for identity in identities():
        wanted = [
            str(policy.key) for policy in ruleset.policies
            if select.predicate(policy.selection, frozenset(SETTINGS.untracked_namespaces))(identity)
        ]  # fmt: skip
        assert selected(ruleset, identity) == wanted, identity
        many += len(wanted)
    assert many > 500


@pytest.mark.parametrize("seed", range(3))
def test_a_compiler_that_keeps_what_did_not_change_says_the_same(seed: int) -> None:
    chance = random.Random(seed)
    compiler, all_of_them = RulesetCompiler(SETTINGS), every()
    for number in range(8):
        now = chance.sample(all_of_them, chance.randrange(len(all_of_them)))
        if number % 2:
            changed = document(
                "KubeArmorPolicy", "p1", {"selector": {"matchLabels": {"app": "web"}}}, f"/opt/{number}", "shop"
            )
            now = [one for one in now if one.key != changed.key] + [changed]
        kept, anew = compiler(now), compile_ruleset(now, SETTINGS)
        assert (kept.digest, kept.policies, kept.problems, kept.newborn) == (
            anew.digest,
            anew.policies,
            anew.problems,
            anew.newborn,
        )
        for identity in identities():
            assert selected(kept, identity) == selected(anew, identity)


def test_two_policies_of_a_name_are_in_one_order_whatever_they_come_in() -> None:
    one = document("KubeArmorPolicy", "same", {"selector": {"matchLabels": {"app": "web"}}}, "/etc/a", "shop")
    other = document("KubeArmorPolicy", "same", {"selector": {"matchLabels": {"app": "web"}}}, "/etc/b", "shop")
    last = document("KubeArmorPolicy", "z", {"selector": {"matchLabels": {"app": "web"}}}, "/etc/c", "shop")
    first, second = compile_ruleset([one, last, other], SETTINGS), compile_ruleset([other, one, last], SETTINGS)
    assert (first.policies, first.digest) == (second.policies, second.digest)


def test_only_the_policy_that_changed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = prepared.prepare
    monkeypatch.setattr(
        "policy.ruleset.prepare", lambda policy, untracked: read.append(policy.key.name) or whole(policy, untracked)
    )
    compiler, documents = RulesetCompiler(SETTINGS), every()
    compiler(documents)
    assert len(read) == len(documents)
    read.clear()
    compiler([*documents, document("KubeArmorPolicy", "new", {"selector": {"matchLabels": {}}}, "/etc/new", "shop")])
    assert read == ["new"]
    read.clear()
    # What was away for one call is not kept for ever.
    compiler(documents[1:])
    compiler(documents)
    assert read == [documents[0].name]
