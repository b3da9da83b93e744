# SPDX-License-Identifier: Apache-2.0
"""Who had an address when, which pods stand behind a service, which port of theirs it reaches: the cluster, asked by the learner. Pure.

Neighbours: `policy.cluster_peers` decides whose an address was at a time; `schemas.cluster` has the facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

import msgspec

from policy.cluster_peers import ClusterPeers, Holder
from policy.cluster_pods import ClusterPods
from policy.learn.network.addresses import Address, Network, network_of, parsed, service_ranges
from policy.learn.workloads import OF_ONE_POD
from schemas.cluster import EndpointsFact, Fact, NamespaceFact, NodeFact, PodFact, ServiceFact, ServicePort
from schemas.identity import Identity, workload_name

Labels = tuple[tuple[str, str], ...]
"""Sorted pairs: a selector that can be a key."""
METADATA_NAME = "kubernetes.io/metadata.name"


class PortRange(msgspec.Struct, frozen=True, order=True):
    """Ports of a pod. `protocol`: TCP, UDP or SCTP. `name`: of a container's port, then the numbers are what it was seen to be (0:
    not known)."""

    protocol: str
    first: int
    last: int
    name: str = ""


def lasting(labels: Iterable[tuple[str, str]]) -> Labels:
    """Labels that name the workload, not one pod or revision of it."""
    return tuple(sorted((key, value) for key, value in labels if key not in OF_ONE_POD))


def _owner(pod: PodFact | Identity) -> tuple[str, str, str]:
    name = pod.name if isinstance(pod, PodFact) else pod.pod
    return pod.namespace, pod.owner.ref, workload_name(pod.owner, name)


def _leads(service: ServiceFact) -> tuple[Labels, list[tuple[int, str, str, int | str]]]:
    ports = sorted((one.port, one.protocol, one.name, one.target) for one in service.ports)
    return tuple(sorted(service.selector.items())), ports


def carries(labels: dict[str, str], wanted: Labels) -> bool:
    """Whether all of `wanted` are there."""
    return all(labels.get(key) == value for key, value in wanted)


def inner_addresses(node: NodeFact) -> list[Address]:
    """What a node itself has in the network of its pods: the tunnel's address (flannel) and the bridge's (host-local, as a default)."""
    return [network[at] for text in node.pod_networks if (network := network_of(text)) is not None for at in (0, 1)]


class Directory:
    """The facts, each once. `services`, `nodes`: those that are there now."""

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._peers = ClusterPeers()
        self.pods: dict[str, PodFact] = {}
        self._run = ClusterPods()
        self._in_node_network: dict[tuple[str, str, str], bool] = {}
        self.services: dict[tuple[str, str], ServiceFact] = {}
        self.nodes: dict[str, NodeFact] = {}
        self._namespaces: dict[str, NamespaceFact] = {}
        self._endpoints: dict[tuple[str, str], list[EndpointsFact]] = {}
        self._carried: dict[tuple[str, str, str], Labels] = {}
        self._node_ports: dict[tuple[str, int], tuple[ServiceFact, ServicePort]] = {}
        self._spaces: dict[str, list[PodFact]] = {}
        self._inner: dict[Address, NodeFact] = {}
        self._pod_networks: dict[tuple[int, int], set[Network]] = {}
        given: set[str] = set()
        for fact in facts:
            self._peers.put(fact.key, fact)
            match fact:
                case PodFact():
                    self.pods[fact.uid] = fact
                    self._run.put(fact.key, fact)
                    of = _owner(fact)
                    self._in_node_network[of] = fact.host_network and self._in_node_network.get(of, True)
                    self._spaces.setdefault(fact.namespace, []).append(fact)
                case ServiceFact() if fact.ended:
                    given |= {*fact.cluster_addresses}
                case ServiceFact():
                    given |= {*fact.cluster_addresses}
                    self.services[fact.namespace, fact.name] = fact
                    self._node_ports |= {
                        (one.protocol, one.node_port): (fact, one) for one in fact.ports if one.node_port
                    }
                case NodeFact():
                    if not fact.ended:
                        self.nodes[fact.name] = fact
                        self._inner |= dict.fromkeys(inner_addresses(fact), fact)
                    for text in fact.pod_networks:
                        if (network := network_of(text)) is not None:
                            self._pod_networks.setdefault((network.version, network.prefixlen), set()).add(network)
                case NamespaceFact():
                    self._namespaces[fact.name] = fact
                case EndpointsFact():
                    self._endpoints.setdefault((fact.namespace, fact.service), []).append(fact)
        self._service_ranges = service_ranges(given)

    def holder(self, address: str, at_ns: int) -> Holder | None:
        """Whose `address` was then; None when nobody of the cluster is known to have had it."""
        holder = self._peers.holder(address, at_ns / 1e9)
        if holder is not None or self.at_another_time(address):
            return holder
        found = parsed(address)
        return self._inner.get(found) if found is not None else None

    def pod_of(self, identity: Identity) -> PodFact | None:
        """The pod of a container; None when it is not known."""
        return self._run.of(identity)

    def in_node_network(self, identity: Identity) -> bool:
        """Whether the pod of a container is in its node's network; of one that is not known any more, whether its owner's pods are."""
        pod = self.pod_of(identity)
        return pod.host_network if pod is not None else self._in_node_network.get(_owner(identity), False)

    def labels_of(self, pod: PodFact) -> Labels:
        """What all pods of its owner carry."""
        if not self._carried:
            common: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
            for one in self.pods.values():
                mine = set(lasting(one.labels.items()))
                common[_owner(one)] = common.get(_owner(one), mine) & mine
            self._carried = {key: tuple(sorted(some)) for key, some in common.items()}
        return self._carried[_owner(pod)]

    def at_another_time(self, address: str, holder: Holder | None = None) -> str:
        """What had `address` at a time when `holder` had it not: a pod, a service, a node. Then it is no address outside; else ""."""
        last = self._peers.holder(address)
        if last is None or last is holder:
            return ""
        return "pod" if isinstance(last, PodFact) else "service" if isinstance(last, ServiceFact) else "node"

    def now(self, service: ServiceFact) -> ServiceFact:
        """The service of its name that is there now, if it leads to the same; else `service`."""
        anew = self.services.get((service.namespace, service.name))
        return anew if anew is not None and _leads(anew) == _leads(service) else service

    def behind(self, service: ServiceFact) -> list[PodFact]:
        """The pods that a service selects, in order; those that ended where it is nobody else."""
        wanted = tuple(service.selector.items())
        found = [one for one in self._spaces.get(service.namespace, ()) if carries(one.labels, wanted)]
        found.sort(key=lambda one: one.uid)
        return [one for one in found if not one.ended] or found

    def at_node_port(self, protocol: str, number: int) -> tuple[ServiceFact, ServicePort] | None:
        """The service, and the port of it, that every node has at a port of its own."""
        return self._node_ports.get((protocol, number))

    def exposed(self, namespace: str, labels: Labels) -> set[tuple[str, int]]:
        """(protocol, port) of pods with `labels` that a load balancer for anybody leads to."""
        found = set()
        for service in self.services.values():
            selector = lasting(service.selector.items())
            if service.public and service.namespace == namespace and selector and carries(dict(labels), selector):
                targets = [self.target(service, one.port, one.protocol) for one in service.ports]
                found |= {(one.protocol, one.first) for one in targets if one is not None}
        return found

    def outside_of(self, service: ServiceFact) -> list[tuple[str, int, str]]:
        """(address, port, protocol) behind a service that selects no pods."""
        slices = self._endpoints.get((service.namespace, service.name), ())
        return sorted(
            {(address, port.port, port.protocol) for one in slices for address in one.addresses for port in one.ports}
        )

    def target(self, service: ServiceFact, port: int, protocol: str) -> PortRange | None:
        """The pods' port behind a service's: what is enforced on, for addresses of services are translated first."""
        for one in service.ports:
            if (one.port, one.protocol) == (port, protocol):
                break
        else:
            return None
        if isinstance(one.target, int):
            number = one.target or one.port
            return PortRange(protocol, number, number)
        number = next(
            (known.port for piece in self._endpoints.get((service.namespace, service.name), ()) for known in piece.ports
             if (known.name, known.protocol) == (one.name, protocol)),
            0,
        )  # fmt: skip
        return PortRange(protocol, number, number, one.target)

    def namespace_labels(self, name: str) -> dict[str, str]:
        """With the one that Kubernetes gives every namespace."""
        known = self._namespaces.get(name)
        return {**(known.labels if known is not None else {}), METADATA_NAME: name}

    def node_addresses(self) -> list[str]:
        """Of every node that is known."""
        return sorted(
            {str(found) for node in self.nodes.values() for text in node.addresses if (found := parsed(text))}
        )

    def among_pods(self, address: str) -> bool:
        """Whether `address` is in the network of some node's pods."""
        found = parsed(address)
        return found is not None and any(
            ip_network((found, length), strict=False) in some for (version, length), some in self._pod_networks.items() if version == found.version
        )  # fmt: skip

    def among_services(self, address: str) -> bool:
        """Whether `address` is in a range that services have their addresses of."""
        found = parsed(address)
        return found is not None and any(found.version == one.version and found in one for one in self._service_ranges)

    def is_inner(self, address: str) -> bool:
        """Whether a node has `address` in the network of its pods."""
        return parsed(address) in self._inner
