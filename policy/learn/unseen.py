# SPDX-License-Identifier: Apache-2.0
"""Whom learnt policies select that nothing was seen of: containers and pods of other workloads, with the same labels. They would be held to
rules that nobody learnt of them. Pure. Neighbours: `together` (of those that were seen), `network.flows.caught` (the same of network policies)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from policy.learn import documents
from policy.learn.replay import STRICT
from policy.learn.together import ANY
from policy.learn.workloads import LearntWorkload, workload
from policy.rules.normalise import CONTAINER_LABEL
from policy.ruleset import compile_ruleset
from schemas.cluster import PodFact
from schemas.identity import Identity, Kind

Whose = tuple[str, str, str, str]
"""Namespace, kind and name of the owner, container ("" for any): what a workload is, whichever cluster a node says that it is of."""


def selected_unseen(
    learnt: Iterable[tuple[LearntWorkload, Mapping[str, str]]],
    seen: Iterable[Identity],
    there: Iterable[Identity],
    pods: Iterable[PodFact],
) -> dict[str, tuple[str, ...]]:
    """By label of the workload of a policy: workloads that it selects too. `learnt`: with the `matchLabels` of its policy. `there`: containers as
    nodes tell them; of `pods` those count that no node has told of, whichever containers they will have."""
    known = {_whose(workload(one)) for one in seen}
    owners = {whose[:3] for whose in known}
    others: dict[object, Identity] = {}
    told: set[str] = set()
    for one in there:
        if one.kind is Kind.CONTAINER and not one.ended:
            told.add(one.pod_uid)
            if _whose(other := workload(one)) not in known:
                others[other, tuple(sorted(one.labels.items()))] = one
    strangers = [pod for pod in pods if not pod.ended and pod.uid not in told and _owner(pod)[:3] not in owners]
    policies = [(of, match) for of, match in learnt if not of.host] if others or strangers else []
    made: dict[str, set[str]] = {}
    selecting = _Selecting(policies)
    for one in others.values():
        for of in selecting.whom(one):
            made.setdefault(of.label, set()).add(workload(one).label)
    for pod in strangers:
        for of, match in policies:
            wanted = {key: value for key, value in match.items() if key != CONTAINER_LABEL}
            if of.orchestrated and of.namespace == pod.namespace and wanted.items() <= pod.labels.items():
                made.setdefault(of.label, set()).add(f"{pod.namespace}/{_owner(pod)[2]}")
    return {label: tuple(sorted(some)) for label, some in sorted(made.items())}


class _Selecting:
    """The selectors alone: what the rules are asks nobody here, and compiling them takes long."""

    def __init__(self, policies: Iterable[tuple[LearntWorkload, Mapping[str, str]]]) -> None:
        self._of: dict[tuple[str, str], LearntWorkload] = {}
        made = []
        for of, match in policies:
            document = documents.checked(documents.document(of, match, [ANY]))
            self._of[document.namespace, document.name] = of
            made.append(document)
        self._ruleset = compile_ruleset(made, STRICT)

    def whom(self, one: Identity) -> list[LearntWorkload]:
        """Whose policies select a container."""
        plain = msgspec.structs.replace(one, annotations={}, namespace_annotations={}, confirmed=True)
        members = self._ruleset.scope(plain).members
        return [self._of[policy.key.namespace, policy.key.name] for policy, _ in members]


def _whose(of: LearntWorkload) -> Whose:
    return of.namespace, of.owner_kind, of.owner, of.container


def _owner(pod: PodFact) -> Whose:
    return _whose(workload(_as_identity(pod)))


def _as_identity(pod: PodFact) -> Identity:
    return Identity(
        kind=Kind.CONTAINER, node=pod.node, uid=pod.uid, namespace=pod.namespace, pod=pod.name, owner=pod.owner, labels=pod.labels,
        orchestrated=True,
    )  # fmt: skip
