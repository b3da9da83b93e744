# SPDX-License-Identifier: Apache-2.0
"""The intermediate form as Kubernetes, Cilium and Calico write it. Pure; each document as plain data, keys in the order people read.

Kubernetes: `networking.k8s.io/v1`. Cilium: `cilium.io/v2`, where addresses never mean pods or nodes of the cluster, so nodes are the
entities `host` and `remote-node`, and names need the rule that lets Cilium's proxy see the answers. Calico: `projectcalico.org/v3`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from policy.learn.documents import MANAGED
from policy.learn.network.addresses import excluded
from policy.learn.network.directory import METADATA_NAME, Labels, PortRange
from policy.learn.network.intermediate import ConnectPolicy, ConnectRule, RulePeer

_POD_NAMESPACE: Final = "k8s:io.kubernetes.pod.namespace"


def kubernetes(one: ConnectPolicy) -> dict[str, Any]:
    """NetworkPolicy."""

    def peers(direction: str, rules: list[RulePeer]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for peer in rules:
            if peer.kind == "pods":
                entry: dict[str, Any] = {}
                if peer.namespace != one.namespace:
                    entry["namespaceSelector"] = {"matchLabels": {METADATA_NAME: peer.namespace}}
                found.append(entry | {"podSelector": {"matchLabels": dict(peer.labels)}})
            found += [{"ipBlock": _block(network)} for network in peer.networks]
        return found

    def rules(direction: str, some: Iterable[ConnectRule]) -> list[dict[str, Any]]:
        return [
            {direction: peers(direction, same), "ports": [_kubernetes_port(port) for port in ports]}
            for ports, same in _by_ports(some)
            if any(peer.kind != "name" for peer in same)
        ]

    # An empty list and none are one to Kubernetes; an engine that takes policies from elsewhere than the API server let all pass for `[]`
    # (kube-network-policies 0.8.0).
    sides = {
        name: some
        for name, some in (("ingress", rules("from", one.ingress)), ("egress", rules("to", one.egress)))
        if some
    }
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _metadata(one),
        "spec": {"podSelector": {"matchLabels": dict(one.subject.labels)}, "policyTypes": ["Ingress", "Egress"], **sides},
    }  # fmt: skip


def _kubernetes_port(port: PortRange) -> dict[str, Any]:
    made: dict[str, Any] = {"protocol": port.protocol, "port": port.name or port.first}
    return made | {"endPort": port.last} if port.last > port.first else made


def _block(network: str) -> dict[str, Any]:
    out = excluded(network)
    return {"cidr": network} | ({"except": out} if out else {})


def cilium(one: ConnectPolicy) -> dict[str, Any]:
    """CiliumNetworkPolicy. An empty rule denies: a direction without rules would not be looked at."""

    def entries(way: str, peer: RulePeer) -> list[dict[str, Any]]:
        match peer.kind:
            case "pods":
                labels = {f"k8s:{key}": value for key, value in peer.labels}
                return [{f"{way}Endpoints": [{"matchLabels": {_POD_NAMESPACE: peer.namespace, **labels}}]}]
            case "nodes":
                return [{f"{way}Entities": ["host", "remote-node"]}]
            case "name":
                return [{f"{way}FQDNs": [{"matchName": peer.name}]}]
        # What was connected to by name alone is let through by name: its addresses may be another's tomorrow.
        networks = peer.nameless if peer.called else peer.networks
        return [{f"{way}CIDRSet": [_block(network) for network in networks]}] if networks else []

    def ports(some: Iterable[PortRange], names: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for port in some:
            made: dict[str, Any] = {"port": port.name or str(port.first)}
            if port.last > port.first:
                made["endPort"] = port.last
            found.append(made | {"protocol": port.protocol})
        made = {"ports": found}
        return [made | {"rules": {"dns": [{"matchPattern": "*"}]}} if names else made]

    def rules(way: str, some: Iterable[ConnectRule]) -> list[dict[str, Any]]:
        named = any(rule.peer.kind == "name" for rule in some)
        found: list[dict[str, Any]] = [
            entry | {"toPorts": ports(rule.ports, named and _asks_for_names(rule))}
            for rule in some
            for entry in entries(way, rule.peer)
        ]
        return found or [{}]

    return {
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": _metadata(one),
        "spec": {
            "endpointSelector": {"matchLabels": {f"k8s:{key}": value for key, value in one.subject.labels}},
            "ingress": rules("from", one.ingress), "egress": rules("to", one.egress),
        },
    }  # fmt: skip


def _asks_for_names(rule: ConnectRule) -> bool:
    return any(port.name.startswith("dns") or port.first == 53 for port in rule.ports)


def calico(one: ConnectPolicy) -> dict[str, Any]:
    """Calico's NetworkPolicy: one protocol for each rule, ranges as `first:last`."""

    def rules(side: str, some: Iterable[ConnectRule]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for rule in some:
            if rule.peer.kind == "name":
                continue
            for protocol in dict.fromkeys(port.protocol for port in rule.ports):
                ports = [_calico_port(port) for port in rule.ports if port.protocol == protocol]
                made: dict[str, Any] = {"action": "Allow", "protocol": protocol}
                peer = _calico_peer(rule.peer)
                if side == "source":
                    made |= {"source": peer, "destination": {"ports": ports}}
                else:
                    made["destination"] = peer | {"ports": ports}
                found.append(made)
        return found

    return {
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": _metadata(one),
        "spec": {
            "selector": _expression(one.subject.labels), "types": ["Ingress", "Egress"],
            "ingress": rules("source", one.ingress), "egress": rules("destination", one.egress),
        },
    }  # fmt: skip


def _calico_peer(peer: RulePeer) -> dict[str, Any]:
    if peer.kind == "pods":
        return {
            "namespaceSelector": _expression(((METADATA_NAME, peer.namespace),)),
            "selector": _expression(peer.labels),
        }
    made: dict[str, Any] = {"nets": list(peer.networks)}
    out = [network for whole in peer.networks for network in excluded(whole)]
    return made | {"notNets": out} if out else made


def _calico_port(port: PortRange) -> int | str:
    if port.name:
        return port.name
    return port.first if port.first == port.last else f"{port.first}:{port.last}"


def _expression(labels: Labels) -> str:
    return " && ".join(f"{key} == '{value}'" for key, value in labels) or "all()"


def _by_ports(rules: Iterable[ConnectRule]) -> list[tuple[tuple[PortRange, ...], list[RulePeer]]]:
    """Peers that may use the same ports are one rule."""
    found: dict[tuple[PortRange, ...], list[RulePeer]] = {}
    for rule in rules:
        if rule.peer.kind != "name":
            found.setdefault(rule.ports, []).append(rule.peer)
    return sorted(found.items())


def _metadata(one: ConnectPolicy) -> dict[str, Any]:
    return {"name": one.name, "namespace": one.namespace, "labels": dict(MANAGED)}


FORMS: Final[dict[str, Callable[[ConnectPolicy], dict[str, Any]]]] = {
    "NetworkPolicy": kubernetes,
    "CiliumNetworkPolicy": cilium,
    "CalicoNetworkPolicy": calico,
}
"""By the word of `hauberk discover --policy`."""
