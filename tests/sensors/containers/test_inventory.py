# SPDX-License-Identifier: Apache-2.0
"""The inventory over real runtimes and the real cgroup tree: known at birth, complete soon, kept after the end, then gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from kernel.loading import LoadSettings
from schemas.errors import Unavailable
from schemas.identity import Identity, Kind, decode, encode
from schemas.topics import INVENTORY
from sensors.containers import cgroups
from sensors.containers.contract import Found
from sensors.containers.cri import CriSettings
from sensors.containers.declared import WorkloadSettings
from sensors.containers.docker import Docker, DockerSettings
from sensors.containers.hashes import inside
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.podman import PodmanSettings
from sensors.node.sensor import NodeSettings, open_node

pytestmark = [pytest.mark.containers, pytest.mark.kernel]


@asynccontextmanager
async def running(bus: MemoryBus, *runtimes: Any, **settings: Any) -> AsyncIterator[NodeInventory]:
    # A runtime on a busy machine may take its time: whoever it tells of is not given up before.
    settings = {"answer_seconds": 60.0} | settings
    inventory = NodeInventory(bus, NodeInventorySettings(node="n1", runtimes=runtimes, **settings))
    task = asyncio.create_task(inventory.run())
    try:
        async with asyncio.timeout(60):
            await inventory.ready.wait()
        yield inventory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def published(bus: MemoryBus, uid: str) -> Identity | None:
    record = (await bus.latest(INVENTORY)).get(f"n1/{uid}".encode())
    return None if record is None or record.value is None else decode(record.value)


async def withdrawn(bus: MemoryBus, uid: str) -> None:
    """Poll until the bus holds no record of this identity: the inventory publishes from a task of its own."""
    deadline = time.monotonic() + 60
    while await published(bus, uid) is not None:
        assert time.monotonic() < deadline, f"{uid} is still told"
        await asyncio.sleep(0.01)


def tell_of(inventory: NodeInventory, under: str) -> None:
    """What the kernel's cgroup_mkdir records would say."""
    for id_, path in cgroups.scan(cgroups.mount_point()):
        if path.startswith(under):
            inventory.on_cgroup(id_, path, False)


async def test_what_runs_already_is_known_at_start(dockerd: Any, kernel_cgroup_id: Callable[[str], int]) -> None:
    bus = MemoryBus()
    id_ = await asyncio.to_thread(dockerd.run, "early", "--label", "app=web")
    try:
        async with running(bus, DockerSettings(socket=dockerd.socket, timeout_seconds=60.0)) as inventory:
            seen = await published(bus, id_)
            assert seen is not None
            assert seen.complete
            assert (seen.kind, seen.container_name, seen.namespace) == (Kind.CONTAINER, "early", "container_namespace")
            assert seen.labels["app"] == "web"
            assert seen.workload == "container_namespace/early"
            assert seen.cgroups == (kernel_cgroup_id(f"/docker/{id_}"),)
            assert (seen.pid_ns, seen.mnt_ns) == cgroups.namespaces(seen.root_pid)
            assert inventory.find(seen.cgroups[0]) == seen
            assert (inside(seen), inside(None)) == (seen.root_pid, 0)
            assert inventory.status == []
    finally:
        await asyncio.to_thread(dockerd.remove, "early")


async def test_a_container_is_known_at_birth_and_kept_after_its_end(dockerd: Any, until: Any) -> None:
    bus = MemoryBus()
    runtime = DockerSettings(socket=dockerd.socket, timeout_seconds=60.0)
    async with running(bus, runtime, linger_seconds=2.0, rescan_seconds=0.1) as inventory:
        id_ = await asyncio.to_thread(dockerd.run, "born", "--label", "kubearmor.io/namespace=shop")
        tell_of(inventory, f"/docker/{id_}")
        await until(lambda: (one := inventory.find(_cgroup(id_))) and one.complete and one.root_pid)
        cgroup = _cgroup(id_)
        mine = lambda: [one for one in bus.records(INVENTORY) if one.key == f"n1/{id_}".encode()]  # noqa: E731
        await until(lambda: mine() and decode(mine()[-1].value).complete)
        assert decode(mine()[-1].value).namespace == "shop"
        # Looked at meanwhile: Docker may still be removing it when it is forgotten already.
        removing = asyncio.create_task(asyncio.to_thread(dockerd.remove, "born"))
        ended = await until(lambda: (one := inventory.find(cgroup)) and one.ended and one)
        assert ended.container_name == "born"
        await until(lambda: inventory.find(cgroup) is None)
        await until(lambda: mine()[-1].value is None)
        await removing


async def test_a_container_that_ends_at_once_has_its_name(dockerd: Any, until: Any) -> None:
    class Before(Docker):
        """Docker as it answers before the first process runs, and never again."""

        async def describe(self, place: cgroups.Place) -> Found | None:
            found = await super().describe(place)
            return found and msgspec.structs.replace(found, root_pid=0)

    bus = MemoryBus()
    async with running(bus, rescan_seconds=60) as inventory:
        inventory._runtimes = [Before(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0))]
        id_ = await asyncio.to_thread(dockerd.run, "brief", "--label", "app=brief")
        try:
            cgroup = _cgroup(id_)
            tell_of(inventory, f"/docker/{id_}")
            await until(lambda: inventory.find(cgroup).container_name == "brief")  # type: ignore[union-attr]
            known = inventory.find(cgroup)
            assert known is not None
            assert (known.complete, known.labels) == (False, {"app": "brief"})
            inventory.on_cgroup(cgroup, None, True)
            ended = inventory.find(cgroup)
            assert ended is not None
            assert ended.ended
            assert (ended.complete, ended.container_name, ended.labels) == (True, "brief", {"app": "brief"})
        finally:
            await asyncio.to_thread(dockerd.remove, "brief")


async def test_containers_that_remove_themselves_have_their_names(
    dockerd: Any, bpffs_home: Callable[[str], str], until: Any
) -> None:
    bus = MemoryBus()
    settings = NodeInventorySettings(
        node="n1", runtimes=(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0),), rescan_seconds=600, linger_seconds=600,
        answer_seconds=60,
    )  # fmt: skip
    inventory = NodeInventory(bus, settings)
    # The kernel tells of them: a look at the tree may come when they are gone already.
    load = LoadSettings(
        host_visibility=("none",), new_visibility=("none",), occurrence_pages=16, definition_pages=256, timeout=100.0
    )
    pins = NodeSettings(pin_dir=f"{bpffs_home('inventory')}/pins", load=load)
    node = await asyncio.to_thread(open_node, pins, inventory.on_cgroup)
    tasks = [asyncio.create_task(inventory.run()), asyncio.create_task(node.agent(bus).run())]
    try:
        await asyncio.wait_for(inventory.ready.wait(), 60)
        names = [f"gone-{number}" for number in range(6)]
        for name in names:
            words = f"run --rm --network none --name {name} -l app=gone busy:1 /bin/true"
            await asyncio.to_thread(dockerd.docker, *words.split())
        await until(
            lambda: [one.container_name for one in inventory.identities if one.labels.get("app") == "gone"] == names
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node.close()


async def test_dockers_word_counts_over_the_files_of_its_runc(dockerd: Any, until: Any) -> None:
    bus = MemoryBus()
    files = PodmanSettings(roots=(f"{dockerd.home}/exec/runtime-runc/*",), poll_seconds=0.05)
    early = await asyncio.to_thread(dockerd.run, "files-early")
    async with running(bus, DockerSettings(socket=dockerd.socket, timeout_seconds=60.0), files) as inventory:
        late = await asyncio.to_thread(dockerd.run, "files-late")
        tell_of(inventory, f"/docker/{late}")
        await until(lambda: (one := inventory.find(_cgroup(late))) and one.complete)
        seen = [inventory.find(_cgroup(id_)) for id_ in (early, late)]
        assert [(one.container_name, one.runtime) for one in seen if one] == [
            ("files-early", "docker"),
            ("files-late", "docker"),
        ]
    await asyncio.to_thread(dockerd.remove, "files-early", "files-late")


async def test_a_restarted_container_keeps_its_name_under_a_new_cgroup(dockerd: Any, until: Any) -> None:
    bus = MemoryBus()
    async with running(
        bus, DockerSettings(socket=dockerd.socket, timeout_seconds=60.0), rescan_seconds=0.1
    ) as inventory:
        id_ = await asyncio.to_thread(dockerd.run, "again")
        first = await until(lambda: (one := inventory.find(_cgroup(id_))) and one.complete and one)
        await asyncio.to_thread(dockerd.docker, "restart", "-t", "0", "again")
        await until(lambda: (one := inventory.find(_cgroup(id_))) and one.root_pid not in (0, first.root_pid))
        now = inventory.find(_cgroup(id_))
        assert now is not None
        assert now.cgroups[0] == _cgroup(id_) != first.cgroups[0]
        assert not now.ended
        await asyncio.to_thread(dockerd.remove, "again")


def _cgroup(id_: str) -> int:
    return cgroups.cgroup_id(cgroups.mount_point(), f"/docker/{id_}")


async def test_a_cgroup_inside_a_container_is_the_containers(dockerd: Any, until: Any) -> None:
    id_ = await asyncio.to_thread(dockerd.run, "outer")
    inner = f"{cgroups.mount_point()}/docker/{id_}/init.scope"
    try:
        async with running(MemoryBus(), DockerSettings(socket=dockerd.socket, timeout_seconds=60.0)) as inventory:
            os.mkdir(inner)
            inner_id = os.stat(inner).st_ino
            inventory.on_cgroup(inner_id, None, False)
            found = await until(lambda: inventory.find(inner_id))
            assert found.container_name == "outer"
            await until(lambda: inventory.find(inner_id).cgroups == (_cgroup(id_), inner_id))
            os.rmdir(inner)
            inventory.on_cgroup(inner_id, None, True)
            assert not inventory.find(_cgroup(id_)).ended  # type: ignore[union-attr]
    finally:
        await asyncio.to_thread(dockerd.remove, "outer")


async def test_a_pod_is_whole(containerd: Any, until: Any) -> None:
    uid = "99999999-2222-3333-4444-555555555555"
    bus = MemoryBus()
    async with running(bus, CriSettings(socket=containerd.socket, timeout_seconds=60.0)) as inventory:
        sandbox, config = await asyncio.to_thread(containerd.pod, "db-0", "shop", uid, {"app": "db"})
        id_ = await asyncio.to_thread(containerd.container, sandbox, config, "postgres")
        tell_of(inventory, "/kubepods")
        seen = await until(lambda: next((one for one in inventory.identities if one.uid == id_ and one.complete), None))
        assert (seen.pod, seen.namespace, seen.container_name, seen.pod_uid) == ("db-0", "shop", "postgres", uid)
        assert seen.orchestrated
        assert seen.labels == {"app": "db"}
        assert seen.cgroup_path == f"/kubepods/burstable/pod{uid}/{id_}"
        assert seen.pod_cgroup == cgroups.cgroup_id(cgroups.mount_point(), f"/kubepods/burstable/pod{uid}") != 0
        await asyncio.to_thread(containerd.remove, sandbox)


def own(name: str) -> tuple[str, str]:
    """A container name that no other run has, and the cgroup path runc gives it."""
    whole = f"hauberk-{name}-{os.getpid()}-{time.monotonic_ns()}"
    return whole, f"/{whole}"


async def test_plain_runc_looks_like_the_host_until_its_state_is_written(oci: Any, until: Any) -> None:
    bus = MemoryBus()
    name, path = own("plain")
    async with running(
        bus, PodmanSettings(roots=(oci.root("runc"),), poll_seconds=600), rescan_seconds=600
    ) as inventory:
        os.mkdir(cgroups.mount_point() + path)
        id_ = cgroups.cgroup_id(cgroups.mount_point(), path)
        inventory.on_cgroup(id_, path, False)
        provisional = inventory.find(id_)
        assert provisional is not None
        assert (provisional.kind, provisional.complete) == (Kind.HOST, False)
        os.rmdir(cgroups.mount_point() + path)
        inventory.on_cgroup(id_, None, True)
        await asyncio.to_thread(oci.run, "runc", name)
        id_ = cgroups.cgroup_id(cgroups.mount_point(), path)
        inventory.on_cgroup(id_, path, False)
        await until(lambda: inventory.find(id_).kind is Kind.CONTAINER)  # type: ignore[union-attr]
        await withdrawn(bus, f"cgroup-{id_}")
        seen = await until(lambda: inventory.find(id_))
        assert (seen.uid, seen.runtime, seen.cgroup_path) == (name, "runc", path)


async def test_what_looked_like_the_host_while_the_bus_was_away_is_never_told(oci: Any, until: Any) -> None:
    bus = MemoryBus()
    name, path = own("away")
    async with running(
        bus, PodmanSettings(roots=(oci.root("runc"),), poll_seconds=600), rescan_seconds=600
    ) as inventory:
        await asyncio.to_thread(oci.run, "runc", name)
        id_ = cgroups.cgroup_id(cgroups.mount_point(), path)
        bus.fail(Unavailable("away", retry_after=1.0), times=1)
        inventory.on_cgroup(id_, path, False)
        assert inventory.find(id_).kind is Kind.HOST  # type: ignore[union-attr]
        await until(lambda: any(record.key == f"n1/{name}".encode() for record in bus.records(INVENTORY)))
        assert await published(bus, f"cgroup-{id_}") is None


async def test_a_container_told_late_takes_its_cgroup_from_the_host(oci: Any, until: Any) -> None:
    bus = MemoryBus()
    name, path = own("late")
    async with running(bus, PodmanSettings(roots=(oci.root("runc"),), poll_seconds=0.1)) as inventory:
        await asyncio.to_thread(oci.run, "runc", name)
        id_ = cgroups.cgroup_id(cgroups.mount_point(), path)
        await until(lambda: (one := inventory.find(id_)) and one.uid == name)
        # The kernel's word of its birth comes after the runtime's: nothing changes.
        inventory.on_cgroup(id_, path, False)
        assert inventory.find(id_).uid == name  # type: ignore[union-attr]
        await until(lambda: not inventory._changes.waiting)
        await withdrawn(bus, f"cgroup-{id_}")


@pytest.fixture
def host_cgroup() -> Any:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a cgroup")
    path = f"/hauberk-host-{os.getpid()}-{time.monotonic_ns()}.service"
    os.mkdir(cgroups.mount_point() + path)
    yield path
    os.rmdir(cgroups.mount_point() + path)


async def test_a_declared_workload_is_in_the_hosts_root(host_cgroup: str) -> None:
    declared = WorkloadSettings(name="job", cgroup=host_cgroup)
    async with running(MemoryBus(), workloads=(declared,)) as inventory:
        (job,) = [one for one in inventory.identities if one.container_name == "job"]
        assert (job.root_pid, inside(job)) == (0, 1)


async def test_the_node_and_its_services_are_the_hosts(host_cgroup: str) -> None:
    bus = MemoryBus()
    async with running(bus, node_labels={"zone": "a"}) as inventory:
        node = inventory.find(1)
        assert node is not None
        assert (node.kind, node.node, node.cgroup_path) == (Kind.NODE, "n1", "/")
        assert node.node_labels == {"kubernetes.io/hostname": "n1", "kubearmor.io/hostname": "n1", "zone": "a"}
        service = inventory.find(cgroups.cgroup_id(cgroups.mount_point(), host_cgroup))
        assert service is not None
        assert (service.kind, service.complete, service.cgroup_path) == (Kind.HOST, True, host_cgroup)


async def test_without_a_runtime_the_path_is_all_there_is_and_events_go_on(tmp_path: Any, until: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a cgroup")
    id_, mount = "c" * 64, cgroups.mount_point()
    hand = f"docker-by-hand-{os.getpid()}"
    top = f"{mount}/{hand}"
    os.makedirs(f"{top}/{id_}")
    try:
        gone = DockerSettings(socket=str(tmp_path / "none"))
        async with running(MemoryBus(), gone, answer_seconds=0.1) as inventory:
            cgroup = cgroups.cgroup_id(mount, f"/{hand}/{id_}")
            seen = await until(lambda: (one := inventory.find(cgroup)) and one.complete and one)
            assert (seen.kind, seen.uid, seen.container_name) == (Kind.CONTAINER, id_, id_[:12])
            assert (seen.confirmed, seen.doubtful) == (False, True)
    finally:
        os.rmdir(f"{top}/{id_}")
        os.rmdir(top)


async def test_the_id_of_a_confirmed_container_is_no_identity_elsewhere(dockerd: Any, until: Any) -> None:
    bus, mount, taken = MemoryBus(), cgroups.mount_point(), f"/hauberk-taken-{os.getpid()}"
    id_ = await asyncio.to_thread(dockerd.run, "owner")
    named = f"{taken}/docker-{id_}.scope"
    try:
        async with running(bus, DockerSettings(socket=dockerd.socket, timeout_seconds=60.0)) as inventory:
            real = inventory.find(_cgroup(id_))
            assert real is not None
            assert (real.complete, real.confirmed) == (True, True)
            os.makedirs(mount + named)
            cgroup = cgroups.cgroup_id(mount, named)
            inventory.on_cgroup(cgroup, named, False)
            seen = inventory.find(cgroup)
            assert seen is not None
            assert (seen.kind, seen.uid) == (Kind.HOST, f"cgroup-{cgroup}")
            assert inventory.find(_cgroup(id_)) == real
    finally:
        for path in (mount + named, mount + taken):
            if os.path.isdir(path):
                os.rmdir(path)
        await asyncio.to_thread(dockerd.remove, "owner")


async def test_who_takes_a_name_before_its_owner_is_the_hosts(dockerd: Any, until: Any) -> None:
    """The cgroup of another with the id of a container is there first; the runtime says where the container really is."""
    bus, mount, taken = MemoryBus(), cgroups.mount_point(), f"/hauberk-before-{os.getpid()}"
    id_ = await asyncio.to_thread(dockerd.run, "late")
    named = f"{taken}/docker-{id_}.scope"
    try:
        os.makedirs(mount + named)
        cgroup = cgroups.cgroup_id(mount, named)
        inventory = NodeInventory(bus, NodeInventorySettings(node="n1", runtimes=()), ())
        await inventory._links.load()
        inventory._early = None
        inventory.on_cgroup(cgroup, named, False)
        found = await Docker(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0)).list()
        (mine,) = (one for one in found if one.id == id_)
        assert inventory._complete(mine, {})
        inventory.on_cgroup(cgroup, named, False)
        seen, real = inventory.find(cgroup), inventory.find(_cgroup(id_))
        assert seen is not None
        assert real is not None
        assert (seen.kind, real.kind, real.cgroups, real.confirmed) == (
            Kind.HOST,
            Kind.CONTAINER,
            (_cgroup(id_),),
            True,
        )
    finally:
        for path in (mount + named, mount + taken):
            if os.path.isdir(path):
                os.rmdir(path)
        await asyncio.to_thread(dockerd.remove, "late")


async def test_a_bus_that_is_away_loses_no_change(host_cgroup: str, until: Any) -> None:
    bus = MemoryBus()
    async with running(bus) as inventory:
        bus.fail(Unavailable("away", retry_after=0.01), times=3)
        made_up = 1 << 60  # no cgroup of this machine
        inventory.on_cgroup(made_up, "/made-up.service", False)
        key = f"n1/cgroup-{made_up}".encode()
        await until(lambda: any(record.key == key for record in bus.records(INVENTORY)))
        inventory.on_cgroup(made_up, None, True)
        await until(lambda: inventory.find(made_up).ended)  # type: ignore[union-attr]


async def test_what_the_opening_sensor_tells_from_its_thread_waits_for_the_inventory(
    host_cgroup: str, until: Any
) -> None:
    mount = cgroups.mount_point()
    id_ = cgroups.cgroup_id(mount, host_cgroup)
    inventory = NodeInventory(MemoryBus(), NodeInventorySettings(node="n1", runtimes=()))
    # A definition log of a killed agent is read in a thread: no loop runs there.
    await asyncio.to_thread(inventory.on_cgroup, id_, None, False)
    await asyncio.to_thread(inventory.on_cgroup, id_ + 1, "/gone.service", False)
    await asyncio.to_thread(inventory.on_cgroup, id_ + 1, None, True)
    task = asyncio.create_task(inventory.run())
    await until(lambda: inventory.find(id_))
    early = inventory.find(id_ + 1)
    assert early is not None
    assert (early.cgroup_path, bool(early.ended)) == ("/gone.service", True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_bus_that_is_away_at_the_start_holds_nothing_back(until: Callable[..., Any]) -> None:
    """A node boots without one: who is here is published (and spooled), who left is ended once the bus says who that was."""
    bus = MemoryBus()
    gone = Identity(kind=Kind.CONTAINER, uid="g" * 64, node="n1", cgroups=(1 << 60,), cgroup_path="/docker/gone")
    await bus.publish(INVENTORY, [Record(f"n1/{gone.uid}".encode(), encode(gone))])
    # The policies' links, who was here before, and the first time that this is asked again.
    bus.fail(Unavailable("no broker", 0.01), call="latest", times=3)
    async with running(bus) as inventory:
        assert any(one.kind is Kind.NODE for one in inventory.identities)
        await until(lambda: any(
            decode(one.value).ended for one in bus.records(INVENTORY) if one.key.endswith(b"g") and one.value
        ))  # fmt: skip
