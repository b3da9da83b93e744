# SPDX-License-Identifier: Apache-2.0
"""Whom learnt policies select that nothing was seen of: containers and pods of other workloads, with the same labels. They would be held to
rules that nobody learnt of them. Pure. Neighbours: `together` (of those that were seen), `network.flows.caught` (the same of network policies)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policy.learn.replay import STRICT
from policy.learn.workloads import LearntWorkload, workload
from policy.rules.normalise import CONTAINER_LABEL
from policy.ruleset import compile_ruleset
from schemas.cluster import PodFact
from schemas.identity import Identity, Kind
from schemas.policy import PolicyDocument

Whose = tuple[str, str, str, str]
"""Namespace, kind and name of the owner, container ("" for any): what a workload is, whichever cluster a node says that it is of."""


def selected_unseen(
    learnt: Iterable[tuple[LearntWorkload, PolicyDocument]],
    seen: Iterable[Identity],
    there: Iterable[Identity],
    pods: Iterable[PodFact],
) -> dict[str, tuple[str, ...]]:
    """By label of the workload of a policy: workloads that it selects too. `there`: containers as nodes tell them; of `pods` those count that
    no node has told of, whichever containers they will have."""
    known = {_whose(workload(one)) for one in seen}
    owners = {whose[:3] for whose in known}
    of: dict[tuple[str, str, str], LearntWorkload] = {}
    documents: dict[tuple[str, str, str], PolicyDocument] = {}
    for each, document in learnt:
        if not each.host:
            key = document.kind, document.namespace, document.name
            of[key], documents[key] = each, document
    ruleset = compile_ruleset(documents.values(), STRICT)
    made: dict[str, set[str]] = {}
    asked: set[object] = set()
    told: set[str] = set()
    for one in there:
        if one.kind is not Kind.CONTAINER or one.ended:
            continue
        told.add(one.pod_uid)
        other = workload(one)
        mark = other, tuple(sorted(one.labels.items()))
        if _whose(other) in known or mark in asked:
            continue
        asked.add(mark)
        plain = msgspec.structs.replace(one, annotations={}, namespace_annotations={}, confirmed=True)
        for policy, _ in ruleset.scope(plain).members:
            key = policy.key.kind, policy.key.namespace, policy.key.name
            made.setdefault(of[key].label, set()).add(other.label)
    labels = [(key, _of_pods(document)) for key, document in documents.items()]
    for pod in pods:
        other = workload(_as_identity(pod))
        if pod.ended or pod.uid in told or _whose(other)[:3] in owners:
            continue
        for key, wanted in labels:
            if key[1] == pod.namespace and wanted.items() <= pod.labels.items() and of[key].orchestrated:
                made.setdefault(of[key].label, set()).add(f"{pod.namespace}/{other.owner}")
    return {label: tuple(sorted(some)) for label, some in sorted(made.items())}


def _whose(of: LearntWorkload) -> Whose:
    return of.namespace, of.owner_kind, of.owner, of.container


def _of_pods(document: PolicyDocument) -> dict[str, str]:
    """What a learnt selector asks of a pod."""
    spec = msgspec.json.decode(document.raw)["spec"]
    found: dict[str, str] = spec["selector"]["matchLabels"]
    return {key: value for key, value in found.items() if key != CONTAINER_LABEL}


def _as_identity(pod: PodFact) -> Identity:
    return Identity(
        kind=Kind.CONTAINER, node=pod.node, uid=pod.uid, namespace=pod.namespace, pod=pod.name, owner=pod.owner, labels=pod.labels,
        orchestrated=True,
    )  # fmt: skip
