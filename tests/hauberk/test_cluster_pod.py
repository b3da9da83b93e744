# SPDX-License-Identifier: Apache-2.0
"""The whole way, with nothing between: kubectl, a real API server, the roles as processes, this kernel, a real pod, and the status.

The pod is an object of the API server, and is run by containerd's CRI with that object's uid, name, namespace and labels, as a
kubelet would: there is none here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from bus.contract import Bus, Subscription
from bus.embedded.bus import EmbeddedSettings
from bus.registry import open_bus
from schemas.enforcement import Plan, decode_plan
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED, POLICIES

pytestmark = [
    pytest.mark.kubernetes, pytest.mark.containers, pytest.mark.kernel, pytest.mark.usefixtures("live"), pytest.mark.timeout(900),
]  # fmt: skip

PLACE, NODE, POD = "shop", "pod-node", "web-7c9d-x1"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/default/leases/pod-proof"
POLICY_PATH = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies"


class Pod:
    """A Deployment's pod: in the cluster, and in containerd with two containers, `web` and `side`."""

    def __init__(self, api_server: Any, containerd: Any, port: int) -> None:
        self._api_server, self._containerd, self._port = api_server, containerd, port
        self.uid, self.sandbox = "", ""
        self.containers: dict[str, str] = {}

    def make(self) -> None:
        labels = {"app": "web", "pod-template-hash": "7c9d"}
        template = {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "web", "image": "localhost/pause:1"}]},
        }
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        self._apply("v1", "Namespace", {"name": PLACE})
        self._apply("v1", "Node", {"name": NODE, "labels": {"zone": "a"}})
        deployment = self._apply("apps/v1", "Deployment", {"name": "web", "namespace": PLACE}, spec)
        owner = [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": deployment, "controller": True}]
        replicas = self._apply(
            "apps/v1",
            "ReplicaSet",
            {"name": "web-7c9d", "namespace": PLACE, "labels": labels, "ownerReferences": owner},
            spec,
        )
        owner = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9d", "uid": replicas, "controller": True}
        ]
        containers = [{"name": name, "image": "localhost/pause:1"} for name in ("web", "side")]
        self.uid = self._apply(
            "v1", "Pod", {"name": POD, "namespace": PLACE, "labels": labels, "ownerReferences": owner},
            {"containers": containers, "nodeName": NODE, "hostNetwork": True},
        )  # fmt: skip
        self.sandbox, config = self._containerd.pod(POD, PLACE, self.uid, labels)
        for name in ("web", "side"):
            self.containers[name] = self._containerd.container(self.sandbox, config, name)
        self._api_server.status("pod", PLACE, POD, {
            "phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}], "containerStatuses": [
                {"name": name, "containerID": f"containerd://{id_}", "image": "localhost/pause:1", "imageID": "", "ready": True,
                 "restartCount": 0} for name, id_ in self.containers.items()],
        })  # fmt: skip

    def _apply(self, version: str, kind: str, meta: dict[str, Any], spec: dict[str, Any] | None = None) -> str:
        one = {"apiVersion": version, "kind": kind, "metadata": meta} | ({} if spec is None else {"spec": spec})
        made = self._api_server.kubectl(
            "apply",
            "--server-side",
            "-f",
            "-",
            "-o",
            "jsonpath={.metadata.uid}",
            given=msgspec.json.encode(one).decode(),
        )
        return str(made.stdout)

    def connects(self, container: str) -> str:
        """What a connection from inside comes to: `welcome`, or what nc says."""
        code, out, error = self._containerd.execute(
            self.containers[container], "/bin/nc", "-w", "20", "127.0.0.1", str(self._port)
        )
        return str(out).strip() if code == 0 else str(error).strip()

    def close(self) -> None:
        if self.sandbox:
            self._containerd.remove(self.sandbox)
        self._api_server.kubectl("delete", "ksp", "--all", "-n", PLACE)
        self._api_server.kubectl("delete", "pod,rs,deployment", "--all", "-n", PLACE, "--force", "--grace-period=0")
        self._api_server.kubectl("delete", "node", NODE)


FREE, DENIED = "welcome", "Operation not permitted"


class Cluster:
    """The roles, each a process, and what the test asks of cluster and bus."""

    def __init__(self, hauberk: Any, api_server: Any, bus: Bus, until: Callable[..., Any], pod: Pod) -> None:
        self.api_server, self.bus, self._until, self._hauberk, self.pod = api_server, bus, until, hauberk, pod

    def watcher(self) -> Any:
        """A replica of `hauberk cluster`."""
        environment = {
            "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(self.api_server.kubeconfig()),
            "HAUBERK__CLUSTER__LEASE__NAMESPACE": "default", "HAUBERK__CLUSTER__LEASE__NAME": "pod-proof",
            "HAUBERK__CLUSTER__LEASE__SECONDS": "5", "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": "1000",
            "HAUBERK__CLUSTER_STATUS__HITS_SECONDS": "1", "HAUBERK_LOG": "INFO",
        }  # fmt: skip
        return self._hauberk.start("cluster", **environment)

    async def holder(self) -> str:
        lease = await asyncio.to_thread(self.api_server.get, LEASE)
        return str((lease.get("spec") or {}).get("holderIdentity") or "")

    async def status(self, name: str) -> dict[str, Any]:
        found = await asyncio.to_thread(self.api_server.get, f"{POLICY_PATH}/{name}")
        return found.get("status") or {}

    async def in_force(self, name: str) -> dict[str, Any]:
        async def told() -> dict[str, Any] | None:
            status = await self.status(name)
            return status if status.get("status") == "InForce" and status.get("containers") == 1 else None

        status: dict[str, Any] = await self._until(told)
        return status

    async def connects(self, container: str, wanted: str) -> None:
        """Until a connection from the container comes to that."""

        async def there() -> bool:
            return wanted in await asyncio.to_thread(self.pod.connects, container)

        await self._until(there)

    async def alert(self) -> dict[str, Any]:
        """The first one of a denied connection of the pod."""
        async with self.bus.subscribe((ALERTS,), None, "earliest") as reader:

            async def told() -> dict[str, Any] | None:
                alerts = [json.loads(one.record.value or b"{}") for one in await reader.take(1000, 0.2)]
                return next((one for one in alerts if one.get("PolicyName") == "no-tcp"), None)

            alert: dict[str, Any] = await self._until(told)
            return alert


def policy(name: str, container: str, protocol: str) -> str:
    selector = {"matchLabels": {"app": "web", "kubearmor.io/container.name": f"[{container}]"}}
    network = {"matchProtocols": [{"protocol": protocol}]}
    return msgspec.json.encode({
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": selector, "network": network, "action": "Block", "message": "not from here"},
    }).decode()  # fmt: skip


@pytest.fixture
async def cluster(
    hauberk: Any, api_server: Any, containerd: Any, listener: int, until: Callable[..., Any]
) -> AsyncIterator[Cluster]:
    from kernel.loading import unload

    hauberk.pins = f"{hauberk.pins}-pod"
    bus = await open_bus(EmbeddedSettings(directory=str(hauberk.state / "bus")))
    pod = Pod(api_server, containerd, listener)
    try:
        yield Cluster(hauberk, api_server, bus, until, pod)
    finally:
        await bus.close()
        await asyncio.to_thread(hauberk.close)
        await asyncio.to_thread(unload, hauberk.pins)
        await asyncio.to_thread(pod.close)


def plans(deliveries: Any) -> list[Plan]:
    return [decode_plan(one.record.value) for one in deliveries if one.record.key == NODE.encode() and one.record.value]


async def quiet(reader: Subscription) -> list[Plan]:
    """What comes until nothing came for a second."""
    found: list[Plan] = []
    while taken := await reader.take(1000, 1.0):
        found += plans(taken)
    return found


async def test_a_policy_of_kubectl_holds_in_one_container_of_a_real_pod_whatever_ends_meanwhile(
    hauberk: Any, api_server: Any, containerd: Any, cluster: Cluster, until: Callable[..., Any]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: starts containers and loads programs")
    runtimes = json.dumps([{"type": "cri", "socket": containerd.socket, "timeout_seconds": 60.0}])
    planner = hauberk.start("planner", HAUBERK__POSTURES__HOST_VISIBILITY='["none"]')
    processor = hauberk.start("processor", HAUBERK__POSTURES__HOST_VISIBILITY='["none"]')
    node = hauberk.start("node", HAUBERK__NODE=NODE, HAUBERK__INVENTORY__RUNTIMES=runtimes)
    first = cluster.watcher()
    await asyncio.to_thread(first.until, "this replica works for the cluster now")
    leader = await cluster.holder()
    second = cluster.watcher()
    for one in (planner, processor, node, first, second):
        await asyncio.to_thread(one.ready)
    await asyncio.to_thread(cluster.pod.make)

    # Applied: denied in the container that it names, in no other of the pod, and told.
    assert await asyncio.to_thread(cluster.pod.connects, "web") == FREE
    await asyncio.to_thread(api_server.kubectl, "apply", "-f", "-", given=policy("no-tcp", "web", "tcp"))
    status = await cluster.in_force("no-tcp")
    assert (status["nodes"], status["containers"]) == (1, 1)
    assert DENIED in await asyncio.to_thread(cluster.pod.connects, "web")
    assert await asyncio.to_thread(cluster.pod.connects, "side") == FREE
    alert = await cluster.alert()
    assert (alert["PodName"], alert["NamespaceName"], alert["ContainerName"]) == (POD, PLACE, "web")
    assert alert["Owner"] == {"Ref": "Deployment", "Name": "web", "Namespace": PLACE}
    assert (alert["Action"], alert["Result"], alert["Message"]) == ("Block", "Operation not permitted", "not from here")

    async def counted() -> bool:
        return bool(((await cluster.status("no-tcp")).get("hits") or {}).get("blocked"))

    await until(counted)

    # The API server is killed: the rule holds. It comes back: nothing was taken for gone, and nothing is planned anew.
    async with cluster.bus.subscribe((ENFORCEMENT_DESIRED,), None, "latest") as reader:
        await quiet(reader)
        before = decode_plan((await cluster.bus.latest(ENFORCEMENT_DESIRED))[NODE.encode()].value or b"")
        api_server.kill()
        try:
            await asyncio.to_thread(first.until, "cannot be followed|was lost to")
            assert DENIED in await asyncio.to_thread(cluster.pod.connects, "web")
        finally:
            await asyncio.to_thread(api_server.start)
        assert DENIED in await asyncio.to_thread(cluster.pod.connects, "web")

        # One replica works again, whichever; that one is killed.
        async def works() -> str:
            return await cluster.holder()

        leader = await until(works)
        ending, staying = (first, second) if first_has(first, second) else (second, first)
        took = staying.said().count("this replica works for the cluster now")
        ending.process.send_signal(signal.SIGKILL)
        ending.process.wait(60)

        async def taken_over() -> bool:
            return bool(staying.said().count("this replica works for the cluster now") > took)

        await until(taken_over)
        assert await cluster.holder() not in ("", leader)
        # What it does first is to read everything; a second policy in force shows that it is through.
        await asyncio.to_thread(api_server.kubectl, "apply", "-f", "-", given=policy("no-udp", "side", "udp"))
        await cluster.in_force("no-udp")
        seen = await quiet(reader)
    # Other tests of the same API server leave theirs, in namespaces of their own.
    ours = f"KubeArmorPolicy/{PLACE}/"
    known = {key.decode() for key in await cluster.bus.latest(POLICIES)}
    assert {key for key in known if key.startswith(ours)} == {f"{ours}no-tcp", f"{ours}no-udp"}
    # Of the plans since the API server was killed none differs but for the policy that came.
    flapped = [
        one for one in seen if one.digest != before.digest and f"KubeArmorPolicy/{PLACE}/no-udp" not in one.policies
    ]
    assert [(one.digest, one.policies) for one in flapped] == []
    assert all(f"KubeArmorPolicy/{PLACE}/no-tcp" in one.policies for one in seen)
    again = [one for one in seen if one.digest == before.digest]
    assert len(again) == 0, [(one.generation, one.created_ns, one.policy_set) for one in again]
    assert DENIED in await asyncio.to_thread(cluster.pod.connects, "web")

    # Deleted: free again.
    await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "no-tcp", "-n", PLACE)
    await cluster.connects("web", FREE)
    for one in (staying, planner, processor, node):
        assert "Traceback" not in one.said()
        assert one.end() == 0


def first_has(first: Any, second: Any) -> bool:
    """Whether the first replica is the one that works: the one whose last word of the lease is that it has it."""

    def works(one: Any) -> bool:
        said = one.said()
        return bool(said.rfind("this replica works for the cluster now") > said.rfind("was lost to"))

    assert works(first) != works(second), (first.said(), second.said())
    return works(first)
