# SPDX-License-Identifier: Apache-2.0
"""Connections to services and nodes that are gone since, or were made anew: learnt as what they were, or told as unsure. Never an
`ipBlock` of an address that is the cluster's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from policy.learn.network.addresses import service_ranges
from policy.learn.network.directory import Directory
from policy.learn.network.evaluate import connectivity
from policy.learn.network.flows import Flows, flows
from policy.learn.network.forms import FORMS
from policy.learn.network.intermediate import policies
from policy.learn.sightings import Sighting
from schemas.behaviour import Behaviour
from schemas.cluster import EndpointsFact, Fact, NodeFact, PodFact, ServiceFact, ServicePort
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation

AT = 150.0
WEB = PodFact(uid="u1", namespace="shop", name="web-1", node="n1", labels={"app": "web"}, owner=Owner("Deployment", "web", "shop"),
              addresses=("10.0.0.2",), started=1.0)  # fmt: skip
DB = PodFact(uid="u2", namespace="data", name="db-1", node="n1", labels={"app": "db"}, owner=Owner("StatefulSet", "db", "data"),
             addresses=("10.0.0.3",), started=1.0)  # fmt: skip
NODE = NodeFact(name="n1", addresses=("192.168.0.1",), started=1.0)
PORT = ServicePort(5432, "TCP", "sql", 15432)
SERVICE = ServiceFact(
    namespace="data", name="db", addresses=("10.96.0.4",), cluster_addresses=("10.96.0.4",), ports=(PORT,), selector={"app": "db"}, started=10.0,
)  # fmt: skip
GONE = msgspec.structs.replace(SERVICE, ended=200.0)
API = ServiceFact(
    namespace="default", name="kubernetes", addresses=("10.96.0.1",), cluster_addresses=("10.96.0.1",), started=1.0
)
DNS = ServiceFact(
    namespace="kube-system", name="kube-dns", addresses=("10.96.0.10",), cluster_addresses=("10.96.0.10",), started=1.0
)


def seen(address: str, port: int = 5432, at: float = AT, operation: Operation = Operation.CONNECT) -> Sighting:
    identity = Identity(
        kind=Kind.CONTAINER, node="n1", uid="c1", namespace="shop", pod="web-1", pod_uid="u1", owner=WEB.owner, labels=WEB.labels,
        orchestrated=True,
    )  # fmt: skip
    behaviour = Behaviour(
        operation=operation, access=Access(0), address=address, port=port, family=10 if ":" in address else 2, socket_type=1,
        executable="/usr/bin/app", parent="/init",
    )  # fmt: skip
    return Sighting(identity=identity, behaviour=behaviour, count=3, first=int(at * 1e9), last=int(at * 1e9))


def learnt(some: list[Sighting], *facts: Fact) -> tuple[Flows, str]:
    """What was learnt, and all policies as text; every flow passes them in every form."""
    directory = Directory([WEB, DB, NODE, *facts])
    found = flows(some, directory)
    made = policies(found, directory)
    for form in FORMS.values():
        assert connectivity(found, directory, [form(one) for one in made]).refused == ()
    return found, str([FORMS["NetworkPolicy"](one) for one in made])


def peers(found: Flows) -> set[tuple[str, int]]:
    return {(str(key.peer), key.port.first) for key in found.seen}


def test_a_service_that_is_gone_is_the_pods_that_stood_behind_it() -> None:
    found, text = learnt([seen("10.96.0.4")], GONE)
    assert (peers(found), found.unsure) == ({("data/svc/db", 15432)}, {})
    assert "ipBlock" not in text


def test_its_pods_need_not_be_there_either() -> None:
    lone = msgspec.structs.replace(GONE, selector={"app": "nobody"})
    assert peers(learnt([seen("10.96.0.4")], lone)[0]) == {("data/svc/db", 15432)}


@pytest.mark.parametrize("order", [1, -1])
def test_an_address_that_another_service_has_now_is_whose_it_was(order: int) -> None:
    other = ServiceFact(namespace="shop", name="other", addresses=("10.96.0.4",), ports=(ServicePort(5432, "TCP", "x", 9),), selector={"app": "web"},
                        started=210.0)  # fmt: skip
    found, _ = learnt([seen("10.96.0.4"), seen("10.96.0.4", at=300.0)], *[GONE, other][::order])
    assert peers(found) == {("data/svc/db", 15432), ("shop/svc/other", 9)}


NAMED = msgspec.structs.replace(GONE, ports=(ServicePort(5432, "TCP", "sql", "pg"),))
SLICE = EndpointsFact(
    namespace="data", name="db-x", service="db", addresses=("10.0.0.3",), ports=(ServicePort(15432, "TCP", "sql"),)
)


@pytest.mark.parametrize("order", [1, -1])
def test_a_service_that_was_made_anew_is_the_same_where_it_leads_to_the_same(order: int) -> None:
    anew = msgspec.structs.replace(NAMED, ended=0.0, started=210.0, addresses=("10.96.0.5",))
    found, text = learnt([seen("10.96.0.4"), seen("10.96.0.5", at=300.0)], *[NAMED, anew][::order], SLICE)
    assert (peers(found), found.unsure) == ({("data/svc/db", 15432)}, {})
    assert "'port': 'pg'" in text


@pytest.mark.parametrize("more", [[], [SLICE]], ids=["no endpoints", "endpoints"])
def test_a_named_port_of_a_service_that_is_gone_is_not_guessed(more: list[Fact]) -> None:
    other = msgspec.structs.replace(
        NAMED, ended=0.0, started=210.0, selector={"app": "other"}, addresses=("10.96.0.5",)
    )
    for facts in ([NAMED, *more], [NAMED, other, *more]):
        found, text = learnt([seen("10.96.0.4")], *facts)
        assert found.seen == {}
        assert found.unsure == {"service data/db is gone, and the number of its port pg is not known": 3}
        assert "ipBlock" not in text


def test_a_node_that_is_gone_is_told_and_not_an_address() -> None:
    old = NodeFact(name="n9", addresses=("192.168.0.9",), started=1.0, ended=200.0)
    found, text = learnt([seen("192.168.0.9", 10250)], old)
    assert (found.seen, found.unsure) == ({}, {"node n9 is gone": 3})
    assert "ipBlock" not in text
    again = NodeFact(name="n9", addresses=("192.168.0.10",), started=300.0)
    found, text = learnt([seen("192.168.0.9", 10250)], old, again)
    assert peers(found) == {("node/n9", 10250)}
    assert "192.168.0.10/32" in text


def test_who_stood_behind_a_service_without_pods_is_not_guessed() -> None:
    far = ServiceFact(namespace="data", name="far", addresses=("10.96.0.9",), ports=(PORT,), started=1.0)
    slice_of = EndpointsFact(
        namespace="data", name="far-x", service="far", addresses=("192.168.0.9",), ports=(ServicePort(9, "TCP"),)
    )
    node = NodeFact(name="n9", addresses=("192.168.0.9",), started=1.0)
    gone = msgspec.structs.replace(far, ended=200.0)
    other = msgspec.structs.replace(far, started=210.0, addresses=("10.96.0.8",), ports=(ServicePort(1),))
    assert peers(learnt([seen("10.96.0.9")], far, slice_of, node)[0]) == {("node/n9", 9)}
    for facts, why in (
        ([gone, slice_of], "nobody is known behind service data/far"),
        ([gone, other, slice_of], "nobody is known behind service data/far"),
        (
            [far, slice_of, msgspec.structs.replace(node, ended=300.0)],
            "n9, behind service data/far, is gone or has no labels that select it",
        ),
    ):
        found, text = learnt([seen("10.96.0.9")], *facts)
        assert (found.seen, found.unsure) == ({}, {why: 3})
        assert "ipBlock" not in text


LATER: list[tuple[Fact, str, str]] = [
    (msgspec.structs.replace(SERVICE, started=400.0, cluster_addresses=()), "10.96.0.4", "10.96.0.4 was a service's at another time"),
    (msgspec.structs.replace(GONE, ended=100.0, cluster_addresses=()), "10.96.0.4", "10.96.0.4 was a service's at another time"),
    (NodeFact(name="n8", addresses=("192.168.0.8",), started=400.0), "192.168.0.8", "192.168.0.8 was a node's at another time"),
    (NodeFact(name="n8", addresses=("192.168.0.8",), started=1.0, ended=100.0), "192.168.0.8", "192.168.0.8 was a node's at another time"),
]  # fmt: skip


@pytest.mark.parametrize(("fact", "address", "why"), LATER)
@pytest.mark.parametrize("operation", [Operation.CONNECT, Operation.ACCEPT])
def test_what_was_the_clusters_at_another_time_is_unsure(
    fact: Fact, address: str, why: str, operation: Operation
) -> None:
    found, text = learnt([seen(address, operation=operation)], fact)
    assert (found.seen, found.unsure) == ({}, {why: 3})
    assert "ipBlock" not in text


UNSURE = {"addresses in the network of services, and who had them then is not known": 3}


@pytest.mark.parametrize(
    ("address", "unsure"),
    [("10.96.0.7", True), ("10.96.0.15", True), ("10.96.0.16", False), ("10.97.0.7", False), ("198.51.100.7", False)],
)
def test_an_address_among_those_of_services_is_never_an_address_outside(address: str, unsure: bool) -> None:
    """Of services that ended longer ago than they are known."""
    found, text = learnt([seen(address)], API, DNS)
    assert found.unsure == (UNSURE if unsure else {})
    assert (f"{address}/32" in text) is not unsure


def test_a_balancers_address_says_nothing_of_its_neighbours() -> None:
    balanced = [
        msgspec.structs.replace(
            SERVICE, name=name, addresses=(address, f"10.96.0.{number}"), cluster_addresses=(f"10.96.0.{number}",)
        )
        for number, (name, address) in enumerate([("a", "192.168.7.1"), ("b", "192.168.7.14")], 4)
    ]
    assert peers(learnt([seen("192.168.7.9")], *balanced)[0]) == {("192.168.7.9", 5432)}


@pytest.mark.parametrize(
    ("addresses", "ranges"),
    [
        ([], []),
        (["10.96.0.1"], ["10.96.0.1/32"]),
        (["10.96.0.1", "10.111.200.3"], ["10.96.0.0/12"]),
        (["10.96.0.1", "10.96.0.10", "172.30.0.1", "172.30.255.9"], ["10.96.0.0/28", "172.30.0.0/16"]),
        (["fd00:96::1", "fd00:96::a3f1", "fd00:97::1", "nonsense"], ["fd00:96::/112", "fd00:97::1/128"]),
    ],
)
def test_the_range_of_services_is_what_their_addresses_have_in_common(addresses: list[str], ranges: list[str]) -> None:
    """An API server takes none larger than a /12, of IPv6 a /64: addresses further apart are of two."""
    found: Any = service_ranges(addresses)
    assert sorted(map(str, found)) == sorted(ranges)
