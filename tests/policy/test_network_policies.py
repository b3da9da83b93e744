# SPDX-License-Identifier: Apache-2.0
"""Network policies learnt from connections: every flow that was seen passes in every form, what was not seen does not."""

from __future__ import annotations

import ipaddress
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.learn.network.addresses import MOST, summarised
from policy.learn.network.directory import Directory, PortRange
from policy.learn.network.evaluate import Evaluator, connectivity
from policy.learn.network.firewall import firewalls
from policy.learn.network.flows import Flows, caught, flows
from policy.learn.network.forms import FORMS
from policy.learn.network.intermediate import merged_ports, policies
from policy.learn.network.late import known_programs, set_apart
from policy.learn.network.written import PodEnd, written
from policy.learn.sightings import Sighting
from schemas.behaviour import Behaviour
from schemas.cluster import EndpointsFact, Fact, NamespaceFact, NodeFact, PodFact, ServiceFact, ServicePort
from schemas.errors import PolicyError
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation

SECOND = 10**9
HOUR = 3600 * SECOND
INET, INET6, STREAM, DGRAM, RAW = 2, 10, 1, 2, 3


def pod_fact(namespace: str, name: str, address: str, *, number: int = 1, node: str = "n1", **more: Any) -> PodFact:
    fields: dict[str, Any] = {
        "uid": f"uid-{namespace}-{name}-{number}", "namespace": namespace, "name": f"{name}-{number}", "node": node,
        "labels": {"app": name, "job-name": f"run-{number}"}, "owner": Owner("Deployment", name, namespace), "addresses": (address,),
        "started": 1.0,
    }  # fmt: skip
    return PodFact(**(fields | more))


WEB = pod_fact("shop", "web", "10.0.1.2")
WEB_TWO = pod_fact("shop", "web", "10.0.2.2", number=2, node="n2")
API = pod_fact("shop", "api", "10.0.1.3", addresses=("10.0.1.3", "fd00::13"))
DB = pod_fact("data", "db", "10.0.1.4")
DNS = pod_fact("kube-system", "coredns", "10.0.1.5", labels={"k8s-app": "kube-dns"})
AGENT = pod_fact("infra", "agent", "192.168.0.1", addresses=(), host_network=True)
FACTS: list[Fact] = [
    WEB, WEB_TWO, API, DB, DNS, AGENT,
    NodeFact(name="n1", addresses=("192.168.0.1",)), NodeFact(name="n2", addresses=("192.168.0.2", "fd00::2")),
    NodeFact(name="n3", addresses=("192.168.0.3",)), NamespaceFact(name="data", labels={"team": "data"}),
    # The port of the service is another than the pods'.
    ServiceFact(namespace="data", name="db", addresses=("10.96.0.4", "fd96::4"), ports=(ServicePort(5432, "TCP", "sql", 15432),), selector={"app": "db"}),
    ServiceFact(namespace="shop", name="api", addresses=("10.96.0.3",), ports=(ServicePort(80, "TCP", "http", "web"),), selector={"app": "api"}),
    EndpointsFact(namespace="shop", name="api-x", service="api", addresses=("10.0.1.3",), ports=(ServicePort(8080, "TCP", "http"),)),
    ServiceFact(namespace="kube-system", name="kube-dns", addresses=("10.96.0.10",), selector={"k8s-app": "kube-dns"},
                ports=(ServicePort(53, "UDP", "dns", 53), ServicePort(53, "TCP", "dns-tcp", 53))),
    ServiceFact(namespace="default", name="kubernetes", addresses=("10.96.0.1",), ports=(ServicePort(443, "TCP", "https", 6443),)),
    EndpointsFact(namespace="default", name="kubernetes", service="kubernetes", addresses=("192.168.0.1",), ports=(ServicePort(6443, "TCP", "https"),)),
]  # fmt: skip


def identity(of: PodFact, container: str = "app") -> Identity:
    return Identity(
        kind=Kind.CONTAINER, node=of.node, uid=f"c-{of.uid}-{container}", namespace=of.namespace, pod=of.name, pod_uid=of.uid,
        owner=of.owner, labels=of.labels, container_name=container, orchestrated=True,
    )  # fmt: skip


def socket(
    operation: Operation, address: str, port: int, *, kind: int = STREAM, by: str = "/usr/bin/app", **more: Any
) -> Behaviour:
    return Behaviour(
        operation=operation, access=Access(0), address=address, port=port, family=INET6 if ":" in address else INET, socket_type=kind,
        executable=by, parent="/init", **more,
    )  # fmt: skip


def seen(
    of: PodFact, operation: Operation, address: str, port: int, *, at: int = HOUR, last: int = 0, **more: Any
) -> Sighting:
    told = {name: more.pop(name) for name in ("status", "shadowed") if name in more}
    return Sighting(
        identity=identity(of),
        behaviour=socket(operation, address, port, **more),
        count=3,
        first=at,
        last=last or at,
        **told,
    )


CONNECT, ACCEPT, SEND, BIND, ASK = Operation.CONNECT, Operation.ACCEPT, Operation.SEND, Operation.BIND, Operation.DNS
SEEN = [
    seen(WEB, CONNECT, "10.96.0.4", 5432),  # a service of another namespace, port != targetPort
    seen(WEB, CONNECT, "10.96.0.3", 80),  # a named target port
    seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, detail="api.shop.svc.cluster.local"),
    seen(WEB, CONNECT, "10.0.1.4", 9000),  # headless: a pod's own address
    seen(WEB, CONNECT, "93.184.216.34", 443),
    seen(WEB, CONNECT, "fd00::13", 9100),  # dual stack: the same pod by its other address
    seen(WEB, CONNECT, "192.168.0.2", 10250),  # a node, and pods in its network
    seen(WEB, CONNECT, "10.96.0.1", 443),  # a service without pods: the API server
    seen(WEB, ACCEPT, "192.168.0.1", 8080),  # the kubelet of its own node
    seen(WEB, ACCEPT, "192.168.0.2", 8081),  # through a node port
    seen(WEB, ACCEPT, "192.168.0.3", 8081),
    seen(WEB, ACCEPT, "::ffff:10.0.1.3", 8080),
    seen(WEB, CONNECT, "127.0.0.1", 9), seen(WEB, CONNECT, "10.0.1.2", 8080), seen(WEB, CONNECT, "224.0.0.1", 5353, kind=DGRAM),
    seen(WEB, CONNECT, "10.9.9.9", 0, kind=RAW, protocol=1),
    seen(DB, BIND, "0.0.0.0", 8125, kind=DGRAM), seen(DB, SEND, "10.0.1.3", 41234, kind=DGRAM),  # an answer
    seen(AGENT, CONNECT, "10.0.1.2", 8080),
    seen(WEB, CONNECT, "10.66.0.1", 22, status="Deny"), seen(WEB, CONNECT, "10.66.0.2", 22, result=-13),
    seen(WEB, CONNECT, "10.66.0.3", 22, shadowed=True), seen(WEB, CONNECT, "10.66.0.4", 22, result=-111),
]  # fmt: skip


def learnt(
    sightings: list[Sighting], facts: list[Fact] = FACTS
) -> tuple[Flows, Directory, dict[str, list[dict[str, Any]]]]:
    directory = Directory(facts)
    found = flows(sightings, directory)
    made = policies(found, directory)
    return found, directory, {name: [form(one) for one in made] for name, form in FORMS.items()}


def copied(document: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(document))
    return made


def of(documents: list[dict[str, Any]], owner: str) -> dict[str, Any]:
    (found,) = [one for one in documents if one["metadata"]["name"].startswith(owner)]
    return found


def test_a_policy_of_kubernetes_says_it_as_its_engines_decide() -> None:
    _, _, made = learnt(SEEN)
    web = of(made["NetworkPolicy"], "web")
    assert web["spec"]["podSelector"] == {"matchLabels": {"app": "web"}}, "not the label of one run"
    assert web["spec"]["policyTypes"] == ["Ingress", "Egress"]
    data = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}},
        "podSelector": {"matchLabels": {"app": "db"}},
    }
    system = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    api = {"podSelector": {"matchLabels": {"app": "api"}}}
    assert sorted(web["spec"]["egress"], key=str) == sorted([
        {"to": [{"ipBlock": {"cidr": "93.184.216.34/32"}}], "ports": [{"protocol": "TCP", "port": 443}]},
        {"to": [{"ipBlock": {"cidr": "10.66.0.4/32"}}], "ports": [{"protocol": "TCP", "port": 22}]},  # refused by the far end alone
        {"to": [{"ipBlock": {"cidr": "192.168.0.1/32"}}], "ports": [{"protocol": "TCP", "port": 6443}]},
        {"to": [{"ipBlock": {"cidr": "192.168.0.2/32"}}, {"ipBlock": {"cidr": "fd00::2/128"}}], "ports": [{"protocol": "TCP", "port": 10250}]},
        {"to": [data], "ports": [{"protocol": "TCP", "port": 9000}, {"protocol": "TCP", "port": 15432}]},
        {"to": [api], "ports": [{"protocol": "TCP", "port": "web"}, {"protocol": "TCP", "port": 9100}]},
        {"to": [system], "ports": [{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}]},
    ], key=str)  # fmt: skip
    nodes = [{"ipBlock": {"cidr": text}} for text in ("192.168.0.1/32", "192.168.0.2/31", "fd00::2/128")]
    assert sorted(web["spec"]["ingress"], key=str) == sorted(
        [
            {"from": nodes, "ports": [{"protocol": "TCP", "port": 8081}]},
            {"from": [api], "ports": [{"protocol": "TCP", "port": 8080}]},
        ],
        key=str,
    )
    # Each end decides: the other workload's policy has it, too, with the pods' port.
    db = of(made["NetworkPolicy"], "db")
    shop = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    assert sorted(db["spec"]["ingress"], key=str) == sorted([
        {"from": [{**shop, "podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"protocol": "TCP", "port": 9000}, {"protocol": "TCP", "port": 15432}]},
        {"from": [{**shop, "podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"protocol": "UDP", "port": 8125}]},
    ], key=str)  # fmt: skip
    assert "egress" not in db["spec"], "and not an empty list: a real engine let all pass for it"


@pytest.mark.parametrize("form", list(FORMS))
def test_every_flow_passes_and_what_was_denied_or_never_seen_does_not(form: str) -> None:
    found, directory, made = learnt(SEEN)
    check = connectivity(found, directory, made[form])
    assert (check.refused, check.flows) == ((), len(found.seen))
    assert check.unsure == {}
    assert check.left == {
        "loopback": 3, "a pod's own address": 3, "multicast and broadcast": 3, "a protocol without ports": 3,
        "the pod's own node, its kubelet's probes among it": 3, "a pod in its node's network": 3,
    }  # fmt: skip
    evaluator = Evaluator(made[form])
    ends = {
        name: PodEnd(namespace=namespace, labels={"app": name}, namespace_labels={"kubernetes.io/metadata.name": namespace}, uid=name,
                     named={("web", "TCP"): 8080})
        for name, namespace in (("web", "shop"), ("api", "shop"), ("db", "data"), ("other", "shop"))
    }  # fmt: skip
    outside = flows([seen(WEB, CONNECT, "10.66.0.1", 22)], Directory())
    (denied,) = outside.seen
    assert denied.peer.name == "10.66.0.1"
    for text in ("10.66.0.1", "10.66.0.2", "10.66.0.3", "93.184.216.35"):
        target = PodEnd(addresses=(ipaddress.ip_address(text),))
        assert evaluator.passes(ends["web"], target, "TCP", 22) is not None
        assert evaluator.passes(ends["web"], target, "TCP", 443) is not None
    assert evaluator.passes(ends["web"], ends["db"], "TCP", 5432) is not None, "the service's own port"
    assert evaluator.passes(ends["web"], ends["db"], "TCP", 15432) is None
    assert evaluator.passes(ends["web"], ends["api"], "TCP", 8080) is None
    assert evaluator.passes(ends["other"], ends["db"], "TCP", 15432) is not None
    assert evaluator.passes(ends["db"], ends["web"], "TCP", 8080) is not None
    assert check.over < 0.3
    assert len(check.uncovered) == 2, "pods of which nothing was seen have no policy, and are what stays open"
    assert connectivity(found, directory, []).over == 1.0, "without policies everything is open"


def test_the_check_sees_a_wrong_port_a_lost_rule_and_a_lost_namespace() -> None:
    """Mistakes that generators made (the service's port, a peer of another namespace) are found in the documents."""
    found, directory, made = learnt(SEEN)
    for break_it, flow in (
        (lambda web: web["spec"]["egress"].clear(), "shop/web -> data/svc/db TCP 15432"),
        (lambda web: [rule["ports"].clear() or rule["ports"].append({"protocol": "TCP", "port": 5432}) for rule in web["spec"]["egress"]], "shop/web -> data/svc/db TCP 15432"),
        (lambda web: [peer.pop("namespaceSelector", None) for rule in web["spec"]["egress"] for peer in rule["to"]], "shop/web -> data/svc/db TCP 15432"),
        (lambda web: web["spec"]["ingress"].clear(), "shop/api -> shop/web TCP 8080"),
    ):  # fmt: skip
        _, _, made = learnt(SEEN)
        break_it(of(made["NetworkPolicy"], "web"))
        refused = connectivity(found, directory, made["NetworkPolicy"]).refused
        assert flow in {one.flow for one in refused}
        assert all(any("web" in name for name in one.by) for one in refused)


def test_cilium_names_entities_and_dns() -> None:
    asked = [
        seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, detail="api.example.com"),
        seen(WEB, CONNECT, "93.184.216.34", 443),
    ]
    _, _, made = learnt([*asked, seen(WEB, ACCEPT, "192.168.0.3", 8081)])
    web = of(made["CiliumNetworkPolicy"], "web")["spec"]
    assert {
        "toFQDNs": [{"matchName": "api.example.com"}],
        "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}],
    } in web["egress"]
    dns = next(rule for rule in web["egress"] if "toEndpoints" in rule)
    assert dns["toPorts"][0]["rules"] == {"dns": [{"matchPattern": "*"}]}, (
        "without it no name is ever learnt by the proxy"
    )
    assert web["ingress"] == [
        {"fromEntities": ["host", "remote-node"], "toPorts": [{"ports": [{"port": "8081", "protocol": "TCP"}]}]}
    ]
    _, _, made = learnt(asked)
    assert of(made["CiliumNetworkPolicy"], "web")["spec"]["ingress"] == [{}], "an empty list would deny nothing"
    two = [*asked, seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, detail="other.example.com")]
    assert "toFQDNs" not in str(learnt(two)[2]["CiliumNetworkPolicy"]), "nobody says which of the two it was"


NAME = "api.example.com"


def test_what_was_connected_to_by_name_is_let_through_by_name() -> None:
    """Cilium: the name and the port that were connected to, whoever else was asked for; forms without names: the addresses."""
    some = [
        seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, detail=name)
        for name in (NAME, "other.example.com", "unused.example.com")
    ]
    some += [
        seen(WEB, CONNECT, "93.184.216.34", 443, detail=NAME), seen(WEB, CONNECT, "93.184.216.35", 443, detail=NAME),
        seen(WEB, CONNECT, "198.51.100.9", 5432, detail="other.example.com"), seen(WEB, CONNECT, "203.0.113.1", 80),
    ]  # fmt: skip
    found, directory, made = learnt(some)
    web = of(made["CiliumNetworkPolicy"], "web")["spec"]["egress"]

    def rule(name: str, port: str) -> dict[str, Any]:
        return {"toFQDNs": [{"matchName": name}], "toPorts": [{"ports": [{"port": port, "protocol": "TCP"}]}]}

    assert [one for one in web if "toFQDNs" in one] == [rule(NAME, "443"), rule("other.example.com", "5432")]
    dns = next(one for one in web if "toEndpoints" in one)
    assert dns["toPorts"][0]["rules"] == {"dns": [{"matchPattern": "*"}]}
    assert [one["cidr"] for rule in web for one in rule.get("toCIDRSet", ())] == ["203.0.113.1/32"]
    plain = of(made["NetworkPolicy"], "web")["spec"]["egress"]
    blocks = {peer["ipBlock"]["cidr"] for rule in plain for peer in rule["to"] if "ipBlock" in peer}
    assert any(ipaddress.ip_address("93.184.216.34") in ipaddress.ip_network(block) for block in blocks)
    assert any(ipaddress.ip_address("198.51.100.9") in ipaddress.ip_network(block) for block in blocks)
    for documents in made.values():
        assert connectivity(found, directory, documents).refused == ()
    # The check does hold the names: without their rule the flows are denied.
    broken = [copied(one) for one in made["CiliumNetworkPolicy"]]
    of(broken, "web")["spec"]["egress"] = [one for one in web if one.get("toFQDNs") != [{"matchName": NAME}]]
    assert {one.flow for one in connectivity(found, directory, broken).refused} == {
        "shop/web -> 93.184.216.34 TCP 443", "shop/web -> 93.184.216.35 TCP 443",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "a\\046b.example", "\\032.example", "intranet", "10.0.0.1", "a.example\n"])
def test_an_address_that_no_rule_can_name_stays_an_address(name: str) -> None:
    some = [
        seen(WEB, CONNECT, "93.184.216.34", 443, detail=NAME),
        seen(WEB, CONNECT, "93.184.216.34", 443, detail=name),
    ]
    found, directory, made = learnt(some)
    text = str(made["CiliumNetworkPolicy"])
    assert text.count("matchName") == 1
    assert "93.184.216.34/32" in text, "what went there without that name has to pass too"
    for documents in made.values():
        assert connectivity(found, directory, documents).refused == ()


def test_of_an_address_with_two_names_each_has_to_pass() -> None:
    some = [seen(WEB, CONNECT, "93.184.216.34", 443, detail=name) for name in (NAME, "other.example.com")]
    found, directory, made = learnt(some)
    assert "toCIDRSet" not in str(made["CiliumNetworkPolicy"])
    for name in (NAME, "other.example.com"):
        broken = [copied(one) for one in made["CiliumNetworkPolicy"]]
        web = of(broken, "web")["spec"]
        web["egress"] = [one for one in web["egress"] if one.get("toFQDNs") != [{"matchName": name}]]
        assert len(connectivity(found, directory, broken).refused) == 1


def test_what_answers_say_goes_before_what_questions_let_guess() -> None:
    some = [
        seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, detail="old.example.com"),
        seen(WEB, CONNECT, "93.184.216.34", 443, detail=NAME),
    ]
    text = str(learnt(some)[2]["CiliumNetworkPolicy"])
    assert NAME in text
    assert "old.example.com" not in text, "asked for, and not connected to"


def test_one_name_for_many_addresses_is_one_rule_in_any_order() -> None:
    some = [seen(WEB, CONNECT, f"93.184.{number}.1", port, detail=NAME) for number in range(20) for port in (443, 8443)]
    first = learnt(some)[2]
    random.Random(4).shuffle(some)
    again = learnt([*some, *some[:7]])[2]
    assert first == again
    assert str(first["CiliumNetworkPolicy"]).count("matchName") == 1
    assert "toCIDRSet" not in str(first["CiliumNetworkPolicy"])


def test_an_address_is_whose_it_was_then() -> None:
    old = pod_fact("shop", "old", "10.0.7.7", started=1.0, ended=100.0)
    new = pod_fact("bank", "new", "10.0.7.7", started=200.0)
    facts = [*FACTS, old, new]
    found, _, _ = learnt([seen(WEB, CONNECT, "10.0.7.7", 1, at=50 * SECOND), seen(WEB, CONNECT, "10.0.7.7", 2, at=250 * SECOND),
                          seen(WEB, CONNECT, "10.0.7.7", 3, at=150 * SECOND), seen(WEB, CONNECT, "10.0.7.7", 4, at=50 * SECOND, last=250 * SECOND)], facts)  # fmt: skip
    assert {(str(key.peer), key.port.first) for key in found.seen} == {
        ("shop/old", 1),
        ("bank/new", 2),
        ("shop/old", 4),
        ("bank/new", 4),
    }
    assert found.unsure == {"10.0.7.7 was a pod's at another time": 3}


def test_answers_and_comparisons_of_addresses_are_no_connections() -> None:
    sightings = [
        seen(DB, BIND, "0.0.0.0", 8125, kind=DGRAM), seen(DB, SEND, "10.0.1.3", 41234, kind=DGRAM),
        seen(WEB, CONNECT, "93.184.216.34", 443, kind=DGRAM), seen(WEB, CONNECT, "93.184.216.34", 443), seen(WEB, CONNECT, "1.2.3.4", 0, kind=DGRAM),
    ]  # fmt: skip
    found, _, _ = learnt(sightings)
    assert {(key.ingress, str(key.peer), key.port) for key in found.seen} == {
        (True, "shop/api", PortRange("UDP", 8125, 8125)), (False, "93.184.216.34", PortRange("TCP", 443, 443)),
    }  # fmt: skip
    assert found.left == {"an address that was only compared (RFC 6724)": 3, "no port": 3}


def test_only_a_bind_opens_nothing() -> None:
    _, _, made = learnt([seen(DB, BIND, "0.0.0.0", 5432), seen(DB, Operation.LISTEN, "0.0.0.0", 5432)])
    db = of(made["NetworkPolicy"], "db")
    assert (db["spec"]["policyTypes"], "ingress" in db["spec"]) == (["Ingress", "Egress"], False)
    ends = [PodEnd(namespace="data", labels={"app": name}, uid=name) for name in ("db", "x")]
    assert Evaluator(made["NetworkPolicy"]).passes(ends[1], ends[0], "TCP", 5432) is not None


def test_ports_side_by_side_are_a_range_and_ephemeral_ones_all_of_them() -> None:
    tcp = lambda *numbers: [PortRange("TCP", number, number) for number in numbers]  # noqa: E731
    assert merged_ports(tcp(80, 81, 82)) == tuple(tcp(80, 81, 82))
    assert merged_ports(tcp(21, 80, 81, 82, 83)) == (PortRange("TCP", 21, 21), PortRange("TCP", 80, 83))
    assert merged_ports(tcp(40000, 50001, 60000, 33333)) == (PortRange("TCP", 32768, 65535),)
    _, _, made = learnt([seen(WEB, CONNECT, "10.0.1.4", port) for port in range(7000, 7006)])
    assert of(made["NetworkPolicy"], "web")["spec"]["egress"][0]["ports"] == [
        {"protocol": "TCP", "port": 7000, "endPort": 7005}
    ]
    assert of(made["CalicoNetworkPolicy"], "web")["spec"]["egress"][0]["destination"]["ports"] == ["7000:7005"]


ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ADDRESSES, max_size=60), st.lists(ADDRESSES, max_size=20))
def test_networks_are_few_cover_every_address_and_only_grow(some: list[str], more: list[str]) -> None:

    from policy.learn.network.addresses import parsed

    def covers(networks: list[str], text: str) -> bool:
        address = parsed(text)
        return any(address in ipaddress.ip_network(one) for one in networks if (":" in one) == (address.version == 6))  # type: ignore[union-attr, operator]

    small, large = summarised(some), summarised([*some, *more])
    public = [text for text in some if parsed(text) is not None and (parsed(text).version == 4 or text[0] in "23")]  # type: ignore[union-attr]
    assert all(covers(small, text) and covers(large, text) for text in public)
    assert len(small) <= 2 * (MOST + 8)


def test_many_private_peers_open_no_private_network_that_none_of_them_is_in() -> None:
    """169.254.0.0/16 above all, where clouds hand out the credentials of the machine."""
    some = [f"10.{2 * number}.0.1" for number in range(60)]
    assert summarised(some) == ["10.0.0.0/8"]
    assert summarised([*some, "192.168.7.7"]) == ["10.0.0.0/8", "192.168.0.0/16"]
    # A cache of names on each node is a neighbour of those credentials.
    assert summarised([*some, "169.254.20.10"]) == ["10.0.0.0/8", "169.254.20.10/32"]
    near = summarised([*some[:20], "169.254.20.10", "169.254.25.10"])
    assert {"169.254.20.10/32", "169.254.25.10/32"} <= set(near)
    assert not any(ipaddress.ip_address("169.254.169.254") in ipaddress.ip_network(one) for one in near)


def test_what_was_denied_odd_or_late_is_no_flow() -> None:
    started = Behaviour(
        operation=Operation.EXEC, access=Access.EXEC, resource="/tmp/x", executable="/usr/bin/app", parent="/init"
    )
    dropped = [Sighting(identity=identity(WEB), behaviour=started, first=HOUR, last=HOUR), seen(WEB, CONNECT, "6.6.6.6", 443, by="/tmp/x"),
               seen(WEB, ASK, "10.96.0.10", 53, kind=DGRAM, by="/tmp/x", detail="evil.example")]  # fmt: skip
    kept, apart, _ = known_programs([*SEEN, *dropped], ())
    assert [(item.resource, item.reason) for _, item in apart] == [
        ("/tmp/x", "a program in a directory for temporary files")
    ]
    assert not any(one.behaviour.executable == "/tmp/x" for one in kept)
    assert any(one.behaviour.executable == "/tmp/x" for one in known_programs(dropped, [apart[0][1].ident])[0])

    late = [seen(WEB, CONNECT, "6.6.6.6", 443, at=40 * HOUR), seen(WEB, CONNECT, "169.254.169.254", 80)]
    found, _, _ = learnt([*SEEN, *late])
    apart_now, _ = set_apart(found, (), 24 * HOUR)
    assert {(item.resource, item.operation) for _, item in apart_now} == {
        ("6.6.6.6 TCP 443", "egress"),
        ("169.254.169.254 TCP 80", "egress"),
    }
    found, _, _ = learnt([*SEEN, *late])
    accepted = [item.ident for _, item in apart_now]
    assert set_apart(found, [*accepted, "other"], 24 * HOUR) == ([], set(accepted))
    found, _, _ = learnt([*SEEN, *late, seen(WEB_TWO, CONNECT, "6.6.6.6", 443, at=41 * HOUR)])
    assert {item.resource for _, item in set_apart(found, (), 24 * HOUR)[0]} == {"169.254.169.254 TCP 80"}, (
        "a second pod did it"
    )


@pytest.mark.parametrize("seed", range(5))
def test_order_and_repetition_change_nothing(seed: int) -> None:
    _, _, made = learnt(SEEN)
    mixed = SEEN * 2
    random.Random(seed).shuffle(mixed)
    facts = list(FACTS)
    random.Random(seed).shuffle(facts)
    assert learnt(mixed, facts)[2] == made


PEERS = st.sampled_from(["10.96.0.4", "10.96.0.3", "10.0.1.2", "10.0.2.2", "10.0.1.3", "fd00::13", "10.0.1.4", "10.0.1.5", "192.168.0.1", "192.168.0.3",
                         "8.8.8.8", "2606:4700::1", "10.77.0.9", "127.0.0.1", "10.96.0.10", "10.96.0.1"])  # fmt: skip
SIGHTINGS = st.builds(
    seen, st.sampled_from([WEB, WEB_TWO, API, DB, DNS, AGENT]), st.sampled_from([CONNECT, ACCEPT, SEND, BIND]), PEERS,
    st.sampled_from([53, 80, 443, 5432, 8080, 8081, 40000, 40001, 50000, 60000]), kind=st.sampled_from([STREAM, DGRAM]),
    by=st.sampled_from(["/usr/bin/app", "/usr/bin/other"]),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(SIGHTINGS, max_size=25))
def test_whatever_was_seen_passes_in_every_form(sightings: list[Sighting]) -> None:
    found, directory, made = learnt(sightings)
    for form, documents in made.items():
        assert connectivity(found, directory, documents).refused == (), form


def test_a_host_has_a_firewall_that_the_judge_replays() -> None:
    host = Identity(kind=Kind.HOST, node="n1", uid="h1", cgroup_path="/system.slice/ssh.service")
    some = [socket(ACCEPT, "10.1.1.1", 22), socket(CONNECT, "93.184.216.34", 443), socket(ASK, "192.168.0.53", 53, kind=DGRAM, detail="a.example"),
            socket(CONNECT, "127.0.0.1", 631), socket(SEND, "9.9.9.9", 0, kind=RAW, protocol=1), socket(CONNECT, "7.7.7.7", 0, kind=DGRAM), socket(CONNECT, "6.6.6.6", 443, result=-1)]  # fmt: skip
    (one,) = firewalls([Sighting(identity=host, behaviour=behaviour, first=HOUR, last=HOUR) for behaviour in some])
    assert one.body["spec"] == {
        "severity": 5, "action": "Allow", "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.1.1.1/32"}}], "ports": [{"port": 22, "protocol": "TCP"}]}],
        "egress": [
            {"to": [{"ipBlock": {"cidr": "127.0.0.0/8"}}, {"ipBlock": {"cidr": "9.9.9.9/32"}}]},
            {"to": [{"ipBlock": {"cidr": "93.184.216.34/32"}}], "ports": [{"port": 443, "protocol": "TCP"}]},
            {"to": [{"ipBlock": {"cidr": "192.168.0.53/32"}}], "ports": [{"port": 53, "protocol": "UDP"}]},
        ],
    }  # fmt: skip


def test_a_host_that_speaks_to_all_the_internet_may_not_speak_to_its_neighbours_so() -> None:
    """A rule of its firewall leaves nothing out, so the networks are written that are left: no credentials of the cloud's, no pods."""
    host = Identity(kind=Kind.HOST, node="n1", uid="h1", cgroup_path="/system.slice/fetch.service")
    some = [socket(CONNECT, f"{number}.{number}.0.1", 443) for number in range(11, 90)]
    some += [socket(CONNECT, f"2{number:03x}::1", 443) for number in range(40)] + [socket(CONNECT, "10.0.0.9", 443)]
    (one,) = firewalls([Sighting(identity=host, behaviour=behaviour, first=HOUR, last=HOUR) for behaviour in some])
    (rule,) = one.body["spec"]["egress"]
    networks = [ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in rule["to"]]

    def passes(text: str) -> bool:
        address = ipaddress.ip_address(text)
        return any(address.version == network.version and address in network for network in networks)

    assert all(map(passes, ("10.0.0.9", "8.8.8.8", "172.15.255.255", "172.32.0.0", "2606::1", "11.11.0.1")))
    assert not any(map(passes, ("10.0.0.10", "169.254.169.254", "172.16.0.1", "192.168.3.4", "100.64.0.1", "fd00::1")))
    assert len(networks) < 60


def test_what_cannot_be_judged_is_said() -> None:
    with pytest.raises(PolicyError, match="expected a NetworkPolicy"):
        written({"apiVersion": "v1", "kind": "Pod"})
    with pytest.raises(PolicyError, match="Calico rules that allow, got `Deny`"):
        written(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "NetworkPolicy",
                "metadata": {"name": "x"},
                "spec": {"ingress": [{"action": "Deny"}]},
            }
        )
    with pytest.raises(PolicyError, match="lacks or mistypes"):
        written({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {}})
    with pytest.raises(PolicyError, match="got `fromEntities`"):
        written({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"},
                 "spec": {"endpointSelector": {}, "ingress": [{"fromEntities": ["world"]}]}})  # fmt: skip


def peers_of(document: dict[str, Any], way: str) -> list[Any]:
    side = {"egress": "to", "ingress": "from"}[way]
    return [peer for rule in document["spec"].get(way, ()) for peer in rule[side]]


def test_a_service_of_one_pod_opens_no_whole_namespace() -> None:
    """StatefulSets have services that select by the name of a pod alone."""
    mine = {"statefulset.kubernetes.io/pod-name": "db-1"}
    db = msgspec.structs.replace(DB, labels={"app": "db", **mine})
    one = ServiceFact(namespace="data", name="db-1", addresses=("10.96.0.44",), ports=(ServicePort(5432, "TCP", "sql", 15432),), selector=mine)  # fmt: skip
    connection = [seen(WEB, CONNECT, "10.96.0.44", 5432)]
    for facts, is_known in (([*FACTS, db, one], True), ([NodeFact(name="n1"), one], False)):
        found, directory, made = learnt(connection, facts)
        web = of(made["NetworkPolicy"], "web")
        labels = [peer["podSelector"]["matchLabels"] for peer in peers_of(web, "egress")]
        assert labels == ([{"app": "db"}] if is_known else []), "never an empty selector, which is every pod"
        assert bool(found.unsure) != is_known
        assert connectivity(found, directory, made["NetworkPolicy"]).refused == ()


@pytest.mark.parametrize("form", list(FORMS))
def test_pods_in_their_nodes_network_behind_a_service_are_nodes(form: str) -> None:
    """No selector of pods reaches them: an engine sees the address of the node."""
    agents = [
        pod_fact("infra", "agent", "", number=number, addresses=(), host_network=True, node=f"n{number}")
        for number in (1, 2)
    ]
    exporter = ServiceFact(namespace="infra", name="agent", addresses=("10.96.0.77",), ports=(ServicePort(80, "TCP", "m", 9100),), selector={"app": "agent"})  # fmt: skip
    for some, hosts in ((agents[:1], ("n1",)), (agents, ("n1", "n2"))):
        found, directory, made = learnt([seen(WEB, CONNECT, "10.96.0.77", 80)], [*FACTS, *some, exporter])
        assert {str(key.peer) for key in found.seen} == {f"node/{name}" for name in hosts}
        (document,) = made[form]
        assert "agent" not in str(document["spec"])
        evaluator = Evaluator([document])
        web = PodEnd(namespace="shop", labels={"app": "web"}, uid="w")
        for name in hosts:
            node = directory.nodes[name]
            end = PodEnd(host=name, addresses=tuple(map(ipaddress.ip_address, node.addresses)))
            assert evaluator.passes(web, end, "TCP", 9100) is None
        assert connectivity(found, directory, [document]).refused == ()


def test_some_pods_of_a_service_in_their_nodes_network_and_some_not() -> None:
    agent = pod_fact("data", "db", "", number=9, addresses=(), host_network=True, node="n3")
    found, _, made = learnt([seen(WEB, CONNECT, "10.96.0.4", 5432)], [*FACTS, agent])
    assert {str(key.peer) for key in found.seen} == {"data/svc/db", "node/n3"}
    assert {"ipBlock": {"cidr": "192.168.0.3/32"}} in peers_of(of(made["NetworkPolicy"], "web"), "egress")
    unknown = msgspec.structs.replace(agent, node="n9")
    found, _, _ = learnt([seen(WEB, CONNECT, "10.96.0.4", 5432)], [*FACTS, unknown])
    assert list(found.unsure) == ["node n9, where data/db-9 runs, is not known"]


BALANCED = ServiceFact(
    namespace="shop", name="web", addresses=("10.96.0.80", "203.0.113.80"), ports=(ServicePort(443, "TCP", "https", 8443),), selector={"app": "web"},
    public=True,
)  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_who_comes_from_outside_through_a_load_balancer_is_anybody(form: str) -> None:
    """Where the balancer keeps its clients' addresses no list of them is ever complete."""
    some = [seen(WEB, ACCEPT, text, 8443) for text in ("198.51.100.7", "2001:db8:7::1")] + [
        seen(WEB, ACCEPT, "198.51.100.7", 9000),
        seen(WEB, ACCEPT, "10.200.0.9", 8443),
    ]
    found, directory, made = learnt(some, [*FACTS, BALANCED])
    assert connectivity(found, directory, made[form]).refused == ()
    evaluator, web = Evaluator(made[form]), PodEnd(namespace="shop", labels={"app": "web"}, uid="w")

    def passes(text: str, port: int) -> bool:
        return evaluator.passes(PodEnd(addresses=(ipaddress.ip_address(text),)), web, "TCP", port) is None

    assert passes("203.0.113.200", 8443)
    assert passes("2600::1", 8443)
    assert not passes("203.0.113.200", 9000), "a port that the balancer does not lead to"
    assert not passes("10.200.0.10", 8443), "a neighbour that was not seen"
    assert passes("10.200.0.9", 8443)
    # A service without a balancer, or one for some networks alone, keeps the list.
    for service in (
        msgspec.structs.replace(BALANCED, public=False),
        msgspec.structs.replace(BALANCED, selector={"app": "api"}),
    ):
        _, _, made = learnt(some, [*FACTS, service])
        evaluator = Evaluator(made[form])
        assert not passes("203.0.113.200", 8443)


def test_resolvers_outside_and_on_nodes_are_asked_over_both_protocols() -> None:
    """A cache for names on each node (169.254.20.10), or one of the network's: long answers come over TCP there, too."""
    some = [seen(WEB, ASK, text, 53, kind=DGRAM, detail="a.example") for text in ("169.254.20.10", "192.168.0.3")]
    _, _, made = learnt([*some, seen(WEB, CONNECT, "198.51.100.7", 443)])
    rules = of(made["NetworkPolicy"], "web")["spec"]["egress"]
    asked = {peer["ipBlock"]["cidr"]: rule["ports"] for rule in rules for peer in rule["to"]}
    both = [{"protocol": "TCP", "port": 53}, {"protocol": "UDP", "port": 53}]
    assert asked["169.254.20.10/32"] == asked["192.168.0.3/32"] == both
    assert asked["198.51.100.7/32"] == [{"protocol": "TCP", "port": 443}]


@pytest.mark.parametrize("form", list(FORMS))
def test_a_node_port_leads_to_the_pods_behind_it(form: str) -> None:
    """Its own node translates before policies are asked (kube-proxy), another one does not: both are let pass."""
    ports = (ServicePort(80, "TCP", "http", "web", 30080),)
    service = next(one for one in FACTS if isinstance(one, ServiceFact) and one.name == "api")
    facts = [one for one in FACTS if one is not service] + [msgspec.structs.replace(service, ports=ports)]
    found, directory, made = learnt([seen(WEB, CONNECT, "192.168.0.3", 30080)], facts)
    assert {str(key.peer) for key in found.seen} == {"node/n3", "shop/svc/api"}
    assert connectivity(found, directory, made[form]).refused == ()
    shop = {"kubernetes.io/metadata.name": "shop"}
    api = PodEnd(namespace="shop", labels={"app": "api"}, namespace_labels=shop, uid="a", named={("web", "TCP"): 8080})
    web = PodEnd(namespace="shop", labels={"app": "web"}, uid="w")
    assert Evaluator(made[form]).passes(web, api, "TCP", 8080) is None


@pytest.mark.parametrize("form", list(FORMS))
def test_pods_behind_a_service_that_selects_none_are_pods(form: str) -> None:
    """Endpoints that somebody wrote by hand: addresses of pods are pods, and of the others what they are."""
    by_hand: list[Fact] = [
        ServiceFact(namespace="shop", name="far", addresses=("10.96.0.66",), ports=(ServicePort(80, "TCP", "http", 80),)),
        EndpointsFact(namespace="shop", name="far-1", service="far", addresses=("10.0.1.4", "198.51.100.4"), ports=(ServicePort(8000, "TCP", "http"),)),
    ]  # fmt: skip
    found, directory, made = learnt([seen(WEB, CONNECT, "10.96.0.66", 80)], [*FACTS, *by_hand])
    assert {str(key.peer) for key in found.seen} == {"data/db", "198.51.100.4"}
    assert connectivity(found, directory, made[form]).refused == ()
    assert "10.0.1.4" not in str(made[form])


def test_pods_that_a_policy_catches_unseen_are_told() -> None:
    """They carry the labels of a workload that was seen, and would be cut off."""
    batch = pod_fact("shop", "batch", "10.0.8.8", labels={"app": "web", "job": "x"})
    other = pod_fact("bank", "batch", "10.0.8.9", labels={"app": "web"})
    over = pod_fact("shop", "past", "10.0.8.7", labels={"app": "web"}, ended=5.0)
    some = [seen(WEB, CONNECT, "10.96.0.4", 5432)]
    found, directory, _ = learnt(some, [*FACTS, batch, other, over])
    assert caught(found, directory) == {("shop", "web"): ("shop/batch",)}
    run = pod_fact("shop", "night", "10.0.8.6", labels={"app": "web"}, owner=Owner("Job", "night-28912345", "shop"))
    again = msgspec.structs.replace(run, uid="again", name="night-2", owner=Owner("Job", "night-28912399", "shop"))
    some += [seen(batch, CONNECT, "10.96.0.4", 5432), seen(run, CONNECT, "10.96.0.4", 5432)]
    found, directory, _ = learnt(some, [*FACTS, batch, run, again])
    assert caught(found, directory) == {}


BRIDGED: list[Fact] = [
    NodeFact(name=f"m{number}", addresses=(f"192.168.4.{number}",), pod_networks=(f"10.77.{number}.0/24", f"fd77:{number}::/64"))
    for number in range(1, 31)
]  # fmt: skip
NEAR = pod_fact("shop", "near", "10.77.1.5", node="m1")


@pytest.mark.parametrize("form", list(FORMS))
def test_a_nodes_own_addresses_in_the_network_of_its_pods_are_the_node(form: str) -> None:
    """The bridge's, from which its kubelet asks (.1), and the tunnel's, from which other nodes do (.0). Of thirty nodes their networks together
    would be those of all pods."""
    probes = [
        seen(NEAR, ACCEPT, "10.77.1.1", 8080),
        seen(NEAR, ACCEPT, "fd77:1::1", 8080),
        seen(NEAR, ACCEPT, "10.77.1.0", 8080),
    ]
    found, _, _ = learnt(probes, [*BRIDGED, NEAR])
    assert found.left == {"the pod's own node, its kubelet's probes among it": 9}
    assert not found.seen
    others = [seen(NEAR, ACCEPT, f"10.77.{number}.0", 8080) for number in range(2, 31)]
    found, directory, made = learnt([*probes, *others, seen(NEAR, CONNECT, "192.168.4.7", 10250)], [*BRIDGED, NEAR])
    assert connectivity(found, directory, made[form]).refused == ()
    assert {key.peer.kind for key in found.seen} == {"node"}
    evaluator = Evaluator(made[form])
    near = PodEnd(namespace="shop", labels={"app": "near"}, uid="n")
    pod = PodEnd(namespace="bank", labels={"app": "x"}, uid="x", addresses=(ipaddress.ip_address("10.77.9.8"),))
    assert evaluator.passes(pod, near, "TCP", 8080) is not None, "and no pod of another namespace"
    if form != "CiliumNetworkPolicy":
        node = PodEnd(host="m9", addresses=(ipaddress.ip_address("192.168.4.9"),))
        assert evaluator.passes(near, node, "TCP", 10250) is not None, "one node was spoken to"
    # A pod that has the address is that pod, and where one had it at another time nobody knows.
    gone = pod_fact("bank", "gone", "10.77.1.1", ended=5.0)
    found, _, _ = learnt(probes[:1], [*BRIDGED, NEAR, gone])
    assert (list(found.seen), list(found.unsure)) == ([], ["10.77.1.1 was a pod's at another time"])
    odd = pod_fact("bank", "odd", "10.77.1.1")
    found, _, _ = learnt(probes[:1], [*BRIDGED, NEAR, odd])
    assert {str(key.peer) for key in found.seen} == {"bank/odd"}


@pytest.mark.parametrize("way", [CONNECT, ACCEPT])
def test_who_had_an_address_of_pods_that_nobody_has_any_more_is_not_guessed(way: Operation) -> None:
    """After a month of rollouts their addresses together would be the network of all pods."""
    gone = [seen(NEAR, way, f"10.77.{number}.9", 8080) for number in range(1, 31)]
    found, directory, made = learnt(
        [*gone, seen(NEAR, way, "fd77:3::99", 8080), seen(NEAR, way, "10.78.0.9", 8080)], [*BRIDGED, NEAR]
    )
    assert {str(key.peer) for key in found.seen} == {"10.78.0.9"}
    assert found.unsure == {"addresses in the network of pods, and who had them then is not known": 93}
    assert connectivity(found, directory, made["NetworkPolicy"]).refused == ()


@pytest.mark.parametrize(
    "spec",
    [
        {"podSelector": {"matchLabels": {"app": 5}}},
        {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": [{}]}]}},
        {"podSelector": {"matchExpressions": [{"key": "app", "operator": "Is", "values": ["x"]}]}},
        {"ingress": [{"ports": [{"port": {}}]}]},
        {"ingress": [{"ports": [{"port": 80, "endPort": "90"}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": 5}}]}]},
        {"ingress": [{"from": ["10.0.0.0/8"]}]},
        {"ingress": 5},
    ],
    ids=str,
)
def test_a_policy_that_no_engine_would_take_is_said_before_anything_is_asked(spec: dict[str, Any]) -> None:
    document = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(PolicyError, match="expected "):
        written(document)
