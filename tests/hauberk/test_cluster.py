# SPDX-License-Identifier: Apache-2.0
"""`hauberk cluster` against a real API server: what the cluster says reaches plans, and its policies are in force and go again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bus.contract import Bus, Record
from bus.embedded.bus import EmbeddedSettings
from bus.registry import open_bus
from policy.cluster_facts import ClusterFacts
from policy.cluster_peers import ClusterPeers
from schemas.cluster import Fact, NodeFact, PodFact, ServiceFact, decode
from schemas.enforcement import decode_plan
from schemas.identity import Identity, Kind, Owner, encode
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, INVENTORY, POLICIES

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def place(api_server: Any, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own, which also names its other objects."""
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    api_server.apply({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": {"kubearmor-file-posture": "block"}},
    })  # fmt: skip
    return name


@pytest.fixture
async def bus(hauberk: Any) -> AsyncIterator[Bus]:
    opened = await open_bus(EmbeddedSettings(directory=str(hauberk.state / "bus")))
    yield opened
    await opened.close()


def settings(api_server: Any, place: str, **more: str) -> dict[str, str]:
    return {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig(more.pop("token", "admin"))),
        "HAUBERK__CLUSTER__LEASE__NAMESPACE": "default", "HAUBERK__CLUSTER__LEASE__NAME": place,
        "HAUBERK__CLUSTER__LEASE__SECONDS": "5",
    } | more  # fmt: skip


async def facts(bus: Bus) -> dict[bytes, Fact]:
    return {key: decode(record.value) for key, record in (await bus.latest(CLUSTER)).items() if record.value}


def address(place: str) -> str:
    """Of the pod in `place`: pods of other tests, which are still there, must not have had it before."""
    number = int(place[1:]) % (250 * 250 * 250)
    return f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def web(place: str, node: str) -> list[dict[str, Any]]:
    """A Deployment's pod as its controllers make it, and what stands around it."""
    meta = {"namespace": place, "labels": {"app": "web", "pod-template-hash": "7c9d"}}
    pod = {"containers": [{"name": "web", "image": "nginx"}], "nodeName": node}
    return [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"zone": "a"}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": place},
         "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {**meta, "name": "web-7c9d", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d1", "controller": True}]},
         "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                  "template": {"metadata": {"labels": meta["labels"]}, "spec": {"containers": pod["containers"]}}}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "name": "web-7c9d-x1"}, "spec": pod},
    ]  # fmt: skip


def make_web(api_server: Any, place: str, node: str) -> str:
    """Makes it; the pod's uid."""
    *around, pod = web(place, node)
    api_server.apply(*around)
    uid = api_server.kubectl("get", "rs", "web-7c9d", "-n", place, "-o", "jsonpath={.metadata.uid}").stdout
    pod["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9d", "uid": uid, "controller": True}
    ]
    api_server.apply(pod)
    api_server.status(
        "pod", place, "web-7c9d-x1", {"phase": "Running", "podIP": address(place), "podIPs": [{"ip": address(place)}]}
    )
    return str(api_server.kubectl("get", "pod", "web-7c9d-x1", "-n", place, "-o", "jsonpath={.metadata.uid}").stdout)


def policy(place: str, action: str = "Block", **spec: Any) -> dict[str, Any]:
    network = {"matchProtocols": [{"protocol": "udp"}]}
    return {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "no-udp", "namespace": place},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "network": network, "action": action} | spec,
    }  # fmt: skip


async def test_containers_of_a_static_pod_are_those_of_its_mirror(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    """The mirror as a kubelet makes it; beside it a pod that somebody made to look like it, which the server takes as well."""
    running = hauberk.start("cluster", **settings(api_server, place))
    running.ready()
    node, uid = f"{place}-cp", "4b8c4f2a9f0d4c6e8a1b3c5d7e9f0a1b"

    def make(name: str, component: str) -> None:
        api_server.apply({
            "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": node, "hostNetwork": True, "containers": [{"name": "etcd", "image": "etcd"}]},
            "metadata": {
                "name": name, "namespace": place, "labels": {"component": component},
                "annotations": {"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid, "kubearmor-policy": "audited"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "n", "controller": True}],
            },
        })  # fmt: skip

    await asyncio.to_thread(make, "forged", "forged")
    await asyncio.to_thread(make, f"etcd-{node}", "etcd")
    told = Identity(
        kind=Kind.CONTAINER, node=node, uid="c1", namespace=place, pod=f"etcd-{node}", pod_uid=uid, container_name="etcd", orchestrated=True
    )  # fmt: skip

    async def joined() -> Identity | None:
        found = ClusterFacts()
        for key, record in (await bus.latest(CLUSTER)).items():
            found.fact(key, record.value)
        one = found.identity(told.key, told)
        return one if one is not None and one.labels else None

    one = await until(joined)
    assert (one.labels, one.annotations, one.owner) == (
        {"component": "etcd"}, {"kubearmor-policy": "audited"}, Owner("Node", node, ""),
    )  # fmt: skip
    assert running.end() == 0


async def test_a_pod_becomes_a_fact_with_its_owner(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    running = hauberk.start("cluster", **settings(api_server, place))
    running.ready()
    uid = await asyncio.to_thread(make_web, api_server, place, f"{place}-n1")

    async def told() -> Any:
        fact = (await facts(bus)).get(f"pod/{uid}".encode())
        return fact if isinstance(fact, PodFact) and fact.addresses else None

    fact = await until(told)
    assert (fact.owner, fact.labels, fact.node) == (Owner("Deployment", "web", place), {"app": "web"}, f"{place}-n1")
    found = await facts(bus)
    node, service = found[f"node/{place}-n1".encode()], found[f"service/{place}/web".encode()]
    assert isinstance(node, NodeFact)
    assert node.labels["zone"] == "a"
    assert isinstance(service, ServiceFact)
    assert service.ports[0].target == 8080
    await asyncio.to_thread(
        api_server.kubectl, "delete", "pod", "web-7c9d-x1", "-n", place, "--grace-period=0", "--force"
    )

    async def over() -> bool:
        one = (await facts(bus)).get(f"pod/{uid}".encode())
        return isinstance(one, PodFact) and one.ended > 0

    await until(over)
    assert running.end() == 0


async def test_a_service_that_is_gone_is_told_for_the_time_when_it_was_there(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    running = hauberk.start("cluster", **settings(api_server, place))
    running.ready()

    def make(name: str) -> str:
        api_server.apply({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": place}, "spec": {"ports": [{"port": 80}]},
        })  # fmt: skip
        return str(api_server.kubectl("get", "service", name, "-n", place, "-o", "jsonpath={.spec.clusterIP}").stdout)

    mine = await asyncio.to_thread(make, "web")

    async def known() -> Any:
        return (await facts(bus)).get(f"service/{place}/web".encode())

    fact = await until(known)
    assert fact.cluster_addresses == (mine,)
    there = time.time()
    await asyncio.to_thread(api_server.kubectl, "delete", "service", "web", "-n", place)

    async def over() -> Any:
        return not await known()

    await until(over)
    peers = ClusterPeers()
    for key, record in (await bus.latest(CLUSTER)).items():
        peers.fact(key, record.value)
    told = peers.peer(mine, there)
    assert told is not None
    assert (told.name, told.namespace) == ("svc/web", place)
    now = peers.peer(mine, time.time() + 1)
    assert now is None or now.namespace != place
    assert running.end() == 0


async def test_endpoints_become_facts_and_name_the_peer(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    running = hauberk.start("cluster", **settings(api_server, place))
    await asyncio.to_thread(make_web, api_server, place, f"{place}-n1")
    await asyncio.to_thread(api_server.apply, {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": 8080}],
        "metadata": {"name": "web-abc", "namespace": place, "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [address(place)]}],
    })  # fmt: skip

    async def peer() -> Any:
        peers = ClusterPeers()
        for key, record in (await bus.latest(CLUSTER)).items():
            peers.fact(key, record.value)
        found = peers.peer(address(place), time.time())
        return found if found is not None and found.services else None

    found = await until(peer)
    assert (found.name, found.namespace, found.services) == ("pod/web-7c9d-x1", place, ("web",))
    assert found.owner == Owner("Deployment", "web", place)
    assert running.end() == 0


async def test_a_policy_of_the_cluster_reaches_the_plan_of_the_node_by_labels_of_the_pod(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    node = f"{place}-n1"
    uid = await asyncio.to_thread(make_web, api_server, place, node)
    # As the runtime of the node told it: no labels, no owner.
    told = Identity(kind=Kind.CONTAINER, node=node, uid="c1", cgroups=(77,), namespace=place, pod="web-7c9d-x1", pod_uid=uid,
                    container_name="web", orchestrated=True)  # fmt: skip
    host = Identity(kind=Kind.NODE, node=node, uid=node)
    await bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (told, host)])
    watching = hauberk.start("cluster", **settings(api_server, place))
    planning = hauberk.start("planner")
    watching.ready()
    planning.ready()
    await asyncio.to_thread(api_server.apply, policy(place))
    name = f"KubeArmorPolicy/{place}/no-udp"

    async def planned() -> set[str]:
        record = (await bus.latest(ENFORCEMENT_DESIRED)).get(node.encode())
        return set(decode_plan(record.value).policies) if record and record.value else set()

    async def in_force() -> bool:
        return name in await planned()

    await until(in_force)
    api_server.kill()
    assert name in await planned()
    await asyncio.to_thread(api_server.start)
    await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "no-udp", "-n", place)

    async def lifted() -> bool:
        return name not in await planned()

    await until(lifted)
    assert (planning.end(), watching.end()) == (0, 0)


async def test_a_policy_with_an_error_is_not_applied_and_the_one_before_stays(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    running = hauberk.start("cluster", **settings(api_server, place))
    running.ready()
    await asyncio.to_thread(api_server.apply, policy(place))
    key = f"KubeArmorPolicy/{place}/no-udp".encode()

    async def there() -> Any:
        return (await bus.latest(POLICIES)).get(key)

    before = await until(there)
    # What the definition of the kind cannot say: a protocol that nobody knows.
    wrong = policy(place, network={"matchProtocols": [{"protocol": "carrier-pigeon"}]})
    await asyncio.to_thread(api_server.apply, wrong)
    await asyncio.to_thread(
        running.until, r"no-udp of the cluster is not applied: .*spec\.network\.matchProtocols\[0\]"
    )
    assert await there() == before
    refused = api_server.kubectl("apply", "-f", "-", given='{"apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", '
                                 f'"metadata": {{"name": "x", "namespace": "{place}"}}, "spec": {{"action": "Maybe"}}}}', check=False)  # fmt: skip
    assert "spec.action" in refused.stderr
    assert running.end() == 0


async def test_neither_side_overwrites_the_other(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    import msgspec

    file = hauberk.home / "mine.json"
    file.write_bytes(msgspec.json.encode(policy(place, "Audit")))
    assert hauberk("apply", "-f", str(file)).returncode == 0
    key = f"KubeArmorPolicy/{place}/no-udp".encode()
    mine = (await bus.latest(POLICIES))[key].value
    running = hauberk.start("cluster", **settings(api_server, place))
    running.ready()
    await asyncio.to_thread(
        api_server.apply, policy(place), policy(place) | {"metadata": {"name": "other", "namespace": place}}
    )
    other = f"KubeArmorPolicy/{place}/other".encode()

    async def there() -> bool:
        return other in await bus.latest(POLICIES)

    await until(there)
    assert (await bus.latest(POLICIES))[key].value == mine
    file.write_bytes(msgspec.json.encode(policy(place, "Audit") | {"metadata": {"name": "other", "namespace": place}}))
    done = hauberk("apply", "-f", str(file))
    assert done.returncode != 0
    assert "is an object of the cluster; change them there with kubectl" in done.stderr
    done = hauberk("delete", "policy", "other", "-n", place)
    assert done.returncode == 1
    assert "delete it with kubectl" in done.stderr
    # Once it is nobody's, the cluster's object of that name is in force.
    assert hauberk("delete", "policy", "no-udp", "-n", place).returncode == 0

    async def taken() -> bool:
        record = (await bus.latest(POLICIES)).get(key)
        return record is not None and record.value != mine

    await until(taken)
    assert running.end() == 0


async def test_the_replica_that_is_killed_is_replaced_and_no_policy_is_lost(
    hauberk: Any, bus: Bus, api_server: Any, place: str, until: Callable[..., Any]
) -> None:
    await asyncio.to_thread(api_server.apply, policy(place))
    first = hauberk.start("cluster", **settings(api_server, place))
    key = f"KubeArmorPolicy/{place}/no-udp".encode()

    async def there() -> bool:
        return key in await bus.latest(POLICIES)

    await until(there)
    second = hauberk.start("cluster", **settings(api_server, place))
    second.ready()
    ends = await bus.end(POLICIES)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(60)
    await asyncio.to_thread(api_server.apply, policy(place) | {"metadata": {"name": "after", "namespace": place}})

    async def after() -> bool:
        return f"KubeArmorPolicy/{place}/after".encode() in await bus.latest(POLICIES)

    await until(after)
    assert await there()
    grown = sum((await bus.end(POLICIES)).values()) - sum(ends.values())
    assert grown == 1, "what was there already is not written again"
    assert second.end() == 0


def test_what_the_account_may_not_do_is_one_sentence(hauberk: Any, api_server: Any, place: str) -> None:
    running = hauberk.start(
        "cluster", **settings(api_server, place, token="nobody", HAUBERK__CLUSTER__LEASE__ENABLED="false")
    )
    said = running.until('cannot list resource "replicasets"')
    assert "give the account that right" in said
    assert "Traceback" not in said
    assert running.end() == 0


@pytest.mark.parametrize("text", ["", "clusters: 7"])
def test_a_wrong_kubeconfig_ends_it_with_the_setting(hauberk: Any, text: str) -> None:
    file = hauberk.home / "kubeconfig"
    file.write_text(text)
    done = hauberk("cluster", HAUBERK__CLUSTER__SERVER__KUBECONFIG=str(file))
    assert done.returncode == 2
    assert "set `cluster.server.kubeconfig`" in done.stderr
    assert "Traceback" not in done.stderr
