# SPDX-License-Identifier: Apache-2.0
"""What `hauberk discover -p NetworkPolicy` writes, enforced on packets by the Kubernetes project's engine: what was seen passes, nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import policy_engine
import pytest
import waiting
from pod_network import Connection, PodNetwork

from policy.learn.network.directory import Directory
from policy.learn.network.evaluate import connectivity
from policy.learn.network.flows import flows
from policy.learn.network.forms import kubernetes
from policy.learn.network.intermediate import policies
from policy.learn.sightings import Sighting
from schemas.behaviour import Behaviour
from schemas.cluster import EndpointsFact, Fact, NamespaceFact, PodFact, ServiceFact, ServicePort
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Operation

pytestmark = pytest.mark.kubernetes

HOUR = 3600 * 10**9
PLACES = {"web": "shop", "api": "shop", "other": "shop", "db": "data"}
ADDRESSES = {name: f"10.212.{at}.2" for at, name in enumerate(PLACES, 1)}
PORTS = (8080, 5432, 15432)
PODS = {
    name: PodFact(
        uid=f"u-{name}", namespace=place, name=f"{name}-1", node="rig", labels={"app": name}, owner=Owner("Deployment", name, place),
        addresses=(ADDRESSES[name],), started=1.0,
    )
    for name, place in PLACES.items()
}  # fmt: skip
FACTS: list[Fact] = [
    *PODS.values(), NamespaceFact(name="shop"), NamespaceFact(name="data"),
    # The port of a service is another than the pods', once by number and once by name.
    ServiceFact(namespace="data", name="db", addresses=("10.96.0.4",), ports=(ServicePort(5432, "TCP", "sql", 15432),), selector={"app": "db"}),
    ServiceFact(namespace="shop", name="api", addresses=("10.96.0.3",), ports=(ServicePort(80, "TCP", "http", "web"),), selector={"app": "api"}),
    EndpointsFact(namespace="shop", name="api-x", service="api", addresses=(ADDRESSES["api"],), ports=(ServicePort(8080, "TCP", "http"),)),
]  # fmt: skip
SERVICES = {("10.96.0.4", 5432): ("db", 15432), ("10.96.0.3", 80): ("api", 8080)}
BY_SERVICE: list[Connection] = [(name, address, port) for name in ("web", "other") for address, port in SERVICES]
BY_POD: list[Connection] = [(one, two, port) for one, two in itertools.permutations(PLACES, 2) for port in PORTS]
PASS: set[Connection] = {("web", *service) for service in SERVICES} | {("web", "db", 15432), ("web", "api", 8080)}


def seen(name: str, operation: Operation, address: str, port: int) -> Sighting:
    pod = PODS[name]
    return Sighting(
        identity=Identity(
            kind=Kind.CONTAINER, node="rig", uid=f"c-{name}", namespace=pod.namespace, pod=pod.name, pod_uid=pod.uid, owner=pod.owner,
            labels=pod.labels, container_name="app", orchestrated=True,
        ),
        behaviour=Behaviour(operation=operation, address=address, port=port, family=2, socket_type=1, executable="/usr/bin/app", parent="/init"),
        first=HOUR, last=HOUR,
    )  # fmt: skip


def learnt() -> list[dict[str, Any]]:
    """Of what web does with both services, as both ends see it."""
    sightings = [
        seen("web", Operation.CONNECT, "10.96.0.4", 5432), seen("web", Operation.CONNECT, "10.96.0.3", 80),
        seen("db", Operation.ACCEPT, ADDRESSES["web"], 15432), seen("api", Operation.ACCEPT, ADDRESSES["web"], 8080),
    ]  # fmt: skip
    directory = Directory(FACTS)
    found = flows(sightings, directory)
    made = [kubernetes(one) for one in policies(found, directory)]
    assert connectivity(found, directory, made).refused == ()
    return made


def objects() -> list[dict[str, Any]]:
    """Namespaces and pods, as an API server has them."""
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}
        for name in ("shop", "data")
    ]  # fmt: skip
    for pod in PODS.values():
        (address,) = pod.addresses
        containers = [
            {"name": "app", "image": "x", "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}
        ]
        made.append({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {"nodeName": "rig", "containers": containers},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })  # fmt: skip
    return made


@pytest.fixture
def network() -> Any:
    try:
        policy_engine.found()
    except policy_engine.NoEngine as error:
        pytest.skip(f"no engine for network policies: {error}")
    with PodNetwork(ADDRESSES, PORTS, SERVICES) as made:
        yield made


def all_pass(network: PodNetwork, wanted: set[Connection]) -> None:
    waiting.eventually(lambda: network.reached(wanted) == wanted)


def the_service_by_its_own_port(policy: dict[str, Any]) -> None:
    """What engines never see: the service is translated before they are asked."""
    for rule in policy["spec"].get("egress", []):
        for port in rule["ports"]:
            port["port"] = 5432 if port["port"] == 15432 else port["port"]


def the_peer_in_its_own_namespace(policy: dict[str, Any]) -> None:
    for rule in policy["spec"].get("egress", []):
        for peer in rule["to"]:
            peer.pop("namespaceSelector", None)


def test_what_was_seen_passes_and_nothing_else(network: PodNetwork, tmp_path: Path) -> None:
    """With a service whose port is not its pods', one with a named port, and a peer in another namespace."""
    every = {*BY_POD, *BY_SERVICE}
    all_pass(network, every)
    network.enforce([*objects(), *learnt()], tmp_path)
    all_pass(network, PASS)
    assert network.reached(every) == PASS


@pytest.mark.parametrize("broken", [the_service_by_its_own_port, the_peer_in_its_own_namespace])
def test_the_engine_sees_what_a_wrong_policy_would_cost(
    network: PodNetwork, tmp_path: Path, broken: Callable[[dict[str, Any]], None]
) -> None:
    made = learnt()
    for policy in made:
        broken(policy)
    network.enforce([*objects(), *made], tmp_path)
    cut_off: set[Connection] = {("web", "10.96.0.4", 5432), ("web", "db", 15432)}
    all_pass(network, PASS - cut_off)
    assert network.reached(cut_off) == set()
