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

from policy.judge.sockets import INET, INET6
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
PORTS = (8080, 5432, 15432)
BY_POD: list[Connection] = [(one, two, port) for one, two in itertools.permutations(PLACES, 2) for port in PORTS]
CALLER = 40000
"""A port that a program has from the kernel to ask from."""


class World:
    """A cluster of four pods and two services in which web was seen with both services, over one protocol and one family of addresses."""

    def __init__(self, protocol: str, *, six: bool = False) -> None:
        self.protocol, self._six = protocol, six
        self.other_protocol = "UDP" if protocol == "TCP" else "TCP"
        near = "fd00:212:{}::2" if six else "10.212.{}.2"
        self.addresses = {name: near.format(at) for at, name in enumerate(PLACES, 1)}
        self.db, self.api = ("fd00:96::4", "fd00:96::3") if six else ("10.96.0.4", "10.96.0.3")
        self.services = {(self.db, 5432): ("db", 15432), (self.api, 80): ("api", 8080)}
        self.by_service: list[Connection] = [
            (name, address, port) for name in ("web", "other") for address, port in self.services
        ]
        self.every = {*BY_POD, *self.by_service}
        self.passing: set[Connection] = {("web", *service) for service in self.services}
        self.passing |= {("web", "db", 15432), ("web", "api", 8080)}
        self._pods = {
            name: PodFact(
                uid=f"u-{name}", namespace=place, name=f"{name}-1", node="rig", labels={"app": name}, owner=Owner("Deployment", name, place),
                addresses=(self.addresses[name],), started=1.0,
            )
            for name, place in PLACES.items()
        }  # fmt: skip

    def _facts(self) -> list[Fact]:
        of = self.protocol
        return [
            *self._pods.values(), NamespaceFact(name="shop"), NamespaceFact(name="data"),
            # The port of a service is another than the pods', once by number and once by name.
            ServiceFact(namespace="data", name="db", addresses=(self.db,), ports=(ServicePort(5432, of, "sql", 15432),), selector={"app": "db"}),
            ServiceFact(namespace="shop", name="api", addresses=(self.api,), ports=(ServicePort(80, of, "http", "web"),), selector={"app": "api"}),
            EndpointsFact(namespace="shop", name="api-x", service="api", addresses=(self.addresses["api"],), ports=(ServicePort(8080, of, "http"),)),
        ]  # fmt: skip

    def _seen(self, name: str, operation: Operation, address: str, port: int) -> Sighting:
        pod = self._pods[name]
        family, socket_type = (INET6 if self._six else INET), (1 if self.protocol == "TCP" else 2)
        return Sighting(
            identity=Identity(
                kind=Kind.CONTAINER, node="rig", uid=f"c-{name}", namespace=pod.namespace, pod=pod.name, pod_uid=pod.uid, owner=pod.owner,
                labels=pod.labels, container_name="app", orchestrated=True,
            ),
            behaviour=Behaviour(operation=operation, address=address, port=port, family=family, socket_type=socket_type, executable="/usr/bin/app", parent="/init"),
            first=HOUR, last=HOUR,
        )  # fmt: skip

    def _served(self, name: str, port: int) -> list[Sighting]:
        """What the server's end does: of UDP it binds, and sends to whoever asked."""
        caller = self.addresses["web"]
        if self.protocol == "TCP":
            return [self._seen(name, Operation.ACCEPT, caller, port)]
        every = "::" if self._six else "0.0.0.0"
        return [self._seen(name, Operation.BIND, every, port), self._seen(name, Operation.SEND, caller, CALLER)]

    def learnt(self) -> list[dict[str, Any]]:
        """Of what web does with both services, as both ends see it."""
        asked = Operation.CONNECT if self.protocol == "TCP" else Operation.SEND
        sightings = [
            self._seen("web", asked, self.db, 5432), self._seen("web", asked, self.api, 80),
            *self._served("db", 15432), *self._served("api", 8080),
        ]  # fmt: skip
        directory = Directory(self._facts())
        found = flows(sightings, directory)
        made = [kubernetes(one) for one in policies(found, directory)]
        assert connectivity(found, directory, made).refused == ()
        return made

    def objects(self) -> list[dict[str, Any]]:
        """Namespaces and pods, as an API server has them."""
        made: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}
            for name in ("shop", "data")
        ]  # fmt: skip
        for pod in self._pods.values():
            (address,) = pod.addresses
            containers = [
                {"name": "app", "image": "x", "ports": [{"name": "web", "containerPort": 8080, "protocol": self.protocol}]}
            ]  # fmt: skip
            made.append({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
                "spec": {"nodeName": "rig", "containers": containers},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            })  # fmt: skip
        return made


WORLDS = {
    "TCP": World("TCP"),
    "UDP": World("UDP"),
    "TCP over IPv6": World("TCP", six=True),
    "UDP over IPv6": World("UDP", six=True),
}


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[getattr(request, "param", "TCP")]


@pytest.fixture
def network(world: World) -> Any:
    try:
        policy_engine.found()
    except policy_engine.NoEngine as error:
        pytest.skip(f"no engine for network policies: {error}")
    with PodNetwork(world.addresses, PORTS, world.services) as made:
        yield made


def all_pass(network: PodNetwork, wanted: set[Connection], protocol: str = "TCP") -> None:
    waiting.eventually(lambda: network.reached(wanted, protocol) == wanted)


def the_service_by_its_own_port(policy: dict[str, Any]) -> None:
    """What engines never see: the service is translated before they are asked."""
    for rule in policy["spec"].get("egress", []):
        for port in rule["ports"]:
            port["port"] = 5432 if port["port"] == 15432 else port["port"]


def the_peer_in_its_own_namespace(policy: dict[str, Any]) -> None:
    for rule in policy["spec"].get("egress", []):
        for peer in rule["to"]:
            peer.pop("namespaceSelector", None)


@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_what_was_seen_passes_and_nothing_else(network: PodNetwork, world: World, tmp_path: Path) -> None:
    """With a service whose port is not its pods', one with a named port, and a peer in another namespace. The same ports of the other protocol
    are closed."""
    all_pass(network, world.every, world.protocol)
    all_pass(network, world.passing, world.other_protocol)
    network.enforce([*world.objects(), *world.learnt()], tmp_path)
    all_pass(network, world.passing, world.protocol)
    assert network.reached(world.every, world.protocol) == world.passing
    assert network.reached(world.passing, world.other_protocol) == set()


@pytest.mark.parametrize("broken", [the_service_by_its_own_port, the_peer_in_its_own_namespace])
def test_the_engine_sees_what_a_wrong_policy_would_cost(
    network: PodNetwork, world: World, tmp_path: Path, broken: Callable[[dict[str, Any]], None]
) -> None:
    made = world.learnt()
    for policy in made:
        broken(policy)
    network.enforce([*world.objects(), *made], tmp_path)
    cut_off: set[Connection] = {("web", world.db, 5432), ("web", "db", 15432)}
    all_pass(network, world.passing - cut_off)
    assert network.reached(cut_off) == set()
