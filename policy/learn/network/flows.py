# SPDX-License-Identifier: Apache-2.0
"""Sightings of sockets -> flows: who spoke to whom, on which port of a pod. Pure.

What a policy cannot be about is left out and counted: loopback, a pod's own address, multicast, protocols without ports, what the
kubelet of the pod's own node asks (every CNI lets it in). A denied connection is no evidence. An address is whose it was at the time.
A datagram to a port that nobody serves, from a program that serves one, is an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from policy.judge.sockets import INET, INET6, words
from policy.learn.evidence import Evidence
from policy.learn.network.addresses import Address, loopback, many, parsed
from policy.learn.network.directory import Directory, Labels, PortRange, carries, lasting
from policy.learn.sightings import ALLOWED, Sighting, Use, use
from policy.learn.workloads import LearntWorkload, workload
from schemas.cluster import NodeFact, PodFact, ServiceFact
from schemas.identity import Identity, Kind, workload_name
from schemas.operations import Access, Class, Operation

EPHEMERAL: Final = 32768
"""Linux's range of local ports (ip_local_port_range) begins here: from there on a port is whoever asks', not a service's."""
EPHEMERAL_LAST: Final = 65535
HOST_NAME: Final = re.compile(r"(?=.*[a-z_-])[a-z0-9_-]+(\.[a-z0-9_-]+)+")
"""Names that a rule may have: what is no host's name was escaped when it was heard, and a name of numbers alone is an address to some."""
_PROTOCOLS: Final = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}
KINDS: Final = ("pods", "node", "outside")
INNER: Final[Labels] = (("network", "pods"),)
"""Mark of a node by its own addresses in the network of its pods."""


class Party(msgspec.Struct, frozen=True, order=True):
    """An end of a flow. `kind`: `pods` (of `namespace`, with `labels`), `node` (`name`; `INNER`), `outside` (`name` is the address)."""

    kind: str
    namespace: str = ""
    name: str = ""
    labels: Labels = ()

    def __str__(self) -> str:
        if self.kind == "pods":
            return f"{self.namespace}/{self.name or ','.join('='.join(pair) for pair in self.labels)}"
        return f"node/{self.name}" if self.kind == "node" else self.name


class Subject(msgspec.Struct, frozen=True, order=True):
    """Whose policy: a workload of pods, whatever their containers."""

    workload: LearntWorkload
    labels: Labels


class FlowKey(msgspec.Struct, frozen=True, order=True):
    """A flow. `ingress`: the subject was spoken to, on `port` of its own; else `port` is the peer's."""

    subject: Subject
    ingress: bool
    peer: Party
    port: PortRange


class Flows(msgspec.Struct, kw_only=True):
    """`seen`: flows with their evidence. `left`: reason -> how many events no policy is about. `names`: names that pods asked
    for, by subject and program. `called`: flows to outside whose address had a name, and the evidence by name; "": without one. `unsure`: why some
    were not learnt."""

    seen: dict[FlowKey, Evidence] = {}
    subjects: dict[Subject, set[str]] = {}
    left: Counter[str] = msgspec.field(default_factory=Counter)
    unsure: Counter[str] = msgspec.field(default_factory=Counter)
    names: dict[tuple[Subject, str], set[str]] = {}
    called: dict[FlowKey, dict[str, Evidence]] = {}

    def fully_called(self, key: FlowKey) -> bool:
        """Whether each connection of the flow went to a name, and each name is one that a policy can have."""
        some = self.called.get(key, {})
        return bool(some) and all(HOST_NAME.fullmatch(name) for name in some)


def pods_workload(identity: Identity) -> LearntWorkload:
    """The workload of the pod, not of one container."""
    return msgspec.structs.replace(workload(identity), container="")


def flows(sightings: Iterable[Sighting], directory: Directory) -> Flows:
    """The flows of containers in pods, the same whatever the order."""
    return _Reading(directory).read(list(sightings))


def caught(found: Flows, directory: Directory) -> dict[tuple[str, str], tuple[str, ...]]:
    """By (namespace, owner) of a workload that was seen: workloads of which nothing was, whose pods carry its labels and come under its
    policy."""
    seen = {(subject.workload.namespace, subject.workload.owner) for subject in found.subjects}
    made: dict[tuple[str, str], set[str]] = {}
    for pod in directory.pods.values():
        owner = pods_workload(_as_identity(pod)).owner
        if pod.ended or pod.host_network or (pod.namespace, owner) in seen:
            continue
        for subject in found.subjects:
            if subject.workload.namespace == pod.namespace and carries(pod.labels, subject.labels):
                of = subject.workload.namespace, subject.workload.owner
                made.setdefault(of, set()).add(f"{pod.namespace}/{owner}")
    return {of: tuple(sorted(some)) for of, some in sorted(made.items())}


def _as_identity(pod: PodFact) -> Identity:
    return Identity(
        kind=Kind.CONTAINER, node=pod.node, uid=pod.uid, namespace=pod.namespace, pod=pod.name, owner=pod.owner, labels=pod.labels
    )  # fmt: skip


def learnable(one: Sighting) -> bool:
    """Whether a sighting of a socket is evidence; a question for a name is one, too."""
    if one.behaviour.operation is not Operation.DNS:
        return one.behaviour.cls is Class.NETWORK and use(one) is Use.EVIDENCE
    behaviour = one.behaviour
    return one.status == ALLOWED and not one.shadowed and behaviour.result == 0 and not behaviour.access & Access.UNTOLD


class _Reading:
    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.found = Flows()
        self._subjects: dict[tuple[str, str], Subject | None] = {}
        self._carried: dict[LearntWorkload, set[tuple[str, str]]] = {}
        self._served: dict[tuple[str, str], set[int]] = {}
        self._streams: set[tuple[str, str, str, int]] = set()
        self._behind: dict[bytes, tuple[list[Party], list[str]]] = {}

    def read(self, sightings: list[Sighting]) -> Flows:
        some = [one for one in sightings if learnable(one) and one.behaviour.family in (INET, INET6)]
        for one in some:
            self._carry(one.identity)
        for one in some:
            behaviour = one.behaviour
            said = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
            uid = one.identity.uid
            if behaviour.operation is Operation.BIND and "udp" in said and behaviour.port:
                self._served.setdefault((uid, behaviour.executable), set()).add(behaviour.port)
            if behaviour.operation is Operation.CONNECT and "tcp" in said:
                self._streams.add((uid, behaviour.executable, behaviour.address, behaviour.port))
        for one in some:
            self._one(one)
        return self.found

    def _carry(self, identity: Identity) -> None:
        if not identity.pod or not identity.orchestrated:
            return
        of = pods_workload(identity)
        mine = set(lasting(identity.labels.items()))
        known = self._carried.get(of)
        self._carried[of] = mine if known is None else known & mine

    def _subject(self, identity: Identity) -> Subject | None:
        """None for what is in no pod, and for pods in their node's network, which no policy reaches."""
        key = (identity.node, identity.uid)
        if key in self._subjects:
            return self._subjects[key]
        made: Subject | None = None
        of = pods_workload(identity)
        if of in self._carried and not self.directory.in_node_network(identity):
            labels = tuple(sorted(self._carried[of]))
            made = Subject(of, labels) if labels else None
        if made is not None:
            self.found.subjects.setdefault(made, set()).add(identity.pod)
        self._subjects[key] = made
        return made

    def _one(self, one: Sighting) -> None:
        behaviour, found = one.behaviour, self.found
        subject = self._subject(one.identity)
        if subject is None:
            why = "a process in no pod"
            if self.directory.in_node_network(one.identity):
                why = "a pod in its node's network"
            elif one.identity.pod:
                why = "a pod without labels, which no policy can select"
            found.left[why] += one.count
            return
        operation = behaviour.operation
        if operation is Operation.DNS:
            found.names.setdefault((subject, behaviour.executable), set()).add(behaviour.detail.rstrip(".").lower())
        if operation not in (Operation.CONNECT, Operation.SEND, Operation.ACCEPT, Operation.DNS):
            return
        address = parsed(behaviour.address)
        said = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
        protocol = next((_PROTOCOLS[name] for name in said if name in _PROTOCOLS), "")
        if address is None:
            found.left["no address"] += one.count
        elif loopback(address):
            found.left["loopback"] += one.count
        elif many(address):
            found.left["multicast and broadcast"] += one.count
        elif not protocol:
            found.left["a protocol without ports"] += one.count
        elif not behaviour.port:
            # connect(2) of a datagram socket to port 0 is how getaddrinfo(3) sorts addresses; nothing is sent.
            found.left["no port"] += one.count
        elif self._sorting(one, protocol):
            found.left["an address that was only compared (RFC 6724)"] += one.count
        else:
            self._known(one, subject, address, protocol)

    def _sorting(self, one: Sighting, protocol: str) -> bool:
        behaviour = one.behaviour
        return (
            protocol == "UDP" and behaviour.operation is Operation.CONNECT
            and (one.identity.uid, behaviour.executable, behaviour.address, behaviour.port) in self._streams
        )  # fmt: skip

    def _known(self, one: Sighting, subject: Subject, address: Address, protocol: str) -> None:
        behaviour, text = one.behaviour, str(address)
        ingress = behaviour.operation is Operation.ACCEPT
        ports = [behaviour.port]
        served = self._served.get((one.identity.uid, behaviour.executable))
        if not ingress and protocol == "UDP" and behaviour.port >= EPHEMERAL and served:
            ingress, ports = True, sorted(served)
        # Events lie between first and last; of an address that changed hands in between both ends are known.
        holders = [self.directory.holder(text, at) for at in dict.fromkeys((one.first, one.last))]
        for holder in {getattr(found, "key", None): found for found in holders}.values():
            for port in ports:
                self._flow(one, subject, ingress, holder, text, PortRange(protocol, port, port))

    def _flow(
        self, one: Sighting, subject: Subject, ingress: bool, holder: PodFact | ServiceFact | NodeFact | None, address: str, port: PortRange,
    ) -> None:  # fmt: skip
        found = self.found
        match holder:
            case PodFact() if holder is self.directory.pod_of(one.identity):
                found.left["a pod's own address"] += one.count
            case PodFact() if labels := self.directory.labels_of(holder):
                self._put(
                    one,
                    subject,
                    ingress,
                    Party("pods", holder.namespace, workload_name(holder.owner, holder.name), labels),
                    port,
                )
            case PodFact():
                found.unsure[f"pod {holder.namespace}/{holder.name} has no labels that select it"] += one.count
            case NodeFact() if ingress and holder.name == one.identity.node:
                found.left["the pod's own node, its kubelet's probes among it"] += one.count
            case NodeFact() if holder.name not in self.directory.nodes:
                found.unsure[f"node {holder.name} is gone"] += one.count
            case NodeFact():
                inner = INNER if self.directory.is_inner(address) else ()
                self._put(one, subject, ingress, Party("node", name=holder.name, labels=inner), port)
                behind = None if ingress else self.directory.at_node_port(port.protocol, port.first)
                if behind is not None:
                    # The caller's own node translates before policies are asked, another one does not.
                    self._service(
                        one, subject, behind[0], address, PortRange(port.protocol, behind[1].port, behind[1].port)
                    )
            case ServiceFact() if not ingress:
                self._service(one, subject, holder, address, port)
            case _ if other := self.directory.at_another_time(address, holder):
                found.unsure[f"{address} was a {other}'s at another time"] += one.count
            case _ if self.directory.among_pods(address):
                found.unsure["addresses in the network of pods, and who had them then is not known"] += one.count
            case _ if self.directory.among_services(address):
                found.unsure["addresses in the network of services, and who had them then is not known"] += one.count
            case _:
                self._put(one, subject, ingress, Party("outside", name=address), port)

    def _service(self, one: Sighting, subject: Subject, service: ServiceFact, address: str, port: PortRange) -> None:
        service = self.directory.now(service) if service.ended else service
        if service.selector:
            target = self.directory.target(service, port.first, port.protocol)
            if target is None:
                self.found.unsure[
                    f"service {service.namespace}/{service.name} has no port {port.first}/{port.protocol}"
                ] += one.count
                return
            if target.name and service.ended:
                self.found.unsure[
                    f"service {service.namespace}/{service.name} is gone, and the number of its port {target.name} is not known"
                ] += one.count
                return
            parties, unsure = self._selected(service)
            for party in parties:
                self._put(one, subject, False, party, target)
            for why in unsure:
                self.found.unsure[why] += one.count
            return
        behind = self.directory.outside_of(service) if not service.ended else []
        for where, number, protocol in behind:
            if protocol != port.protocol:
                continue
            match self.directory.holder(where, one.last):
                case PodFact() as pod if labels := self.directory.labels_of(pod):
                    peer = Party("pods", pod.namespace, workload_name(pod.owner, pod.name), labels)
                case NodeFact() as node if node.name in self.directory.nodes:
                    peer = Party("node", name=node.name)
                case PodFact() | NodeFact() as one_of_ours:
                    why = f"{one_of_ours.name}, behind service {service.namespace}/{service.name}, is gone or has no labels that select it"
                    self.found.unsure[why] += one.count
                    continue
                case _:
                    peer = Party("outside", name=where)
            self._put(one, subject, False, peer, PortRange(protocol, number, number))
        if not behind:
            self.found.unsure[f"nobody is known behind service {service.namespace}/{service.name}"] += one.count

    def _selected(self, service: ServiceFact) -> tuple[list[Party], list[str]]:
        """(whom a selector leads to, why that is not all). A pod in its node's network is that node: no engine knows it by its labels."""
        known = self._behind.get(service.key)
        if known is not None:
            return known
        pods, labels = self.directory.behind(service), lasting(service.selector.items())
        own = [pod for pod in pods if not pod.host_network]
        parties: set[Party] = set()
        unsure: list[str] = []
        if len(labels) == len(service.selector) and (own or not pods):
            parties.add(Party("pods", service.namespace, f"svc/{service.name}", labels))
        elif len(labels) < len(service.selector):
            # It selects one pod or run: the workload of that is who is let pass.
            parties |= {
                Party("pods", pod.namespace, workload_name(pod.owner, pod.name), mine)
                for pod in own
                if (mine := self.directory.labels_of(pod))
            }
        for pod in (one for one in pods if one.host_network):
            if pod.node in self.directory.nodes:
                parties.add(Party("node", name=pod.node))
            else:
                unsure.append(f"node {pod.node}, where {pod.namespace}/{pod.name} runs, is not known")
        if not parties and not unsure:
            unsure.append(
                f"service {service.namespace}/{service.name} selects one pod, and labels that outlast it are not known"
            )
        self._behind[service.key] = sorted(parties), unsure
        return sorted(parties), unsure

    def _put(self, one: Sighting, subject: Subject, ingress: bool, peer: Party, port: PortRange) -> None:
        key, found = FlowKey(subject, ingress, peer, port), self.found
        evidence = found.seen.get(key)
        if evidence is None:
            evidence = found.seen[key] = Evidence()
        told = (one.count, one.first, one.last, one.identity.uid, one.behaviour.executable)
        evidence.add(*told)
        if peer.kind == "outside" and not ingress:
            found.called.setdefault(key, {}).setdefault(one.behaviour.detail, Evidence()).add(*told)
