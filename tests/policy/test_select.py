# SPDX-License-Identifier: Apache-2.0
"""Whom a policy is for: selectors against identities, in and outside of Kubernetes (kubearmor.md 1.5)."""

from __future__ import annotations

import contextlib
import re
import textwrap
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.match.regexes import BadExpression, Regex, glob
from policy.parse import parse
from policy.rules.normalise import normalise
from policy.rules.select import UNTRACKED, effective_mode, predicate
from policy.text.name_lists import container_names
from schemas.identity import Identity, Kind
from schemas.rules import Expression as Condition
from schemas.rules import Operator as Op
from schemas.rules import Policy, Selection, Target
from schemas.verdict import Mode

HEADS = {
    "ksp": "kind: KubeArmorPolicy\nmetadata: {name: a, namespace: %s}\n",
    "hsp": "kind: KubeArmorHostPolicy\nmetadata: {name: a}\n",
    "csp": "kind: KubeArmorClusterPolicy\nmetadata: {name: a}\n",
}
RULE = "process: {matchPaths: [{path: /a}]}\n"


def policy(spec: str, kind: str = "ksp", namespace: str = "shop", annotations: str = "") -> Policy:
    head = HEADS[kind].replace("%s", namespace).replace("name: a", "name: a" + (f", annotations: {{{annotations}}}" if annotations else ""))  # fmt: skip
    text = f"apiVersion: security.kubearmor.com/v1\n{head}spec:\n{textwrap.indent(spec + RULE, '  ')}"
    parsed = parse(text, "a.yaml")
    assert parsed.policies, [str(found) for found in parsed.diagnostics]
    return normalise(parsed.policies[0])


def pod(labels: str = "", *, namespace: str = "shop", container: str = "main", **more: Any) -> Identity:
    pairs = dict(part.split("=") for part in labels.split(",") if part)
    return Identity(kind=Kind.CONTAINER, node="n1", uid="u", namespace=namespace, container_name=container, labels=pairs, orchestrated=True, **more)  # fmt: skip


def docker(name: str, labels: str = "", namespace: str = "container_namespace") -> Identity:
    pairs = dict(part.split("=") for part in labels.split(",") if part)
    return Identity(kind=Kind.CONTAINER, node="n1", uid="u", namespace=namespace, container_name=name, labels=pairs)


def node(name: str, labels: str = "", kind: Kind = Kind.HOST) -> Identity:
    pairs = dict(part.split("=") for part in labels.split(",") if part)
    return Identity(kind=kind, node=name, uid="u", node_labels=pairs, orchestrated=True)


IN_KUBERNETES = [
    # selector, identity, selected
    ("selector: {}", pod(), True),
    ("selector: {matchLabels: {}}", pod("app=web"), True),
    ("selector: {}", pod(namespace="other"), False),
    ("selector: {matchLabels: {app: web}}", pod("app=web,tier=a"), True),
    ("selector: {matchLabels: {app: web}}", pod("app=db"), False),
    ("selector: {matchLabels: {app: web, tier: a}}", pod("app=web"), False),
    ("selector: {matchLabels: {app: web}}", node("n1"), False),
    ("selector: {matchLabels: {namespaceName: shop}}", pod(), True),
    ("selector: {matchLabels: {namespaceName: bank}}", pod(), False),
    # expressions are a true AND, in any order: a deliberate difference
    ("selector: {matchExpressions: [{key: label, operator: In, values: [app=a, app=b]}]}", pod("app=b"), True),
    ("selector: {matchExpressions: [{key: label, operator: In, values: [app=a, app=b]}]}", pod("app=c"), False),
    ("selector: {matchExpressions: [{key: label, operator: NotIn, values: [app=a, app=b]}]}", pod("app=c"), True),
    ("selector: {matchExpressions: [{key: label, operator: NotIn, values: [app=a, app=b]}]}", pod("app=a"), False),
    ("selector: {matchExpressions: [{key: label, operator: In, values: [app=a]}, {key: label, operator: NotIn, values: [tier=x]}]}", pod("app=a,tier=x"), False),
    ("selector: {matchExpressions: [{key: label, operator: NotIn, values: [tier=x]}, {key: label, operator: In, values: [app=a]}]}", pod("app=b"), False),
    ("selector: {matchExpressions: [{key: label, operator: NotIn, values: [tier=x]}, {key: label, operator: In, values: [app=a]}]}", pod("app=a"), True),
    ("selector: {matchLabels: {app: a}, matchExpressions: [{key: label, operator: NotIn, values: [tier=x]}]}", pod("app=a,tier=x"), False),
    ("selector: {matchExpressions: [{key: label, operator: In, values: []}]}", pod("app=a"), False),
    ("selector: {matchExpressions: [{key: label, operator: NotIn, values: []}]}", pod("app=a"), True),
    # container lists
    ("selector: {matchLabels: {kubearmor.io/container.name: '[main, side]'}}", pod(container="side"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: '[main, side]'}}", pod(container="init"), False),
    ("selector: {matchLabels: {kubearmor.io/container.name: '[]'}}", pod(container="any"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: ''}}", pod(container="any"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: '[main,,]'}}", pod(container="main"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: '[main,,]'}}", pod(container="side"), False),
    ("selector: {matchLabels: {kubearmor.io/container.name: '[ main ]'}}", pod(container="main"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: main}}", pod(container="main"), True),
    ("selector: {matchLabels: {kubearmor.io/container.name: main}}", pod(container="ai"), False),
    ("selector: {matchLabels: {app: web, kubearmor.io/container.name: '[main]'}}", pod("app=db", container="main"), False),
]  # fmt: skip


@pytest.mark.parametrize(("selector", "identity", "selected"), IN_KUBERNETES)
def test_in_kubernetes(selector: str, identity: Identity, selected: bool) -> None:
    assert predicate(policy(selector + "\n").selection)(identity) is selected


OUTSIDE = [
    ("kubearmor.io/container.name: .*", docker("anything"), True),
    ("kubearmor.io/container.name: web", docker("web-1"), True),
    ("kubearmor.io/container.name: ^web$", docker("web-1"), False),
    ("kubearmor.io/container.name: '(db|web)-[0-9]+$'", docker("db-12"), True),
    ("kubearmor.io/container.name: 'web('", docker("web("), False),
    ("kubearmor.io/container.name: '[web, db]'", docker("db"), True),
    ("kubearmor.io/container.name: '[web, db]'", docker("w"), False),
    ("kubearmor.io/container.name: web, app: x", docker("web", "app=y"), True),
    ("app: x", docker("web", "app=x"), True),
    ("app: x", docker("web", "app=y"), False),
    ("app: x", docker("web", "app=x", namespace="shop"), True),
    ("app: x", docker("web", "app=x", namespace="bank"), False),
]


@pytest.mark.parametrize(("labels", "identity", "selected"), OUTSIDE)
def test_outside_of_kubernetes(labels: str, identity: Identity, selected: bool) -> None:
    assert predicate(policy(f"selector: {{matchLabels: {{{labels}}}}}\n").selection)(identity) is selected


CLUSTER = [
    ("{}", pod(namespace="born-later"), True),
    ("{matchExpressions: [{key: namespace, operator: In, values: [shop, bank]}]}", pod(namespace="bank"), True),
    ("{matchExpressions: [{key: namespace, operator: In, values: [shop]}]}", pod(namespace="bank"), False),
    ("{matchExpressions: [{key: namespace, operator: NotIn, values: [shop]}]}", pod(namespace="born-later"), True),
    ("{matchExpressions: [{key: namespace, operator: NotIn, values: [shop]}]}", pod(namespace="shop"), False),
    ("{matchExpressions: [{key: namespace, operator: In, values: [shop]}, {key: label, operator: NotIn, values: [app=a]}]}", pod("app=a"), False),
    ("{matchExpressions: [{key: namespace, operator: In, values: [shop]}, {key: label, operator: In, values: [app=a]}]}", pod("app=a"), True),
    ("{}", pod(namespace="kube-system"), False),
]  # fmt: skip


@pytest.mark.parametrize(("selector", "identity", "selected"), CLUSTER)
def test_cluster_policies(selector: str, identity: Identity, selected: bool) -> None:
    assert predicate(policy(f"selector: {selector}\n", "csp").selection)(identity) is selected


NODES = [
    ("", node("n1"), True),
    ("kubernetes.io/hostname: n1", node("n1"), True),
    ("kubernetes.io/hostname: n1", node("n2"), False),
    ("kubearmor.io/hostname: '*'", node("n2"), True),
    ("kubearmor.io/hostname: 'n1, n3'", node("n3"), True),
    ("kubearmor.io/hostname: 'n1, n3'", node("n2"), False),
    ("kubearmor.io/hostname: ''", node("n2"), False),
    ("kubearmor.io/hostname: 'n1', kubernetes.io/hostname: 'n2'", node("n1"), False),
    ("kubearmor.io/hostname: 'n1', kubernetes.io/hostname: '*'", node("n1"), True),
    ("kubearmor.io/hostnamereg: 'gke-*-pool'", node("gke-a1-pool"), True),
    ("kubearmor.io/hostnamereg: 'gke-*-pool'", node("gke-a1-pool-2"), False),
    ("kubernetes.io/hostnamereg: 'n.'", node("n1"), False),
    ("kubernetes.io/os: linux", node("n1", "kubernetes.io/os=linux"), True),
    ("kubernetes.io/os: linux", node("n1"), False),
    ("kubernetes.io/hostname: alias", node("n1", "kubernetes.io/hostname=alias"), True),
    ("", node("n1", kind=Kind.NODE), True),
    ("", pod(), False),
]


@pytest.mark.parametrize(("labels", "identity", "selected"), NODES)
def test_nodes(labels: str, identity: Identity, selected: bool) -> None:
    found = policy(f"nodeSelector: {{matchLabels: {{{labels}}}}}\n", "hsp")
    assert predicate(found.selection)(identity) is selected


def test_untracked_namespaces_can_be_chosen() -> None:
    made = policy("selector: {}\n", namespace="kube-system")
    assert not predicate(made.selection)(pod(namespace="kube-system"))
    assert predicate(made.selection, frozenset())(pod(namespace="kube-system"))
    assert "kubearmor" in UNTRACKED


MODES = [
    ("", "", Mode.ENFORCE),
    ("", "audited", Mode.AUDITED),
    ("", "disabled", None),
    ("", "enabled", Mode.ENFORCE),
    ("kubearmor-policy: audited", "", Mode.AUDITED),
    ("kubearmor-policy: disabled", "", None),
    ("hauberk.io/mode: shadow", "", Mode.SHADOW),
    ("hauberk.io/mode: shadow", "audited", Mode.SHADOW),
    ("hauberk.io/mode: shadow", "disabled", None),
]


@pytest.mark.parametrize(("on_policy", "on_workload", "mode"), MODES)
def test_modes_of_policy_and_workload_together(on_policy: str, on_workload: str, mode: Mode | None) -> None:
    annotations = {"kubearmor-policy": on_workload} if on_workload else {}
    made, identity = policy("selector: {}\n", annotations=on_policy), pod(annotations=annotations)
    assert effective_mode(made, identity) is mode


@pytest.mark.parametrize(
    ("own", "namespaces", "mode"),
    [("audit", "audited", Mode.AUDITED), ("Disabled", "", Mode.ENFORCE), ("audit", "audit", Mode.ENFORCE), ("patched", "audited", Mode.ENFORCE)],
)  # fmt: skip
def test_a_word_of_a_workload_that_is_none_leaves_what_its_namespace_says(
    own: str, namespaces: str, mode: Mode
) -> None:
    identity = pod(annotations={"kubearmor-policy": own}, namespace_annotations={"kubearmor-policy": namespaces})
    assert effective_mode(policy("selector: {}\n"), identity) is mode


@given(st.lists(st.sampled_from(["app=a", "app=b", "tier=x", "tier=y"]), unique=True), st.permutations([Condition(True, Op.IN, ("app=a", "app=b")), Condition(True, Op.NOT_IN, ("tier=x",)), Condition(False, Op.NOT_IN, ("bank",))]))  # fmt: skip
def test_the_order_of_expressions_says_nothing(labels: list[str], conditions: list[Condition]) -> None:
    pairs = dict(label.split("=") for label in labels)
    identity = pod(",".join(f"{key}={value}" for key, value in pairs.items()))
    expected = pairs.get("app") in ("a", "b") and pairs.get("tier") != "x"
    chosen = predicate(Selection(target=Target.CONTAINERS, expressions=tuple(conditions)))(identity)
    assert chosen is expected


@pytest.mark.parametrize(("value", "names"), [("[a, b]", ("a", "b")), ("[]", ()), ("", ()), ("[a,,]", ("a",)), ("[,]", ()), (" [ a ] ", ("a",)), ("a", ("a",)), ("[", ("[",))])  # fmt: skip
def test_container_names(value: str, names: tuple[str, ...]) -> None:
    assert container_names(value) == names


# Expressions in linear time


REGEX = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "^", "$", "\\d", "[[:alpha:]]"]),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})")
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(REGEX, st.text(alphabet="ab1\n", max_size=8))
def test_expressions_agree_with_the_library(expression: str, text: str) -> None:
    python = expression.replace("[[:alpha:]]", "[a-z]").replace("$", "\\Z")
    assert Regex(expression).search(text) is (re.search(python, text) is not None)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab()[]{}*+?|^$\\.-:,12", max_size=12), st.text(max_size=5))
def test_any_text_is_an_expression_or_refused(expression: str, text: str) -> None:
    with contextlib.suppress(BadExpression):
        Regex(expression).search(text)


@pytest.mark.parametrize(
    "expression",
    ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){20}$", "a?" * 30 + "a" * 30, "((((){1000}){1000}){1000}){1000}a$"],
)
def test_hostile_expressions_end_in_time(expression: str) -> None:
    start = time.thread_time()
    Regex(expression).search("a" * 253 + "!")
    assert time.thread_time() - start < 2


@pytest.mark.parametrize("expression", ["(a{100}){100}", "((((a{50}){50}){50}){50})", "(" * 100, "[z-a]", "a{3,1}", "\\", "(?i)a", "*a", "a{1001}", "a" * 1001])  # fmt: skip
def test_expressions_without_bound_or_sense_are_refused(expression: str) -> None:
    with pytest.raises(BadExpression):
        Regex(expression)


def test_globs_cover_the_whole_text() -> None:
    assert glob("gke-*").search("gke-1")
    assert not glob("gke-*").search("a-gke-1")
    assert not glob("a.b").search("axb")
