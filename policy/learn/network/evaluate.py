# SPDX-License-Identifier: Apache-2.0
"""Would these policies let through what was seen, and what more would they? Pure; documents in, answers out.

Each flow is asked for every pod that it may reach: a service sends a connection to any of its pods. A pod always reaches itself, and
its node always reaches it (Kubernetes' documentation of NetworkPolicy). Over-permission is counted over kinds of pods, not pods: two
replicas are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from policy.learn.network.addresses import parsed
from policy.learn.network.directory import Directory, PortRange, carries, inner_addresses, lasting
from policy.learn.network.flows import FlowKey, Flows, Party, Subject
from policy.learn.network.written import PodEnd, WrittenPolicy, written
from schemas.cluster import PodFact


class RefusedFlow(msgspec.Struct, frozen=True, order=True):
    """A flow that the policies deny. `by`: the policies that select the end that refuses."""

    flow: str
    by: tuple[str, ...]


class Connectivity(msgspec.Struct, frozen=True, kw_only=True):
    """`flows` were asked, `refused` are denied. Of all (kind of pod, kind of pod, port) that are open without policies (`pairs`),
    `allowed` stay open, of which `needed` were seen in use. `uncovered`: kinds of pods that no policy selects."""

    flows: int
    refused: tuple[RefusedFlow, ...]
    pairs: int
    allowed: int
    needed: int
    uncovered: tuple[str, ...]
    unsure: dict[str, int]
    left: dict[str, int]

    @property
    def over(self) -> float:
        """Share of what could be opened and was not seen in use, that is open all the same."""
        spare = self.pairs - self.needed
        return (self.allowed - self.needed) / spare if spare else 0.0


class Evaluator:
    """A set of policies, ready to be asked."""

    def __init__(self, documents: Iterable[Mapping[str, Any]]) -> None:
        self._policies: dict[str, list[WrittenPolicy]] = {}
        for document in documents:
            one = written(document)
            self._policies.setdefault(one.name.partition("/")[0], []).append(one)
        self._selecting: dict[str, list[WrittenPolicy]] = {}

    def selecting(self, end: PodEnd) -> list[WrittenPolicy]:
        """The policies that hold for `end`."""
        if end.host or not end.namespace:
            return []
        found = self._selecting.get(end.uid)
        if found is None:
            found = self._selecting[end.uid] = [
                one for one in self._policies.get(end.namespace, ()) if one.selects(end)
            ]
        return found

    def passes(self, source: PodEnd, target: PodEnd, protocol: str, port: int) -> tuple[str, ...] | None:
        """None when the connection is let through; else the names of the policies of the end that refuses it."""
        if source.uid and source.uid == target.uid and not source.stand_in:
            return None
        leaving = [one for one in self.selecting(source) if one.egress is not None]
        if leaving and not any(
            rule.peer(target) and rule.port(target, protocol, port) for one in leaving for rule in one.egress or ()
        ):
            return tuple(one.name for one in leaving)
        if source.host and source.host == target.node:
            return None
        arriving = [one for one in self.selecting(target) if one.ingress is not None]
        if arriving and not any(
            rule.peer(source) and rule.port(target, protocol, port) for one in arriving for rule in one.ingress or ()
        ):
            return tuple(one.name for one in arriving)
        return None


def connectivity(
    found: Flows, directory: Directory, documents: Iterable[Mapping[str, Any]], *, matrix: bool = True
) -> Connectivity:
    """Every flow of `found`, and the matrix, which grows with the square of the workloads; without it nothing is over-permitted."""
    evaluator, ends = Evaluator(documents), _Ends(found, directory)
    refused: set[RefusedFlow] = set()
    needed: set[tuple[str, str, str, int]] = set()
    open_ports: dict[str, set[tuple[str, int]]] = {}
    for key in found.seen:
        for source, target, number in ends.of(key):
            kinds = (ends.kind(source), ends.kind(target))
            needed.add((*kinds, key.port.protocol, number))
            if target.namespace:
                open_ports.setdefault(kinds[1], set()).add((key.port.protocol, number))
            by = evaluator.passes(source, target, key.port.protocol, number)
            if by is not None:
                refused.add(RefusedFlow(_told(key), by))
    some = ends.one_of_each()
    pairs = allowed = used = 0
    for target_kind, ports in sorted(open_ports.items()) if matrix else ():
        aim = some[target_kind]
        for source_kind, source in some.items():
            # Another pod than the target, also where both are of one kind.
            source = msgspec.structs.replace(source, uid=f"{source.uid} asking")
            for protocol, number in ports:
                pairs += 1
                if evaluator.passes(source, aim, protocol, number) is None:
                    allowed += 1
                    used += (source_kind, target_kind, protocol, number) in needed
    uncovered = sorted(kind for kind, end in some.items() if end.namespace and not evaluator.selecting(end))
    return Connectivity(
        flows=len(found.seen), refused=tuple(sorted(refused)), pairs=pairs, allowed=allowed, needed=used, uncovered=tuple(uncovered),
        unsure=dict(found.unsure), left=dict(found.left),
    )  # fmt: skip


def _told(key: FlowKey) -> str:
    mine, peer = f"{key.subject.workload.namespace}/{key.subject.workload.owner}", str(key.peer)
    port = f"{key.port.protocol} {key.port.name or key.port.first}"
    return f"{peer} -> {mine} {port}" if key.ingress else f"{mine} -> {peer} {port}"


class _Ends:
    """Ends that stand for the parties of flows: the pods that are known, or one that stands for a workload of which none is."""

    def __init__(self, found: Flows, directory: Directory) -> None:
        self._directory = directory
        self._called = found.called
        self._pods = {
            uid: self._pod(pod) for uid, pod in sorted(directory.pods.items()) if not pod.ended and not pod.host_network
        }
        self._spaces: dict[str, list[PodEnd]] = {}
        for end in self._pods.values():
            self._spaces.setdefault(end.namespace, []).append(end)
        self._found: dict[Party, list[PodEnd]] = {}
        self._stand_ins: dict[Party, PodEnd] = {}
        for subject in found.subjects:
            self._of_pods(_party(subject))

    def of(self, key: FlowKey) -> list[tuple[PodEnd, PodEnd, int]]:
        """(source, target, port) of every connection that the flow may be."""
        mine, theirs = self._of_pods(_party(key.subject)), self._of(key.peer)
        if called := self._called.get(key):
            # Each name by itself, and the address alone where it had none: all of them must pass.
            theirs = [
                msgspec.structs.replace(end, names=frozenset({name} if name else ()))
                for end in theirs
                for name in sorted(called)
            ]
        sources, targets = (theirs, mine) if key.ingress else (mine, theirs)
        return [(source, target, self._number(target, key.port)) for source in sources for target in targets]

    def _number(self, target: PodEnd, port: PortRange) -> int:
        return target.named.get((port.name, port.protocol), port.first) if port.name else port.first

    def _of(self, party: Party) -> list[PodEnd]:
        if party.kind == "pods":
            return self._of_pods(Party("pods", party.namespace, "", party.labels))
        if party.kind == "node":
            node = self._directory.nodes.get(party.name)
            if node is not None and party.labels:
                return [PodEnd(host=party.name, addresses=tuple(inner_addresses(node)))]
            texts = node.addresses if node is not None else ()
            return [
                PodEnd(host=party.name, addresses=tuple(one for text in texts if (one := parsed(text)) is not None))
            ]
        address = parsed(party.name)
        return [PodEnd(addresses=(address,))] if address is not None else []

    def _of_pods(self, party: Party) -> list[PodEnd]:
        known = self._found.get(party)
        if known is None:
            some = self._spaces.get(party.namespace, ())
            known = self._found[party] = [end for end in some if carries(end.labels, party.labels)]
        if known:
            return known
        end = self._stand_ins.get(party)
        if end is None:
            end = self._stand_ins[party] = PodEnd(
                namespace=party.namespace, labels=dict(party.labels), namespace_labels=self._directory.namespace_labels(party.namespace),
                named=self._named(party.namespace, dict(party.labels)), uid=f"any of {party.namespace} {party.labels}", stand_in=True,
            )  # fmt: skip
        return [end]

    def _pod(self, pod: PodFact) -> PodEnd:
        return PodEnd(
            namespace=pod.namespace, labels=pod.labels, namespace_labels=self._directory.namespace_labels(pod.namespace),
            addresses=tuple(one for text in pod.addresses if (one := parsed(text)) is not None), node=pod.node,
            named=self._named(pod.namespace, pod.labels), uid=pod.uid,
        )  # fmt: skip

    def _named(self, namespace: str, labels: dict[str, str]) -> dict[tuple[str, str], int]:
        """Named ports as far as services tell them; 0 for one whose number nobody told."""
        made: dict[tuple[str, str], int] = {}
        for service in self._directory.services.values():
            if service.namespace == namespace and service.selector and carries(labels, tuple(service.selector.items())):
                for port in service.ports:
                    target = self._directory.target(service, port.port, port.protocol)
                    if target is not None and target.name:
                        made[target.name, target.protocol] = target.first
        return made

    def kind(self, end: PodEnd) -> str:
        """What replicas have in common."""
        if end.host:
            return f"node/{end.host}"
        if not end.namespace:
            return "outside"
        return f"{end.namespace}: {','.join('='.join(pair) for pair in lasting(end.labels.items()))}"

    def one_of_each(self) -> dict[str, PodEnd]:
        """A pod of each kind, and an address of nobody."""
        made = {self.kind(end): end for end in [*self._stand_ins.values(), *self._pods.values()]}
        nobody = parsed("198.51.100.77")
        assert nobody is not None
        return {"outside": PodEnd(addresses=(nobody,)), **made}


def _party(subject: Subject) -> Party:
    return Party("pods", subject.workload.namespace, "", subject.labels)
