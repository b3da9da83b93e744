# SPDX-License-Identifier: Apache-2.0
"""Every kind of container that a pod may have, and pods that are nobody's Deployment, the whole way as in `test_cluster_pod`.

A pod of a CronJob's Job with an init container, a sidecar (an init container that stays) and an ephemeral container that `kubectl debug`
adds later, and a static pod: objects of a real API server, run by containerd's CRI with their uids and names, as a kubelet would. Each is
denied what a policy for it alone denies, and nobody else is.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from bus.contract import Bus
from bus.embedded.bus import EmbeddedSettings
from bus.registry import open_bus
from schemas.enforcement import decode_plan
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED

pytestmark = [
    pytest.mark.kubernetes, pytest.mark.containers, pytest.mark.kernel, pytest.mark.usefixtures("live"), pytest.mark.timeout(900),
]  # fmt: skip

PLACE, NODE, POD, STATIC = "kinds", "kinds-node", "nightly-28912345-x1", "dns-kinds-node"
HASH = "4b8c4f2a9f0d4c6e8a1b3c5d7e9f0a1c"
IMAGE = "localhost/pause:1"
FREE, DENIED = "welcome", "Operation not permitted"
POLICY_PATH = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies"


class Pods:
    """The two pods, made in the API server and run in containerd. `containers`: name -> id."""

    def __init__(self, api_server: Any, containerd: Any, port: int) -> None:
        self._api_server, self._containerd, self._port = api_server, containerd, port
        self._sandboxes: list[str] = []
        self._config = b""
        self.containers: dict[str, str] = {}

    def _made(self, version: str, kind: str, meta: dict[str, Any], spec: dict[str, Any] | None = None) -> str:
        """Make an object; its uid."""
        one = {"apiVersion": version, "kind": kind, "metadata": meta} | ({} if spec is None else {"spec": spec})
        words = ("apply", "--server-side", "-f", "-", "-o", "jsonpath={.metadata.uid}")
        return str(self._api_server.kubectl(*words, given=msgspec.json.encode(one).decode()).stdout)

    def around(self) -> None:
        """The namespace and the node."""
        self._made("v1", "Namespace", {"name": PLACE})
        self._made("v1", "Node", {"name": NODE})

    def of_a_job(self) -> None:
        """The pod of a CronJob's Job; of its containers none runs yet."""
        labels = {"app": "nightly"}
        spec = {
            "restartPolicy": "Never", "nodeName": NODE, "hostNetwork": True, "containers": [{"name": "work", "image": IMAGE}],
            "initContainers": [{"name": "prepare", "image": IMAGE}, {"name": "proxy", "image": IMAGE, "restartPolicy": "Always"}],
        }  # fmt: skip
        job = {"template": {"metadata": {"labels": labels}, "spec": spec}}
        nightly = {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}
        owner = self._owned_by(
            "batch/v1",
            "CronJob",
            "nightly",
            self._made("batch/v1", "CronJob", {"name": "nightly", "namespace": PLACE}, nightly),
        )
        meta = {"name": "nightly-28912345", "namespace": PLACE, "ownerReferences": owner}
        owner = self._owned_by("batch/v1", "Job", "nightly-28912345", self._made("batch/v1", "Job", meta, job))
        uid = self._made(
            "v1", "Pod", {"name": POD, "namespace": PLACE, "labels": labels, "ownerReferences": owner}, spec
        )
        sandbox, self._config = self._containerd.pod(POD, PLACE, uid, labels)
        self._sandboxes.append(sandbox)

    @staticmethod
    def _owned_by(version: str, kind: str, name: str, uid: str) -> list[dict[str, Any]]:
        return [{"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}]

    def start(self, name: str) -> None:
        """Run a container of the Job's pod."""
        self.containers[name] = self._containerd.container(self._sandboxes[0], self._config, name)

    def end(self, name: str) -> None:
        self._containerd.end(self.containers.pop(name))

    def debug(self) -> None:
        """`kubectl debug`: an ephemeral container in the pod that is there, then run as the others."""
        self._api_server.kubectl(
            "debug",
            POD,
            "-n",
            PLACE,
            f"--image={IMAGE}",
            "--container=probe",
            "--profile=general",
            "--quiet",
            "--",
            "sleep",
            "1",
        )
        pod = self._api_server.get(f"/api/v1/namespaces/{PLACE}/pods/{POD}")
        assert [one["name"] for one in pod["spec"]["ephemeralContainers"]] == ["probe"]
        self.start("probe")

    def static(self) -> None:
        """A static pod: the runtime has the uid of its manifest, the API server a mirror of another."""
        uid = self._api_server.get(f"/api/v1/nodes/{NODE}")["metadata"]["uid"]
        said = {
            "kubernetes.io/config.hash": HASH,
            "kubernetes.io/config.mirror": HASH,
            "kubernetes.io/config.source": "file",
        }
        meta = {"name": STATIC, "namespace": PLACE, "labels": {"component": "dns"}, "annotations": said,
                "ownerReferences": self._owned_by("v1", "Node", NODE, uid)}  # fmt: skip
        self._made(
            "v1", "Pod", meta, {"nodeName": NODE, "hostNetwork": True, "containers": [{"name": "dns", "image": IMAGE}]}
        )
        sandbox, config = self._containerd.pod(STATIC, PLACE, HASH, {})
        self._sandboxes.append(sandbox)
        self.containers["dns"] = self._containerd.container(sandbox, config, "dns")

    def connects(self, name: str) -> str:
        """What a connection from inside comes to: `welcome`, or what nc says."""
        code, out, error = self._containerd.execute(
            self.containers[name], "/bin/nc", "-w", "20", "127.0.0.1", str(self._port)
        )
        return str(out).strip() if code == 0 else str(error).strip()

    def close(self) -> None:
        for sandbox in self._sandboxes:
            self._containerd.remove(sandbox)
        self._api_server.kubectl("delete", "ksp", "--all", "-n", PLACE)
        self._api_server.kubectl("delete", "pod,job,cronjob", "--all", "-n", PLACE, "--force", "--grace-period=0")
        self._api_server.kubectl("delete", "node", NODE)


def refusing(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A policy that denies TCP."""
    return {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": {"matchLabels": labels}, "network": {"matchProtocols": [{"protocol": "tcp"}]}, "action": "Block"},
    }  # fmt: skip


def of_container(name: str) -> dict[str, Any]:
    return refusing(f"no-tcp-{name}", {"app": "nightly", "kubearmor.io/container.name": f"[{name}]"})


@pytest.fixture
async def bus(hauberk: Any) -> AsyncIterator[Bus]:
    opened = await open_bus(EmbeddedSettings(directory=str(hauberk.state / "bus")))
    yield opened
    await opened.close()


@pytest.fixture
def pods(hauberk: Any, api_server: Any, containerd: Any, listener: int) -> Any:
    from kernel.loading import unload

    if os.geteuid() != 0:
        pytest.skip("needs root: starts containers and loads programs")
    hauberk.pins = f"{hauberk.pins}-kinds"
    made = Pods(api_server, containerd, listener)
    try:
        yield made
    finally:
        hauberk.close()
        unload(hauberk.pins)
        made.close()


async def test_each_kind_of_container_is_selected_by_its_name_and_denied(
    hauberk: Any, api_server: Any, containerd: Any, bus: Bus, pods: Pods, until: Callable[..., Any]
) -> None:
    runtimes = json.dumps([{"type": "cri", "socket": containerd.socket, "timeout_seconds": 60.0}])
    visibility = {"HAUBERK__POSTURES__HOST_VISIBILITY": '["none"]'}
    watched = {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig()), "HAUBERK__CLUSTER__LEASE__ENABLED": "false",
        "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": "1000",
    }  # fmt: skip
    roles = [
        hauberk.start("planner", **visibility), hauberk.start("processor", **visibility),
        hauberk.start("node", HAUBERK__NODE=NODE, HAUBERK__INVENTORY__RUNTIMES=runtimes), hauberk.start("cluster", **watched),
    ]  # fmt: skip
    for one in roles:
        await asyncio.to_thread(one.ready)
    await asyncio.to_thread(pods.around)
    policies = [of_container(name) for name in ("prepare", "proxy", "probe")]
    await asyncio.to_thread(api_server.apply, *policies, refusing("no-tcp-static", {"component": "dns"}))
    await asyncio.to_thread(pods.of_a_job)

    async def denied(name: str) -> None:
        async def there() -> bool:
            return DENIED in await asyncio.to_thread(pods.connects, name)

        await until(there)

    async def status(name: str, word: str, containers: int) -> None:
        async def there() -> bool:
            found = (await asyncio.to_thread(api_server.get, f"{POLICY_PATH}/no-tcp-{name}")).get("status") or {}
            return (found.get("status"), found.get("containers", 0)) == (word, containers)

        await until(there)

    # The init container runs alone, as in life; then it is through, and its policy is for nothing.
    await asyncio.to_thread(pods.start, "prepare")
    await denied("prepare")
    await status("prepare", "InForce", 1)
    await status("proxy", "NoEffect", 0)
    await asyncio.to_thread(pods.end, "prepare")
    await status("prepare", "NoEffect", 0)
    # The sidecar beside the container that does the work.
    await asyncio.to_thread(pods.start, "proxy")
    await asyncio.to_thread(pods.start, "work")
    await denied("proxy")
    await status("proxy", "InForce", 1)
    assert await asyncio.to_thread(pods.connects, "work") == FREE
    # Added to the pod that is there.
    await asyncio.to_thread(pods.debug)
    await denied("probe")
    await status("probe", "InForce", 1)
    assert await asyncio.to_thread(pods.connects, "work") == FREE
    await asyncio.to_thread(pods.static)
    await denied("dns")
    # Its sandbox (`POD`) among them, which no container's name leaves out here.
    await status("static", "InForce", 2)

    plan = decode_plan((await bus.latest(ENFORCEMENT_DESIRED))[NODE.encode()].value or b"")
    one_each = {f"KubeArmorPolicy/{PLACE}/no-tcp-{name}": 1 for name in ("proxy", "probe")}
    assert dict(plan.selected) == {**one_each, f"KubeArmorPolicy/{PLACE}/no-tcp-static": 2}
    # Whose container it was is told of each, the one that is gone among them.
    wanted = {"prepare", "proxy", "probe", "dns"}
    told: dict[str, dict[str, Any]] = {}
    async with bus.subscribe((ALERTS,), None, "earliest") as reader:

        async def all_told() -> bool:
            for one in await reader.take(1000, 0.2):
                alert = json.loads(one.record.value or b"{}")
                if alert.get("Action") == "Block":
                    told[alert["ContainerName"]] = alert
            return wanted <= told.keys()

        await until(all_told)
    assert told.keys() == wanted
    for name in ("prepare", "proxy", "probe"):
        alert = told[name]
        assert (alert["PodName"], alert["PolicyName"]) == (POD, f"no-tcp-{name}")
        assert alert["Owner"] == {"Ref": "CronJob", "Name": "nightly", "Namespace": PLACE}
    assert (told["dns"]["PodName"], told["dns"]["Labels"]) == (STATIC, "component=dns")
    assert told["dns"]["Owner"]["Ref"] == "Node"
    for one in reversed(roles):
        assert "Traceback" not in one.said()
        assert one.end() == 0
