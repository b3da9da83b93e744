# SPDX-License-Identifier: Apache-2.0
"""Flows -> one policy for each workload, in no CNI's words: the intermediate form that all written forms are made of. Pure.

A flow between two workloads is in the policies of both: each of them decides. Questions for names go to the cluster's own DNS over UDP
and TCP, whichever was seen. Addresses outside become few networks; more evidence only ever widens a rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec

from policy.learn.evidence import Evidence
from policy.learn.network.addresses import INTERNET, exactly, parsed, private, summarised
from policy.learn.network.directory import Directory, Labels, PortRange, carries, inner_addresses
from policy.learn.network.flows import EPHEMERAL, EPHEMERAL_LAST, HOST_NAME, FlowKey, Flows, Party, Subject
from schemas.cluster import ServiceFact

RANGE_AT: Final = 4
"""So many ports side by side, or above 32767, of one peer are told as a range."""
_DNS: Final = 53


class RulePeer(msgspec.Struct, frozen=True, order=True):
    """`pods`: of `namespace` with `labels`. `nodes`: `networks` are theirs. `networks`: outside; `called`: some of it was
    connected to by name alone, and forms that know names need but `nameless` of it. `name`: a DNS name outside, for such forms."""

    kind: str
    namespace: str = ""
    labels: Labels = ()
    networks: tuple[str, ...] = ()
    name: str = ""
    called: bool = False
    nameless: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "pods":
            return f"pods {self.namespace}: {','.join('='.join(pair) for pair in self.labels)}"
        return f"{self.kind} {self.name or ', '.join(self.networks)}"


class ConnectRule(msgspec.Struct, frozen=True, kw_only=True):
    """Who, on which ports, and what says so."""

    peer: RulePeer
    ports: tuple[PortRange, ...]
    evidence: Evidence


class ConnectPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """All that the pods with `subject.labels` may: what is in no rule is denied, in both directions. `dns`: they ask for names."""

    subject: Subject
    ingress: tuple[ConnectRule, ...]
    egress: tuple[ConnectRule, ...]
    dns: bool = False

    @property
    def name(self) -> str:
        """An RFC 1123 name, the same in every run."""
        return self.subject.workload.policy_name

    @property
    def namespace(self) -> str:
        """Where its pods are."""
        return self.subject.workload.namespace

    @property
    def rules(self) -> tuple[ConnectRule, ...]:
        """Of both directions."""
        return self.ingress + self.egress


def policies(found: Flows, directory: Directory) -> list[ConnectPolicy]:
    """One for each workload whose sockets were seen, in order."""
    table: dict[tuple[Subject, bool], dict[Party, dict[PortRange, Evidence]]] = {}
    spaces: dict[str, list[Subject]] = {}
    for subject in found.subjects:
        spaces.setdefault(subject.workload.namespace, []).append(subject)
    for key, evidence in found.seen.items():
        for subject, ingress, peer, port in [
            (key.subject, key.ingress, key.peer, key.port),
            *_mirrored(key, spaces.get(key.peer.namespace, ())),
        ]:
            ports = table.setdefault((subject, ingress), {}).setdefault(_plain(peer), {})
            ports.setdefault(port, Evidence()).merge(evidence)
    names = _names(found)
    called: dict[Subject, set[Party]] = {}
    for key in found.seen:
        if key.peer.kind == "outside" and not key.ingress:
            called.setdefault(key.subject, set()).add(key.peer)
    for key in found.seen:
        if key.peer.kind == "outside" and not key.ingress and not found.fully_called(key):
            called[key.subject].discard(key.peer)
    resolvers: dict[str, list[ServiceFact]] = {}
    for service in directory.services.values():
        if _serves_names(service):
            resolvers.setdefault(service.namespace, []).append(service)
    made = []
    for subject in sorted(found.subjects):
        egress = dict(table.get((subject, False), {}))
        dns = _whole_dns(egress, directory, resolvers)
        rules = _rules(egress, directory, called.get(subject, ()))
        rules += [ConnectRule(peer=RulePeer("name", name=name), ports=ports, evidence=evidence)
                  for name, (ports, evidence) in sorted(names.get(subject, {}).items())]  # fmt: skip
        exposed = directory.exposed(subject.workload.namespace, subject.labels)
        arriving = _rules(table.get((subject, True), {}), directory, exposed=exposed)
        made.append(ConnectPolicy(
            subject=subject, ingress=tuple(arriving), egress=tuple(rules), dns=dns,
        ))  # fmt: skip
    return made


def _plain(peer: Party) -> Party:
    """Pods by their labels alone: a service and the owner that stands behind it may be the same."""
    return Party("pods", peer.namespace, "", peer.labels) if peer.kind == "pods" else peer


def _mirrored(key: FlowKey, subjects: Iterable[Subject]) -> Iterator[tuple[Subject, bool, Party, PortRange]]:
    if key.peer.kind != "pods":
        return
    mine = Party("pods", key.subject.workload.namespace, "", key.subject.labels)
    for other in subjects:
        if carries(dict(other.labels), key.peer.labels):
            yield other, not key.ingress, mine, key.port


def _whole_dns(
    egress: dict[Party, dict[PortRange, Evidence]], directory: Directory, resolvers: dict[str, list[ServiceFact]]
) -> bool:
    """Whoever asks the cluster's DNS, or a resolver of nodes or outside, may do so over both protocols: answers that are too long come
    over TCP."""
    asks = False
    for peer, ports in egress.items():
        asked = ports.get(PortRange("UDP", _DNS, _DNS)) if peer.kind != "pods" else None
        if asked is not None:
            ports.setdefault(PortRange("TCP", _DNS, _DNS), asked)
        some = resolvers.get(peer.namespace, ()) if peer.kind == "pods" else ()
        for service in (one for one in some if carries(dict(peer.labels), tuple(one.selector.items()))):
            targets = [
                found for protocol in ("UDP", "TCP") if (found := directory.target(service, _DNS, protocol)) is not None
            ]
            if any(_same(port, target) for port in ports for target in targets):
                asks = True
                evidence = Evidence.of(ports.values())
                for target in targets:
                    if not any(_same(port, target) for port in ports):
                        ports[target] = evidence
    return asks


def _serves_names(service: ServiceFact) -> bool:
    return any(port.port == _DNS and port.protocol == "UDP" for port in service.ports) and bool(service.selector)


def _same(port: PortRange, target: PortRange) -> bool:
    return port.protocol == target.protocol and (port == target or port.first == target.first != 0)


def _rules(
    peers: dict[Party, dict[PortRange, Evidence]], directory: Directory, called: Collection[Party] = (), exposed: Collection[tuple[str, int]] = (),
) -> list[ConnectRule]:  # fmt: skip
    made: dict[tuple[RulePeer, tuple[PortRange, ...]], Evidence] = {}
    outside: dict[tuple[PortRange, ...], dict[str, Evidence]] = {}
    nodes: dict[PortRange, dict[tuple[str, bool], Evidence]] = {}
    anybody: dict[str, dict[PortRange, Evidence]] = {}
    whole = _ephemeral(port for peer, ports in peers.items() if peer.kind == "outside" for port in ports)
    for peer, ports in peers.items():
        if peer.kind == "pods":
            key = (RulePeer("pods", peer.namespace, peer.labels), merged_ports(ports))
            made.setdefault(key, Evidence()).merge(Evidence.of(ports.values()))
        elif peer.kind == "node":
            for port, evidence in ports.items():
                key_of = (peer.name, bool(peer.labels))
                nodes.setdefault(port, {}).setdefault(key_of, Evidence()).merge(evidence)
        else:
            if exposed and (internet := _internet(peer)):
                for port in [one for one in ports if (one.protocol, one.first) in exposed]:
                    anybody.setdefault(internet, {}).setdefault(port, Evidence()).merge(ports[port])
                ports = {
                    port: evidence for port, evidence in ports.items() if (port.protocol, port.first) not in exposed
                }
                if not ports:
                    continue
            known = tuple(
                dict.fromkeys(
                    port if port.last < EPHEMERAL else whole.get(port.protocol, port) for port in sorted(ports)
                )
            )
            some = outside.setdefault(merged_ports(known), {})
            some.setdefault(peer.name, Evidence()).merge(Evidence.of(ports.values()))
    for same, where in outside.items():
        networks = tuple(summarised(where))
        left = [name for name in where if Party("outside", name=name) not in called]
        there = RulePeer("networks", networks=networks)
        if len(left) < len(where):
            there = RulePeer("networks", networks=networks, called=True, nameless=tuple(summarised(left)))
        made.setdefault((there, same), Evidence()).merge(Evidence.of(where.values()))
    for network, by_port in anybody.items():
        key = (RulePeer("networks", networks=(network,)), merged_ports(by_port))
        made.setdefault(key, Evidence()).merge(Evidence.of(by_port.values()))
    by_nodes: dict[tuple[str, ...], dict[PortRange, Evidence]] = {}
    for port, names in nodes.items():
        by_nodes.setdefault(_node_networks(names, directory), {})[port] = Evidence.of(names.values())
    for networks, evidence_of in by_nodes.items():
        made[RulePeer("nodes", networks=networks), merged_ports(evidence_of)] = Evidence.of(evidence_of.values())
    return [
        ConnectRule(peer=peer, ports=ports, evidence=evidence)
        for (peer, ports), evidence in sorted(made.items(), key=lambda item: item[0])
    ]


def _internet(peer: Party) -> str:
    """All of the internet, for an address of it; "" for one that is not."""
    address = parsed(peer.name)
    return INTERNET[address.version] if address is not None and not private(address) else ""


def _node_networks(names: Iterable[tuple[str, bool]], directory: Directory) -> tuple[str, ...]:
    """Of (node, whether by an address in its pods' network). One node is that node; two are any: what runs in their networks is moved about.
    Addresses among those of pods are never widened."""
    some = set(names)
    plain = {name for name, inner in some if not inner}
    within = {name for name, inner in some if inner}
    texts = [text for name in plain for text in directory.nodes[name].addresses]
    if len(plain) > 1:
        texts = directory.node_addresses()
    chosen = directory.nodes if len(within) > 1 else within
    inner = [address for name in chosen for address in inner_addresses(directory.nodes[name])]
    return (*summarised(texts), *exactly(inner))


def _ephemeral(ports: Iterable[PortRange]) -> dict[str, PortRange]:
    seen: dict[str, set[int]] = {}
    for port in ports:
        if port.first >= EPHEMERAL and not port.name:
            seen.setdefault(port.protocol, set()).add(port.first)
    return {
        protocol: PortRange(protocol, EPHEMERAL, EPHEMERAL_LAST)
        for protocol, some in seen.items()
        if len(some) >= RANGE_AT
    }


def merged_ports(ports: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted, `RANGE_AT` or more side by side as one range, many ephemeral ones as all of them."""
    some = sorted(set(ports))
    whole = _ephemeral(some)
    plain: dict[str, list[tuple[int, int]]] = {}
    made = [port for port in some if port.name]
    for port in some:
        if not port.name:
            port = whole.get(port.protocol, port) if port.first >= EPHEMERAL else port
            plain.setdefault(port.protocol, []).append((port.first, port.last))
    for protocol, spans in plain.items():
        runs: list[list[int]] = []
        for first, last in sorted(set(spans)):
            if runs and first <= runs[-1][1] + 1:
                runs[-1][1] = max(last, runs[-1][1])
            else:
                runs.append([first, last])
        for first, last in runs:
            if last - first + 1 >= RANGE_AT:
                made.append(PortRange(protocol, first, last))
            else:
                made += [PortRange(protocol, port, port) for port in range(first, last + 1)]
    return tuple(sorted(made))


def _names(found: Flows) -> dict[Subject, dict[str, tuple[tuple[PortRange, ...], Evidence]]]:
    """What each workload connected to by name. Of a program whose answers were not heard: one that asked for one name outside alone, and
    spoke to the internet, spoke to that name."""
    seen: dict[tuple[Subject, str], dict[PortRange, Evidence]] = {}
    told: set[tuple[Subject, str]] = set()
    for key, called in found.called.items():
        for name, evidence in called.items():
            if name:
                told.update((key.subject, program) for program in evidence.sources)
            if HOST_NAME.fullmatch(name):
                seen.setdefault((key.subject, name), {}).setdefault(key.port, Evidence()).merge(evidence)
    made: dict[Subject, dict[str, tuple[tuple[PortRange, ...], Evidence]]] = {}
    for (subject, name), by_port in seen.items():
        made.setdefault(subject, {})[name] = (merged_ports(by_port), Evidence.of(by_port.values()))
    for (subject, program), names in found.names.items():
        if (subject, program) in told:
            continue
        outside = {
            name for name in names if "." in name and not name.endswith((".local", ".internal", ".arpa", ".svc"))
        }
        if len(outside) != 1:
            continue
        ports: dict[PortRange, Evidence] = {}
        for key, evidence in found.seen.items():
            if (
                key.subject == subject
                and not key.ingress
                and key.peer.kind == "outside"
                and evidence.sources == {program}
            ):
                address = parsed(key.peer.name)
                if address is not None and not private(address):
                    ports.setdefault(key.port, Evidence()).merge(evidence)
        if ports:
            made.setdefault(subject, {}).setdefault(outside.pop(), (merged_ports(ports), Evidence.of(ports.values())))
    return made
