# SPDX-License-Identifier: Apache-2.0
"""`hauberk cluster` and the planner beside a real API server: 10,000 pods on 1,000 nodes that are objects without machines.

Both are processes of their own on the embedded bus. Containers of the nodes are put on `inventory` as nodes tell them. The API
server and etcd are on the same cores, so CPU is what counts and wall times are those of a crowded machine. Neighbours:
bench_fleet.py (plans over Kafka), bench_policy.py (what compiling costs).
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/cluster"))

from api_server import ApiServer, NoServer  # noqa: E402

from bus.contract import Bus, Record, Subscription  # noqa: E402
from bus.embedded.bus import EmbeddedSettings  # noqa: E402
from bus.registry import open_bus  # noqa: E402
from cluster.server import Server, connected  # noqa: E402
from cluster.settings import ServerSettings  # noqa: E402
from schemas import identity as identities  # noqa: E402
from schemas.enforcement import decode_plan_head  # noqa: E402
from schemas.identity import Identity, Kind  # noqa: E402
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, INVENTORY, POLICIES  # noqa: E402

Result = dict[str, dict[str, Any]]
PODS, NODES, NAMESPACES = 10_000, 1_000, 20
POLICIES_ALL = 5_000
AT_ONCE = 32
ROUNDS = 5
"""Changes of a policy beside all the others."""
WRITES = 200
"""Statuses a second, ten times the default: at that one the 5,000 take four minutes."""
_MERGE = "application/merge-patch+json"
_ROLE = "from hauberk.cli import main; import sys; sys.exit(main([sys.argv[1]]))"


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes some minutes, most of them to make the objects."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            server = ApiServer(Path(directory) / "kube")
        except NoServer as error:
            raise SystemExit(f"bench_cluster: no API server: {error}") from error
        try:
            server.start()
            crds = str(ROOT / "deploy/kubernetes/crds")
            server.kubectl("apply", "--server-side", "-f", crds)
            server.kubectl("wait", "--for=condition=Established", "-f", crds, "--timeout=60s")
            return asyncio.run(_within(server, scale, Path(directory)))
        finally:
            server.close()


async def _within(made: ApiServer, scale: float, directory: Path) -> Result:
    nodes = max(10, int(NODES * scale))
    pods = max(50, int(PODS * scale))
    changes = max(10, int(500 * scale))
    kubeconfig = str(made.kubeconfig())
    bus = await open_bus(EmbeddedSettings(directory=str(directory / "state/bus")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")} | {
        "HAUBERK_STATE": str(directory / "state"), "HAUBERK__CLUSTER__SERVER__KUBECONFIG": kubeconfig,
        "HAUBERK__CLUSTER__LEASE__ENABLED": "false", "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": str(WRITES),
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []

    def start(role: str) -> subprocess.Popen[bytes]:
        with (directory / f"{role}.err").open("wb") as said:
            running.append(subprocess.Popen([sys.executable, "-c", _ROLE, role], env=environment, stderr=said))
        return running[-1]

    try:
        async with connected(ServerSettings(kubeconfig=kubeconfig, timeout_seconds=60.0)) as server:
            await _fill(server, pods, nodes)
            began = time.monotonic()
            watching = start("cluster")
            await _until(lambda: _known(bus, pods, nodes))
            synced, spent = time.monotonic() - began, _cpu(watching.pid)
            figures = {
                "cluster_first_sync": _figure(synced, "s", 1, f"start of the process to {pods} pods and {nodes} nodes on the bus"),
                "cluster_first_sync_cpu": _figure(spent, "s", 1, "its CPU, start of Python and imports included"),
            }  # fmt: skip
            figures |= await _changes(bus, server, watching.pid, changes, pods)
            figures |= await _rest(bus, server, watching.pid, nodes)
            await _tell_containers(bus, pods, nodes)
            planning = start("planner")
            figures |= await _plans(bus, server, planning.pid, nodes, max(3, int(50 * scale)))
            peak = _status(watching.pid, "VmHWM")
            figures["cluster_memory"] = _figure(
                peak / 1024, "MB", 1, f"largest resident memory of `hauberk cluster`, {pods} pods, {nodes} nodes"
            )
            return figures | await _many_policies(
                bus, server, watching.pid, planning.pid, nodes, max(50, int(POLICIES_ALL * scale))
            )
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait(60)
        await bus.close()


async def _fill(server: Server, pods: int, nodes: int) -> None:
    places = [f"space-{number}" for number in range(NAMESPACES)]
    await _all(server.send("POST", "/api/v1/namespaces", {"metadata": {"name": place}}) for place in places)
    await _all(
        server.send("POST", "/api/v1/nodes", {"metadata": {"name": f"node-{number}", "labels": {"zone": f"z{number % 3}"}}})
        for number in range(nodes)
    )  # fmt: skip

    async def pod(number: int) -> None:
        place = places[number % NAMESPACES]
        path = f"/api/v1/namespaces/{place}/pods"
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{number % 500}", "uid": f"rs-{number % 500}", "controller": True}  # fmt: skip
        await server.send("POST", path, {
            "metadata": {"name": f"pod-{number}", "labels": {"app": f"app-{number % 500}"}, "ownerReferences": [owner]},
            "spec": {"nodeName": f"node-{number % nodes}", "containers": [{"name": "main", "image": "registry.example/app:1"}]},
        })  # fmt: skip
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        await server.send("PATCH", f"{path}/pod-{number}/status", {"status": status}, content=_MERGE)

    await _all(pod(number) for number in range(pods))


async def _changes(bus: Bus, server: Server, pid: int, changes: int, pods: int) -> Result:
    """Labels of pods that change one by one."""
    before, records = _cpu(pid), await _end(bus)
    numbers = [number * (pods // changes) for number in range(changes)]
    await _all(
        server.send("PATCH", f"/api/v1/namespaces/space-{number % NAMESPACES}/pods/pod-{number}",
                    {"metadata": {"labels": {"changed": "yes"}}}, content=_MERGE)
        for number in numbers
    )  # fmt: skip

    async def there() -> bool:
        return await _end(bus) - records >= changes

    await _until(there)
    await asyncio.sleep(0.5)
    written = await _end(bus) - records
    how = f"{changes} pods got a label; CPU of the process over the changes, publishing included"
    return {
        "cluster_pod_change_cpu": _figure((_cpu(pid) - before) / changes * 1e3, "ms/change", changes, how),
        "cluster_pod_change_records": _figure(written / changes, "records/change", changes, "facts written for each"),
    }


async def _rest(bus: Bus, server: Server, pid: int, nodes: int) -> Result:
    """Heartbeats of every node, and nothing else."""
    records, before = await _end(bus), _cpu(pid)
    await _all(
        server.send("PATCH", f"/api/v1/nodes/node-{number}/status",
                    {"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-28T10:00:00Z"}]}},
                    content=_MERGE)
        for number in range(nodes)
    )  # fmt: skip
    await asyncio.sleep(2)
    how = f"one heartbeat of each of {nodes} nodes"
    return {
        "cluster_heartbeat_records": _figure(await _end(bus) - records, "records", nodes, f"facts written for {how}"),
        "cluster_heartbeat_cpu": _figure((_cpu(pid) - before) / nodes * 1e3, "ms/heartbeat", nodes, how),
    }


async def _tell_containers(bus: Bus, pods: int, nodes: int) -> None:
    """As each node's runtime would: one container a pod, without what only the cluster knows."""
    found = {}
    for record in (await bus.latest(CLUSTER)).values():
        found[record.key] = record
    told = [Identity(kind=Kind.NODE, node=f"node-{number}", uid=f"node-{number}") for number in range(nodes)]
    uids = await asyncio.to_thread(_uids, found)
    told += [
        Identity(kind=Kind.CONTAINER, node=node, uid=f"c-{name}", cgroups=(number + 2,), namespace=place, pod=name,
                 pod_uid=uid, container_name="main", orchestrated=True)
        for number, (uid, place, name, node) in enumerate(uids)
    ]  # fmt: skip
    for first in range(0, len(told), 500):
        await bus.publish(INVENTORY, [Record(one.key, identities.encode(one)) for one in told[first : first + 500]])


def _uids(found: dict[bytes, Record]) -> list[tuple[str, str, str, str]]:
    from schemas.cluster import PodFact, decode

    facts = [decode(record.value) for record in found.values() if record.value]
    return [(one.uid, one.namespace, one.name, one.node) for one in facts if isinstance(one, PodFact)]


async def _plans(bus: Bus, server: Server, pid: int, nodes: int, rounds: int) -> Result:
    """A policy that changes, and one pod that is only audited from now on."""
    path = "/apis/security.kubearmor.com/v1/kubearmorclusterpolicies"
    spec = {"selector": {"matchExpressions": [{"key": "namespace", "operator": "In", "values": ["space-1"]}]}, "action": "Block",
            "network": {"matchProtocols": [{"protocol": "udp"}]}}  # fmt: skip
    async with bus.subscribe((ENFORCEMENT_DESIRED,), None, "latest") as plans:
        await server.send("POST", path, {
            "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorClusterPolicy", "metadata": {"name": "bench"}, "spec": spec,
        })  # fmt: skip
        # The first ones may be of the time before the policy was there.
        await _planned(bus, plans, nodes, 0)
        before = _cpu(pid)
        seconds = await _rounds(bus, server, plans, nodes, rounds)
        spent = (_cpu(pid) - before) / rounds
        await asyncio.sleep(1)
        await plans.take(100_000, 0.5)
        audited = {"metadata": {"annotations": {"kubearmor-policy": "audited"}}}
        await server.send("PATCH", "/api/v1/namespaces/space-1/pods/pod-1", audited, content=_MERGE)
        again: set[bytes] = set()
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            again |= {one.record.key for one in await plans.take(1000, 0.5)}
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    how = f"PATCH of a policy to the plan of the last of {nodes} nodes, {rounds} rounds"
    return {
        "cluster_policy_to_plans_p99": _figure(last, "s", rounds, how),
        "cluster_policy_to_plans_median": _figure(statistics.median(seconds), "s", rounds, how),
        "cluster_policy_to_plans_cpu": _figure(spent, "s", rounds, f"CPU of the planner for {nodes} plans"),
        "cluster_pod_change_plans": _figure(
            len(again), "plans", 1, "plans made again for one pod that became `audited`"
        ),
    }


async def _rounds(bus: Bus, server: Server, plans: Subscription, nodes: int, rounds: int) -> list[float]:
    """Seconds from each change of the policy `bench` to the plan of the last node."""
    seconds = []
    for number in range(rounds):
        since = _newest(await bus.latest(POLICIES))
        began = time.monotonic()
        path = "/apis/security.kubearmor.com/v1/kubearmorclusterpolicies/bench"
        await server.send("PATCH", path, {"spec": {"message": f"round {number} {began}"}}, content=_MERGE)
        await _planned(bus, plans, nodes, since + 1)
        seconds.append(time.monotonic() - began)
    return seconds


async def _many_policies(bus: Bus, server: Server, pid: int, planning: int, nodes: int, count: int) -> Result:
    """Policies made one after the other, until all are on the bus and each has a status; then nothing more is written."""
    kinds, before, patches = f"{count} KubeArmorPolicies", _cpu(pid), await _patches(server)
    there = len(await bus.latest(POLICIES))

    async def make(number: int) -> None:
        await server.send("POST", f"/apis/security.kubearmor.com/v1/namespaces/space-{number % NAMESPACES}/kubearmorpolicies", {
            "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": f"many-{number}"},
            "spec": {"selector": {"matchLabels": {"app": f"none-{number}"}}, "action": "Block",
                     "network": {"matchProtocols": [{"protocol": "udp"}]}},
        })  # fmt: skip

    began = time.monotonic()
    await _all(make(number) for number in range(count))
    made = time.monotonic() - began

    async def on_bus() -> bool:
        return len(await bus.latest(POLICIES)) >= there + count

    await _until(on_bus)
    synced = time.monotonic() - began - made

    async def told() -> bool:
        return await _patches(server) - patches >= count

    # Megabytes a time, of the server that takes the writes.
    await _until(told, pause=2.0)
    async with bus.subscribe((ENFORCEMENT_DESIRED,), None, "latest") as plans:
        spent = _cpu(planning)
        rounds = await _rounds(bus, server, plans, nodes, ROUNDS)
        spent = (_cpu(planning) - spent) / ROUNDS
    last = -1.0
    while last != (last := await _patches(server)):  # noqa: ASYNC110 - a count of the server
        await asyncio.sleep(5)
    how = f"PATCH of a policy to the plan of the last of {nodes} nodes beside {kinds}, {ROUNDS} rounds"
    return {
        "cluster_policies_to_plans": _figure(statistics.median(rounds), "s", ROUNDS, f"median, {how}"),
        "cluster_policies_to_plans_most": _figure(max(rounds), "s", ROUNDS, how),
        "cluster_policies_to_plans_cpu": _figure(spent, "s", ROUNDS, f"CPU of the planner, {how}"),
        "cluster_policies_planner_memory": _figure(
            _status(planning, "VmHWM") / 1024, "MB", 1, f"largest resident memory of `hauberk planner` with {kinds}"
        ),
        "cluster_policies_sync": _figure(synced, "s", count, f"the last of {kinds} to the last of them on the bus"),
        "cluster_policies_cpu": _figure(
            _cpu(pid) - before, "s", count, f"CPU of the process for {kinds} and their statuses"
        ),
        "cluster_policies_writes": _figure(
            (last - patches) / count,
            "patches/policy",
            count,
            f"statuses written for each of {kinds} while no node answers",
        ),
        "cluster_policies_memory": _figure(
            _status(pid, "VmHWM") / 1024,
            "MB",
            1,
            f"largest resident memory of `hauberk cluster` with {kinds} beside the pods",
        ),
    }


async def _patches(server: Server) -> float:
    """Writes of statuses of policies that the API server took."""
    said = (await server.get("/metrics", accept="text/plain")).decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in said.splitlines()
        if line.startswith("apiserver_request_total") and 'resource="kubearmorpolicies"' in line and 'verb="PATCH"' in line
    )  # fmt: skip


def _newest(records: dict[bytes, Record]) -> int:
    return max((record.timestamp_ms for record in records.values()), default=0) * 1_000_000


async def _planned(bus: Bus, plans: Subscription, nodes: int, since: int) -> None:
    """Until every node has a plan of policies no older than `since`, Unix ns."""
    left = {f"node-{number}" for number in range(nodes)}
    deadline = time.monotonic() + 300
    while left:
        for one in await plans.take(2000, 1.0):
            if one.record.value and decode_plan_head(one.record.value).created_ns >= since:
                left.discard(one.record.key.decode())
        assert time.monotonic() < deadline, f"{len(left)} nodes have no plan"


async def _known(bus: Bus, pods: int, nodes: int) -> bool:
    if await _end(bus) < pods + nodes:
        return False
    keys = [key.partition(b"/")[0] for key in await bus.latest(CLUSTER)]
    return keys.count(b"pod") >= pods and keys.count(b"node") >= nodes


async def _end(bus: Bus) -> int:
    return sum((await bus.end(CLUSTER)).values())


async def _until(there: Callable[[], Coroutine[Any, Any, bool]], seconds: float = 600, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not await there():
        assert time.monotonic() < deadline, "not within the time"
        await asyncio.sleep(pause)


async def _all(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """A few at a time."""
    left = iter(work)

    async def some() -> None:
        for one in left:
            await one

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def _figure(value: float, unit: str, count: int, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": count, "how": how}


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, field: str) -> float:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(field))
    return float(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0), indent=1))
