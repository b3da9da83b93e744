# SPDX-License-Identifier: Apache-2.0
"""What nodes were seen to speak to -> KubeArmorNetworkPolicy with a node selector: the firewall of a host. Pure.

A firewall of addresses and ports knows no pods. Every rule is what the judge will be asked about, the peer's port on the way out, the own
port on the way in; the replay by that judge decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from policy.judge.sockets import INET, INET6, words
from policy.learn.documents import MANAGED, checked
from policy.learn.evidence import Evidence
from policy.learn.network.addresses import loopback, parsed, summarised, without_private
from policy.learn.network.directory import PortRange
from policy.learn.network.flows import learnable
from policy.learn.network.intermediate import merged_ports
from policy.learn.replay import TrainingReplay
from policy.learn.sightings import Sighting
from policy.learn.workloads import LearntWorkload
from schemas.behaviour import Behaviour
from schemas.errors import PolicyError
from schemas.identity import Kind
from schemas.operations import Operation
from schemas.policy import API_VERSION

_OUT: Final = (Operation.CONNECT, Operation.SEND, Operation.DNS)
_LOOPBACK: Final = {4: "127.0.0.0/8", 6: "::1/128"}


class HostFirewall(msgspec.Struct, frozen=True, kw_only=True):
    """One node's. `sightings`: what it was learnt from and replayed on."""

    node: str
    name: str
    body: dict[str, Any]
    evidence: Evidence
    sightings: int


def firewalls(sightings: Iterable[Sighting]) -> list[HostFirewall]:
    """One for each node of which connections were seen. PolicyError when one would deny its own evidence."""
    nodes: dict[tuple[str, str], list[Sighting]] = {}
    for one in sightings:
        inet = one.behaviour.family in (INET, INET6)
        if one.identity.kind is not Kind.CONTAINER and inet and _sends(one.behaviour) and learnable(one):
            nodes.setdefault((one.identity.cluster, one.identity.node), []).append(one)
    made = []
    for (cluster, node), some in sorted(nodes.items()):
        body, evidence = _body(cluster, node, some)
        if "ingress" not in body["spec"] and "egress" not in body["spec"]:
            continue
        left = next(TrainingReplay([checked(body)]).denied(some), None)
        if left is not None:
            raise PolicyError(
                f"expected the firewall learnt for {node} to allow what it was learnt from, it would deny {left.behaviour.operation.name.lower()} "
                f"of {left.behaviour.address} port {left.behaviour.port}; this is a bug in Hauberk", (),
            )  # fmt: skip
        made.append(
            HostFirewall(node=node, name=body["metadata"]["name"], body=body, evidence=evidence, sightings=len(some))
        )
    return made


def _sends(behaviour: Behaviour) -> bool:
    """A datagram socket that is connected to port 0 sends nothing: getaddrinfo(3) compares addresses so."""
    return behaviour.operation is not Operation.CONNECT or bool(behaviour.port) or not _protocol(behaviour)


def _protocol(behaviour: Behaviour) -> str:
    said = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
    return next((name.upper() for name in ("tcp", "udp", "sctp") if name in said), "")


def _body(cluster: str, node: str, some: list[Sighting]) -> tuple[dict[str, Any], Evidence]:
    sides: dict[str, dict[str, set[PortRange]]] = {"ingress": {}, "egress": {}}
    whole = Evidence()
    for one in some:
        behaviour = one.behaviour
        side = "ingress" if behaviour.operation is Operation.ACCEPT else "egress" if behaviour.operation in _OUT else ""
        address = parsed(behaviour.address)
        if not side or address is None:
            continue
        whole.add(one.count, one.first, one.last, one.identity.uid, behaviour.executable)
        if loopback(address):
            sides[side].setdefault(_LOOPBACK[address.version], set())
            continue
        protocol = _protocol(behaviour)
        ports = sides[side].setdefault(str(address), set())
        # Without a protocol that has ports, a rule is on the address alone.
        ports.add(PortRange(protocol, behaviour.port if protocol else 0, behaviour.port if protocol else 0))
    name = LearntWorkload(cluster, "", "Node", "firewall", "", node=node).policy_name
    spec: dict[str, Any] = {
        "severity": 5,
        "action": "Allow",
        "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node}},
    }
    for side, word in (("ingress", "from"), ("egress", "to")):
        rules = _rules(sides[side], word)
        if rules:
            spec[side] = rules
    metadata = {"name": name, "labels": dict(MANAGED)}
    return {"apiVersion": API_VERSION, "kind": "KubeArmorNetworkPolicy", "metadata": metadata, "spec": spec}, whole


def _rules(where: dict[str, set[PortRange]], word: str) -> list[dict[str, Any]]:
    same: dict[tuple[PortRange, ...], list[str]] = {}
    for address, ports in where.items():
        whole = any(not port.protocol for port in ports)
        same.setdefault(() if whole else merged_ports(ports), []).append(address)
    made = []
    for spans, some in sorted(same.items()):
        networks = [text for text in some if "/" in text]
        networks += [part for network in summarised(some) for part in without_private(network)]
        rule: dict[str, Any] = {word: [{"ipBlock": {"cidr": network}} for network in networks]}
        made.append(rule | ({"ports": [_port(port) for port in spans]} if spans else {}))
    return made


def _port(port: PortRange) -> dict[str, Any]:
    made: dict[str, Any] = {"port": port.first}
    if port.last > port.first:
        made["endPort"] = port.last
    return made | {"protocol": port.protocol}
