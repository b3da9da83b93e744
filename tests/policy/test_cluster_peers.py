# SPDX-License-Identifier: Apache-2.0
"""Who an address was, by the time at which it was whose."""

from __future__ import annotations

from math import inf

import msgspec
import pytest

from policy.cluster_peers import ClusterPeer, ClusterPeers
from schemas.cluster import EndpointsFact, Fact, NodeFact, PodFact, ServiceFact, encode
from schemas.identity import Owner

FIRST = PodFact(
    uid="u1", namespace="shop", name="web-1", node="n1", labels={"app": "web"}, owner=Owner("Deployment", "web", "shop"),
    addresses=("10.0.0.1", "fd00::1"), started=100.0, ended=200.0,
)  # fmt: skip
SECOND = PodFact(uid="u2", namespace="bank", name="job-1", addresses=("10.0.0.1",), started=150.0)
SERVICE = ServiceFact(namespace="shop", name="web", addresses=("10.96.0.7",), labels={"app": "web"}, started=50.0)
SLICE = EndpointsFact(namespace="shop", name="web-x", service="web", addresses=("10.0.0.9", "203.0.113.5"))
BACKEND = PodFact(uid="u3", namespace="shop", name="web-2", addresses=("10.0.0.9",), started=10.0)
NODE = NodeFact(name="n1", addresses=("192.168.0.1",), labels={"zone": "a"}, started=1.0)


def told(*facts: Fact) -> ClusterPeers:
    peers = ClusterPeers()
    for one in facts:
        peers.fact(one.key, encode(one))
    return peers


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)])
@pytest.mark.parametrize(
    ("at", "name"),
    [
        (99.0, None),
        (100.0, "pod/web-1"),
        (175.0, "pod/web-1"),
        (199.9, "pod/web-1"),
        (200.0, "pod/job-1"),
        (1e9, "pod/job-1"),
    ],
)
def test_an_address_that_is_used_again_is_whose_it_was_then(
    order: tuple[Fact, ...], at: float, name: str | None
) -> None:
    found = told(*order).peer("10.0.0.1", at)
    assert (found.name if found else None) == name


def test_asked_without_a_time_it_is_the_last_ones() -> None:
    found = told(FIRST, SECOND).peer("10.0.0.1")
    assert found is not None
    assert found.name == "pod/job-1"
    gone = told(FIRST).peer("10.0.0.1")
    assert gone is not None
    assert (gone.name, gone.until) == ("pod/web-1", 200.0)


def test_a_pod_is_told_with_its_owner_and_the_services_it_stands_behind() -> None:
    peers = told(BACKEND, SLICE, FIRST)
    assert peers.peer("10.0.0.9", 20.0) == ClusterPeer(
        name="pod/web-2", namespace="shop", services=("web",), since=10.0, until=inf
    )
    found = peers.peer("10.0.0.1", 120.0)
    assert found is not None
    assert found.owner == Owner("Deployment", "web", "shop")


def test_services_nodes_and_addresses_outside() -> None:
    peers = told(SERVICE, SLICE, NODE)
    service, node, outside = (peers.peer(one, 60.0) for one in ("10.96.0.7", "192.168.0.1", "203.0.113.5"))
    assert service == ClusterPeer(name="svc/web", namespace="shop", labels={"app": "web"}, since=50.0)
    assert node == ClusterPeer(name="node/n1", labels={"zone": "a"}, since=1.0)
    assert outside == ClusterPeer(name="svc/web", namespace="shop", labels={"app": "web"})
    assert peers.peer("10.96.0.7", 49.0) is None, "before the service was made"
    assert peers.peer("198.51.100.1", 60.0) is None


@pytest.mark.parametrize("spelling", ["fd00::1", "FD00:0:0::1", "::ffff:10.0.0.1", "fd00::1%eth0"])
def test_every_spelling_of_an_address_is_that_address(spelling: str) -> None:
    found = told(FIRST).peer(spelling, 120.0)
    assert found is not None
    assert found.name == "pod/web-1"


def test_what_is_gone_is_not_known_and_what_moved_is_where_it_is_now() -> None:
    peers = told(SECOND)
    moved = msgspec.structs.replace(SECOND, addresses=("10.0.0.2",))
    peers.fact(moved.key, encode(moved))
    assert peers.peer("10.0.0.1", 300.0) is None
    assert peers.peer("10.0.0.2", 300.0) is not None
    peers.fact(moved.key, None)
    assert peers.peer("10.0.0.2", 300.0) is None


GONE = msgspec.structs.replace(SERVICE, ended=200.0)
ANEW = ServiceFact(namespace="bank", name="api", addresses=("10.96.0.7",), started=150.0)


@pytest.mark.parametrize("order", [(GONE, ANEW), (ANEW, GONE)])
@pytest.mark.parametrize(
    ("at", "name"),
    [(49.0, None), (50.0, "svc/web"), (149.9, "svc/web"), (150.0, "svc/api"), (199.0, "svc/api"), (1e9, "svc/api")],
)
def test_a_services_address_is_whose_it_was_then(order: tuple[Fact, ...], at: float, name: str | None) -> None:
    """The API server gives an address to one service at a time: that one was gone at 200 was only seen then."""
    found = told(*order).peer("10.96.0.7", at)
    assert (found.name if found else None) == name


def test_a_service_and_a_node_that_are_gone_are_known_until_their_end() -> None:
    old = msgspec.structs.replace(NODE, ended=300.0)
    again = msgspec.structs.replace(NODE, started=310.0, labels={"zone": "b"})
    peers = told(GONE, SLICE, old, again)
    service, node = peers.peer("10.96.0.7", 199.0), peers.peer("192.168.0.1", 299.0)
    assert service == ClusterPeer(name="svc/web", namespace="shop", labels={"app": "web"}, since=50.0, until=200.0)
    assert node == ClusterPeer(name="node/n1", labels={"zone": "a"}, since=1.0, until=300.0)
    assert peers.peer("10.96.0.7", 200.0) is None
    assert peers.peer("192.168.0.1", 305.0) is None
    now = peers.peer("192.168.0.1", 400.0)
    assert now is not None
    assert now.labels == {"zone": "b"}
    peers.fact(GONE.key, None)
    assert peers.peer("10.96.0.7", 199.0) is None, "the fact of its end goes after its time"
    assert peers.peer("192.168.0.1", 299.0) is not None
