# SPDX-License-Identifier: Apache-2.0
"""Network policies as they are written, of Kubernetes, Cilium or Calico, -> what the evaluator asks. Pure.

It reads documents, not what the generator had in mind, so that a mistake of a form is found. What it cannot judge (a Calico rule that
denies, HTTP rules, entities other than those named here) is a PolicyError: an answer would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_network
from typing import Any, Final

import msgspec

from policy.learn.network.addresses import Address, Network
from schemas.errors import PolicyError

_POD_NAMESPACE: Final = "io.kubernetes.pod.namespace"
_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")
_CALICO_TERM: Final = re.compile(r"\s*([\w./-]+)\s*==\s*(?:'([^']*)'|\"([^\"]*)\")\s*")


class PodEnd(msgspec.Struct, frozen=True, kw_only=True):
    """An end of a connection as an engine sees it. `node`: where a pod runs; `host`: the name of a node that is itself the end.
    `named`: numbers of the pod's named ports, by name and protocol. `names`: what it was asked for as, of an end outside. `stand_in`: any pod of a
    workload of which none is known."""

    namespace: str = ""
    labels: dict[str, str] = {}
    namespace_labels: dict[str, str] = {}
    addresses: tuple[Address, ...] = ()
    node: str = ""
    host: str = ""
    named: dict[tuple[str, str], int] = {}
    names: frozenset[str] = frozenset()
    uid: str = ""
    stand_in: bool = False


PeerTest = Callable[[PodEnd], bool]
PortTest = Callable[[PodEnd, str, int], bool]


class WrittenRule(msgspec.Struct, frozen=True):
    """Both hold for a connection that it lets pass."""

    peer: PeerTest
    port: PortTest


class WrittenPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`ingress`, `egress`: None where the policy does not speak of that direction."""

    name: str
    selects: PeerTest
    ingress: tuple[WrittenRule, ...] | None
    egress: tuple[WrittenRule, ...] | None


def written(document: Mapping[str, Any]) -> WrittenPolicy:
    """The policy of one document. PolicyError for a kind or a field that is not understood."""
    version = str(document.get("apiVersion", ""))
    kind = str(document.get("kind", ""))
    try:
        if (version, kind) == ("networking.k8s.io/v1", "NetworkPolicy"):
            return _kubernetes(document)
        if (version, kind) == ("cilium.io/v2", "CiliumNetworkPolicy"):
            return _cilium(document)
        if (version, kind) == ("projectcalico.org/v3", "NetworkPolicy"):
            return _calico(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"expected a whole {kind}, got one that lacks or mistypes {error}", ()) from error
    raise PolicyError(
        f"expected a NetworkPolicy, a CiliumNetworkPolicy or one of Calico's, got `{kind}` of `{version}`", ()
    )


def _kubernetes(document: Mapping[str, Any]) -> WrittenPolicy:
    spec, namespace = document["spec"], document["metadata"].get("namespace", "default")
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    chosen = _selector(spec.get("podSelector") or {})

    def rule(entry: Mapping[str, Any], way: str) -> WrittenRule:
        peers = entry.get(way)
        tests = [_kubernetes_peer(peer, namespace) for peer in peers or ()]
        ports = [_port(one) for one in entry.get("ports") or ()]
        return WrittenRule(_any(tests) if peers else _everybody, _any_port(ports) if ports else _every_port)

    return WrittenPolicy(
        name=f"{namespace}/{document['metadata']['name']}", selects=_pods(namespace, chosen),
        ingress=tuple(rule(entry, "from") for entry in spec.get("ingress") or ()) if "Ingress" in types else None,
        egress=tuple(rule(entry, "to") for entry in spec.get("egress") or ()) if "Egress" in types else None,
    )  # fmt: skip


def _kubernetes_peer(peer: Mapping[str, Any], namespace: str) -> PeerTest:
    if "ipBlock" in peer:
        return _block(peer["ipBlock"]["cidr"], peer["ipBlock"].get("except") or ())
    pods = _selector(peer.get("podSelector") or {})
    if "namespaceSelector" not in peer:
        return _pods(namespace, pods)
    spaces = _selector(peer["namespaceSelector"] or {})
    return lambda end: bool(end.namespace) and not end.host and spaces(end.namespace_labels) and pods(end.labels)


def _cilium(document: Mapping[str, Any]) -> WrittenPolicy:
    spec, namespace = document["spec"], document["metadata"].get("namespace", "default")
    chosen = _selector(_bare(spec["endpointSelector"]))

    def peers(entry: Mapping[str, Any], way: str) -> PeerTest:
        tests: list[PeerTest] = []
        known = {"toPorts"}
        for name, value in entry.items():
            if name == f"{way}Endpoints":
                tests += [_cilium_endpoint(_bare(one), namespace) for one in value]
            elif name == f"{way}CIDRSet":
                # Cilium's addresses never mean endpoints or nodes that it manages.
                tests += [_outside(_block(one["cidr"], one.get("except") or ())) for one in value]
            elif name == f"{way}Entities" and set(value) <= {"host", "remote-node"}:
                tests.append(lambda end: bool(end.host))
            elif name == f"{way}FQDNs":
                # By exact name alone; what a pattern would match is not guessed.
                tests.append(_called(frozenset(_text(one["matchName"]) for one in value if "matchName" in one)))
            elif name not in known:
                raise PolicyError(
                    f"expected endpoints, CIDR sets, names, host and remote-node, got `{name}`: {value}", ()
                )
        return _any(tests) if tests else _everybody

    def rules(entries: Iterable[Mapping[str, Any]], way: str) -> tuple[WrittenRule, ...]:
        # An empty rule lets nobody pass, and makes the direction denied.
        return tuple(
            WrittenRule(peers(entry, way), _any_port([_port(port) for some in entry["toPorts"] for port in some["ports"]]) if entry.get("toPorts") else _every_port)
            for entry in entries if entry
        )  # fmt: skip

    return WrittenPolicy(
        name=f"{namespace}/{document['metadata']['name']}", selects=_pods(namespace, chosen),
        ingress=rules(spec["ingress"], "from") if spec.get("ingress") else None,
        egress=rules(spec["egress"], "to") if spec.get("egress") else None,
    )  # fmt: skip


def _bare(selector: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "matchLabels": {key.removeprefix("k8s:"): value for key, value in (selector.get("matchLabels") or {}).items()}
    }


def _cilium_endpoint(selector: Mapping[str, Any], namespace: str) -> PeerTest:
    labels = dict(selector["matchLabels"])
    where = labels.pop(_POD_NAMESPACE, namespace)
    return _pods(where, _selector({"matchLabels": labels}))


def _calico(document: Mapping[str, Any]) -> WrittenPolicy:
    spec, namespace = document["spec"], document["metadata"].get("namespace", "default")

    def peer(side: Mapping[str, Any]) -> PeerTest:
        if "nets" in side:
            tests = [_block(network, side.get("notNets") or ()) for network in side["nets"]]
            return _any(tests)
        pods = _expression(side["selector"]) if "selector" in side else _everything
        if "namespaceSelector" not in side:
            return _pods(namespace, pods) if "selector" in side else _everybody
        spaces = _expression(side["namespaceSelector"])
        return lambda end: bool(end.namespace) and not end.host and spaces(end.namespace_labels) and pods(end.labels)

    def rule(entry: Mapping[str, Any], ingress: bool) -> WrittenRule:
        if entry["action"] != "Allow":
            raise PolicyError(f"expected Calico rules that allow, got `{entry['action']}`", ())
        destination = entry.get("destination") or {}
        side = (entry.get("source") or {}) if ingress else destination
        return WrittenRule(peer(side), _calico_ports(entry.get("protocol"), destination.get("ports")))

    types = spec.get("types") or ["Ingress"]
    return WrittenPolicy(
        name=f"{namespace}/{document['metadata']['name']}", selects=_pods(namespace, _expression(spec.get("selector", "all()"))),
        ingress=tuple(rule(entry, True) for entry in spec.get("ingress") or ()) if "Ingress" in types else None,
        egress=tuple(rule(entry, False) for entry in spec.get("egress") or ()) if "Egress" in types else None,
    )  # fmt: skip


def _calico_ports(protocol: str | None, ports: list[int | str] | None) -> PortTest:
    if not ports:
        return lambda end, spoken, number: protocol is None or protocol == spoken
    tests = []
    for port in ports:
        first, _, last = str(port).partition(":")
        entry: dict[str, Any] = {"protocol": protocol, "port": int(first) if first.isdigit() else port}
        tests.append(_port(entry | ({"endPort": int(last)} if last else {})))
    return _any_port(tests)


def _expression(text: str) -> Callable[[Mapping[str, str]], bool]:
    if text.strip() in ("", "all()"):
        return _everything
    wanted: dict[str, str] = {}
    for term in text.split("&&"):
        match = _CALICO_TERM.fullmatch(term)
        if match is None:
            raise PolicyError(f"expected terms such as `app == 'web'`, got `{term.strip()}`", ())
        wanted[match[1]] = match[2] if match[2] is not None else match[3]
    return lambda labels: all(labels.get(key) == value for key, value in wanted.items())


def _selector(selector: Mapping[str, Any]) -> Callable[[Mapping[str, str]], bool]:
    wanted = {_text(key): _text(value) for key, value in (selector.get("matchLabels") or {}).items()}
    conditions = [
        (_text(one["key"]), _text(one["operator"]), frozenset(map(_text, one.get("values") or ())))
        for one in selector.get("matchExpressions") or ()
    ]
    for _, operator, _ in conditions:
        if operator not in _OPERATORS:
            raise PolicyError(f"expected In, NotIn, Exists or DoesNotExist, got `{operator}`", ())

    def holds(labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in wanted.items()) and all(
            _condition(labels, *one) for one in conditions
        )

    return holds


def _condition(labels: Mapping[str, str], key: str, operator: str, values: frozenset[str]) -> bool:
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels


def _pods(namespace: str, labels: Callable[[Mapping[str, str]], bool]) -> PeerTest:
    return lambda end: not end.host and end.namespace == namespace and labels(end.labels)


def _block(cidr: str, out: Iterable[str]) -> PeerTest:
    network = ip_network(_text(cidr), strict=False)
    without = [ip_network(_text(text), strict=False) for text in out]

    def holds(end: PodEnd) -> bool:
        return any(
            _inside(address, network) and not any(_inside(address, one) for one in without) for address in end.addresses
        )

    return holds


def _inside(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _outside(test: PeerTest) -> PeerTest:
    return lambda end: not end.namespace and not end.host and test(end)


def _port(entry: Mapping[str, Any]) -> PortTest:
    port, protocol = entry.get("port"), entry.get("protocol", "TCP")
    last = entry.get("endPort")
    if (
        not isinstance(port, int | str | None)
        or not isinstance(last, int | None)
        or not isinstance(protocol, str | None)
    ):
        raise TypeError(f"the port {port!r:.80}")
    if isinstance(port, str) and port.isdigit():
        port = int(port)
    if port is None:
        return lambda end, spoken, number: protocol in (None, spoken)
    if isinstance(port, str):
        name = port
        return lambda end, spoken, number: protocol in (None, spoken) and end.named.get((name, spoken)) == number
    first = port
    return lambda end, spoken, number: protocol in (None, spoken) and first <= number <= (last or first)


def _text(value: Any) -> str:
    """A word as it is written; a number or a list is a mistake that an engine would refuse."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80}")
    return value


def _any(tests: list[PeerTest]) -> PeerTest:
    return lambda end: any(test(end) for test in tests)


def _any_port(tests: list[PortTest]) -> PortTest:
    return lambda end, spoken, number: any(test(end, spoken, number) for test in tests)


def _everybody(end: PodEnd) -> bool:
    return True


def _called(names: frozenset[str]) -> PeerTest:
    return lambda end: not end.namespace and not end.host and not names.isdisjoint(end.names)


def _every_port(end: PodEnd, spoken: str, number: int) -> bool:
    return True


def _everything(labels: Mapping[str, str]) -> bool:
    return True
