# SPDX-License-Identifier: Apache-2.0
"""Whom a policy is for: the selection of a policy as a function of an identity (kubearmor.md 1.5).

Everything in a selector is a condition and all hold together; KubeArmor's order-dependent mix of In and NotIn is a
deliberate difference, as are a bracketed container list outside Kubernetes (a list there too) and a bare container name
inside (that name). Namespaces are compared when asked, so those created after a cluster policy are covered.
Compiled once; caching answers is for the caller, who knows when labels change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from policy.match.regexes import BadExpression, Regex, glob
from policy.text.name_lists import container_names, is_list
from schemas.identity import Identity, Kind
from schemas.rules import Expression as Condition
from schemas.rules import Operator, Policy, Selection, Target
from schemas.verdict import Mode
from schemas.workload_annotations import status

Predicate = Callable[[Identity], bool]

UNTRACKED: Final = frozenset({"kube-system", "kubearmor"})
"""KubeArmor's default `untrackedNs`: Kubernetes namespaces that no policy reaches."""
UNORCHESTRATED: Final = "container_namespace"
"""Namespace of containers outside Kubernetes."""
NAMESPACE_LABEL: Final = "namespaceName"
"""KubeArmor's agent lets a selector name the namespace as if it were a label."""


def predicate(selection: Selection, untracked: frozenset[str] = UNTRACKED) -> Predicate:
    """The selection as a function; it does no work that could be done once."""
    if selection.target is Target.NODES:
        return _nodes(selection)
    in_cluster = _containers_in_kubernetes(selection, untracked)
    outside = _containers_outside(selection)

    def selects(identity: Identity) -> bool:
        if identity.kind is not Kind.CONTAINER:
            return False
        return in_cluster(identity) if identity.orchestrated else outside(identity)

    return selects


def status_of(identity: Identity) -> str:
    """`enabled`, `audited` or `disabled`: what the workload itself says, else its namespace. A word that is none of these is not said."""
    return status(identity.annotations) or status(identity.namespace_annotations) or "enabled"


def effective_mode(policy: Policy, identity: Identity) -> Mode | None:
    """How a policy acts on a workload that it selects: None when the policy or the workload is `disabled`.

    A shadow policy stays a shadow, a baseline a baseline; a workload or a policy that is `audited` makes every other one audited.
    """
    said = status_of(identity)
    if not policy.enabled or said == "disabled":
        return None
    if policy.mode in (Mode.SHADOW, Mode.BASELINE):
        return policy.mode
    return Mode.AUDITED if said == "audited" else policy.mode


def _containers_in_kubernetes(selection: Selection, untracked: frozenset[str]) -> Predicate:
    names = frozenset(container_names(selection.containers or ""))
    namespace, labels, conditions = selection.namespace, selection.labels, _conditions(selection.expressions)

    def selects(identity: Identity) -> bool:
        if identity.namespace in untracked or (namespace and identity.namespace != namespace):
            return False
        if names and identity.container_name not in names:
            return False
        return _carries(identity, labels) and conditions(identity)

    return selects


def _containers_outside(selection: Selection) -> Predicate:
    namespace, labels, conditions = selection.namespace, selection.labels, _conditions(selection.expressions)
    name_test = _name_test(selection.containers)

    def selects(identity: Identity) -> bool:
        # A container stays in the common namespace unless it was moved, and there a policy's own namespace says nothing.
        if namespace and identity.namespace not in (namespace, UNORCHESTRATED, ""):
            return False
        if name_test is not None:
            return name_test(identity.container_name) and conditions(identity)
        return _carries(identity, labels) and conditions(identity)

    return selects


def _name_test(value: str | None) -> Callable[[str], bool] | None:
    """The container name condition outside Kubernetes; None when there is none. A broken expression selects nothing."""
    if value is None:
        return None
    if is_list(value):
        names = frozenset(container_names(value))
        return (lambda name: name in names) if names else (lambda _: True)
    try:
        return Regex(value).search
    except BadExpression:
        return lambda _: False


def _carries(identity: Identity, labels: tuple[tuple[str, str], ...]) -> bool:
    carried = identity.labels
    return all(
        carried.get(key) == value or (key == NAMESPACE_LABEL and key not in carried and identity.namespace == value)
        for key, value in labels
    )


def _conditions(expressions: tuple[Condition, ...]) -> Predicate:
    wanted = [
        (
            expression.labels,
            expression.operator is Operator.IN,
            frozenset(expression.values),
            # A value without `=` is nobody's label, as in KubeArmor, which compares whole `k=v` texts.
            tuple((key, value) for key, equals, value in (item.partition("=") for item in expression.values) if equals),
        )
        for expression in expressions
    ]

    def hold(identity: Identity) -> bool:
        for about_labels, want, names, pairs in wanted:
            there = (
                any(identity.labels.get(key) == value for key, value in pairs)
                if about_labels
                else identity.namespace in names
            )
            if there is not want:
                return False
        return True

    return hold


def _nodes(selection: Selection) -> Predicate:
    hostnames = frozenset(selection.hostnames)
    globs = [glob(text) for text in selection.hostname_globs]
    any_name = not hostnames or "*" in hostnames

    def selects(identity: Identity) -> bool:
        if identity.kind is Kind.CONTAINER:
            return False
        names = {identity.node, identity.node_labels.get("kubernetes.io/hostname", identity.node)}
        if not any_name and not names & hostnames:
            return False
        if any(not any(expression.search(name) for name in names) for expression in globs):
            return False
        return all(identity.node_labels.get(key) == value for key, value in selection.labels)

    return selects
