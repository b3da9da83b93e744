# SPDX-License-Identifier: Apache-2.0
"""One pod, service, node or namespace of a cluster as the bus knows it: facts, containers, and which policies select it, in force or why not.

What `hauberk describe pod|service|node|namespace` shows. Selection is asked of the compiled policies, and what became of them of plans and
receipts, as the status writer does. Reads the bus, changes nothing. Neighbours: `verbs.describe`, `policy.cluster_facts`, `sinks.kubernetes.answers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hauberk.client import readable
from hauberk.output import plain
from policy.cluster_facts import ClusterFacts
from policy.cluster_pods import ClusterPods
from policy.policy_set import PolicySet
from policy.ruleset import PostureSettings, Ruleset, compile_ruleset
from schemas.cluster import EndpointsFact, Fact, NamespaceFact, NodeFact, PodFact, ServiceFact, decode
from schemas.enforcement import decode_plan_head, decode_receipt
from schemas.errors import DecodeError
from schemas.identity import Identity, Kind
from schemas.identity import decode as decode_identity
from schemas.policy import reference
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from schemas.verdict import Mode
from schemas.workload_annotations import misread
from sinks.kubernetes.answers import Answers, PolicyOutcome

if TYPE_CHECKING:
    from bus.contract import Bus, Record


_FEW: Final = 3
"""Pods that a row names."""


class SelectingPolicy(NamedTuple):
    """A policy, the containers of the thing that it selects, the mode in which it acts there, and what became of it on `node`."""

    policy: str
    containers: str
    mode: str
    node: str
    state: str
    why: str


class ClusterView:
    """Use `gather`. Everything as of then."""

    def __init__(self, facts: list[Fact], identities: list[Identity], ruleset: Ruleset, answers: Answers) -> None:
        self._facts = facts
        self._identities = identities
        self._ruleset = ruleset
        self._answers = answers
        self._pods = ClusterPods()
        for fact in facts:
            if isinstance(fact, PodFact):
                self._pods.put(fact.key, fact)

    def pods(self, name: str, namespace: str | None) -> list[PodFact]:
        """Those of this name, or this uid; those that are over last."""
        found = [
            one for one in self._facts
            if isinstance(one, PodFact) and name in (one.name, one.uid) and namespace in (None, one.namespace)
        ]  # fmt: skip
        return sorted(found, key=lambda one: (one.ended > 0, one.namespace, -one.started))

    def services(self, name: str, namespace: str | None) -> list[ServiceFact]:
        """Those of this name; where there is none now, those that were."""
        found = [
            one for one in self._facts if isinstance(one, ServiceFact) and one.name == name and namespace in (None, one.namespace)
        ]  # fmt: skip
        return [one for one in found if not one.ended] or found

    def pod(self, pod: PodFact) -> dict[str, Any]:
        """What is known of it; its owner, services, node and containers among it."""
        told: dict[str, Any] = plain(pod)
        told["services"] = sorted(one.name for one in self._services_of(pod))
        told["nodeAddresses"] = list(self._node(pod.node).addresses)
        told["containers"] = [
            {"name": one.container_name, "image": one.image, "uid": one.uid, "cgroup": one.cgroup_path, "state": _state(one)}
            for one in self.containers(pod)
        ]  # fmt: skip
        return told

    def namespace_annotations(self, name: str) -> dict[str, str]:
        """Of a namespace of this name; nothing where it is not known."""
        return next((one.annotations for one in self._facts if isinstance(one, NamespaceFact) and one.name == name), {})

    def namespace(self, name: str) -> dict[str, Any] | None:
        """What the cluster says of it, and how many pods it has; None when it says nothing."""
        fact = next((one for one in self._facts if isinstance(one, NamespaceFact) and one.name == name), None)
        if fact is None:
            return None
        told: dict[str, Any] = plain(fact)
        return told | {"pods": len(self._pods_in(name))}

    def misread_pods(self, namespace: str) -> list[tuple[str, str]]:
        """A row for each sentence about annotations of pods there: the pods, of many the first ones, and what is not understood."""
        found: dict[str, list[str]] = {}
        for pod in self._pods_in(namespace):
            for sentence in misread(pod.annotations):
                found.setdefault(sentence, []).append(pod.name)
        return [(_some(pods), sentence) for sentence, pods in sorted(found.items())]

    def policies_of_namespace(self, namespace: str) -> list[tuple[str, str, str]]:
        """A row for each policy that selects a container of its pods, and for each of its own that selects none: policy, pods, mode."""
        chosen: dict[tuple[str, str], set[str]] = {}
        for one in self._identities:
            if one.kind is Kind.CONTAINER and one.namespace == namespace and one.pod and not one.ended:
                for policy, mode in self._ruleset.scope(one).members:
                    chosen.setdefault((str(policy.key), mode.value), set()).add(one.pod)
        known = {key for key, _ in chosen}
        own = {str(one.key) for one in self._ruleset.policies if one.key.namespace == namespace}
        rows = [(reference(key), _some(sorted(pods)), mode) for (key, mode), pods in chosen.items()]
        return sorted([*rows, *((reference(key), "-", "selects none now") for key in own - known)])

    def _pods_in(self, namespace: str) -> list[PodFact]:
        found = [
            one for one in self._facts if isinstance(one, PodFact) and one.namespace == namespace and not one.ended
        ]
        return sorted(found, key=lambda one: one.name)

    def service(self, service: ServiceFact) -> dict[str, Any]:
        """What is known of it, and the pods behind it."""
        told: dict[str, Any] = plain(service)
        told["pods"] = sorted(
            f"{pod.name} on {pod.node or 'no node yet'}"
            for pod in self._facts
            if isinstance(pod, PodFact) and not pod.ended and service in self._services_of(pod)
        )
        return told

    def node(self, name: str) -> dict[str, Any] | None:
        """What the cluster says of it, and its pods; None when it says nothing."""
        fact = self._node(name)
        if not fact.labels and not fact.addresses and not fact.started:
            return None
        pods = [one for one in self._facts if isinstance(one, PodFact) and one.node == name and not one.ended]
        told: dict[str, Any] = plain(fact)
        return told | {"pods": sorted(f"{one.namespace}/{one.name}" for one in pods)}

    def containers(self, pod: PodFact) -> list[Identity]:
        """Those that the pod's node told of; another node's word does not count."""
        return [one for one in self._identities if (found := self._pods.of(one)) is not None and found.uid == pod.uid]

    def policies(self, identities: Iterable[Identity]) -> list[SelectingPolicy]:
        """Those that select any of `identities`, all of one node."""
        chosen: dict[tuple[str, Mode, str], list[str]] = {}
        for one in identities:
            if not one.ended:
                for policy, mode in self._ruleset.scope(one).members:
                    chosen.setdefault((str(policy.key), mode, one.node), []).append(one.container_name or "the node")
        return [
            SelectingPolicy(reference(key), ", ".join(sorted(set(names))), mode.value, node, *_became(self._answers.outcome(key), mode, node))
            for (key, mode, node), names in sorted(chosen.items())
        ]  # fmt: skip

    def of_node(self, name: str) -> list[Identity]:
        return [one for one in self._identities if one.node == name and one.kind is Kind.NODE]

    def _node(self, name: str) -> NodeFact:
        return next(
            (one for one in self._facts if isinstance(one, NodeFact) and one.name == name and not one.ended),
            NodeFact(name=name or "-"),
        )

    def _services_of(self, pod: PodFact) -> Iterator[ServiceFact]:
        behind = {
            one.service for one in self._facts
            if isinstance(one, EndpointsFact) and one.namespace == pod.namespace and set(one.addresses) & set(pod.addresses)
        }  # fmt: skip
        for one in self._facts:
            if isinstance(one, ServiceFact) and one.namespace == pod.namespace and not one.ended:
                selects = bool(one.selector) and one.selector.items() <= pod.labels.items()
                if selects or one.name in behind:
                    yield one


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _state(one: Identity) -> str:
    return "ended" if one.ended else "running" if one.complete else "starting"


def _became(outcome: PolicyOutcome, mode: Mode, node: str) -> tuple[str, str]:
    """A word, and why."""
    if node in outcome.waiting or not outcome.nodes:
        return (
            "waiting",
            outcome.held or "no receipt of a plan with it; is `hauberk planner` running, and `hauberk node` there?",
        )
    if mode in (Mode.SHADOW, Mode.BASELINE):
        return "judged", "nothing of it is enforced"
    mine = [
        f"{rule}: {reason}" if rule else reason
        for (rule, reason), nodes in sorted(outcome.refused.items())
        if node in nodes
    ]
    if mine:
        return "partial", mine[0] + (f" and {len(mine) - 1} more" if len(mine) > 1 else "")
    return "in force", ""


async def gather(bus: Bus, postures: PostureSettings) -> ClusterView:
    """Read what there is now. Raises what the bus raises; what cannot be read is told and left out."""
    joined = ClusterFacts()
    cluster = (await bus.latest(CLUSTER)).items()
    facts = readable([record.value for _, record in cluster if record.value], decode, "facts of the cluster")
    readable(cluster, lambda one: joined.fact(one[0], one[1].value), "facts of the cluster")
    told = readable(_values(await bus.latest(INVENTORY)), decode_identity, "identities")
    identities = [one for each in told if (one := joined.identity(each.key, each)) is not None]
    answers = Answers()
    documents = await bus.latest(POLICIES)
    policies: PolicySet[Ruleset] = PolicySet(lambda found: compile_ruleset(found, postures), lambda error: None)
    policies.whole([(key, record.value, record.timestamp_ms) for key, record in documents.items()], ())
    for key, record in documents.items():
        answers.document(key.decode("utf-8", "replace"), record.value)
    for key, plan in (await bus.latest(ENFORCEMENT_DESIRED)).items():
        try:
            answers.plan(key.decode("utf-8", "replace"), decode_plan_head(plan.value or b""))
        except DecodeError:
            continue
    for receipt in readable(_values(await bus.latest(ENFORCEMENT_STATUS)), decode_receipt, "receipts"):
        answers.receipt(receipt.node, receipt)
    return ClusterView(facts, identities, policies.compile(), answers)


def _values(records: dict[bytes, Record]) -> list[bytes]:
    return [record.value for record in records.values() if record.value]
