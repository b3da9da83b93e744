# SPDX-License-Identifier: Apache-2.0
"""Declared workloads: a cgroup somebody named is a container to policies, from birth to end, with all below it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from waiting import until

from bus.contract import Record
from bus.memory import MemoryBus, MemorySettings
from schemas.identity import Identity, Kind, decode, encode
from schemas.topics import INVENTORY
from sensors.containers import cgroups
from sensors.containers.changes import IdentityChanges
from sensors.containers.declared import Declared, WorkloadSettings
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings

WEB = WorkloadSettings(name="web", cgroup="/system.slice/web-*.service", labels={"app": "web"})


@pytest.mark.parametrize(
    ("path", "found"),
    [("/system.slice/web-1.service", True), ("/system.slice/web-.service", True), ("/system.slice/web-1.service/sub", False),
     ("/system.slice/web-1/x.service", False), ("/other/web-1.service", False), ("/system.slice/web-1xservice", False)],
)  # fmt: skip
def test_a_star_stays_within_one_name(path: str, found: bool) -> None:
    assert (Declared((WEB,)).find(path) is WEB) is found


@pytest.mark.kernel
async def test_a_declared_cgroup_is_a_container() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a cgroup")
    mount = cgroups.mount_point()
    path = Path(f"{mount}/hauberk-declared-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir()
    bus = MemoryBus(MemorySettings())
    settings = NodeInventorySettings(
        node="n",
        runtimes=(),
        workloads=(WorkloadSettings(name="web", cgroup=f"/{path.name}", labels={"app": "web"}),),
    )
    inventory = NodeInventory(bus, settings)
    task = asyncio.create_task(inventory.run())
    try:
        await asyncio.wait_for(inventory.ready.wait(), 60)
        (path / "below").mkdir()
        inner = (path / "below").stat().st_ino
        inventory.on_cgroup(inner, f"/{path.name}/below", False)
        found = inventory.find(path.stat().st_ino)
        assert found is not None
        assert (found.kind, found.container_name, found.namespace) == (Kind.CONTAINER, "web", "container_namespace")
        assert found.complete
        again = inventory.find(inner)
        assert again is not None
        assert again.uid == found.uid
        published = await _grown(bus, found.uid)
        assert published.labels == {"app": "web"}
        assert set(published.cgroups) == {path.stat().st_ino, inner}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for directory in (path / "below", path):
            if directory.exists():
                directory.rmdir()
        await bus.close()


@pytest.mark.kernel
async def test_what_ended_while_nobody_looked_ends_at_the_next_start() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a cgroup")
    mount, bus = cgroups.mount_point(), MemoryBus(MemorySettings())
    own = f"hauberk-past-{os.getpid()}-{time.monotonic_ns()}"
    paths = [Path(f"{mount}/{own}-{name}") for name in ("stays", "goes")]
    settings = NodeInventorySettings(
        node="n", runtimes=(), linger_seconds=3.0, rescan_seconds=0.05,
        workloads=(WorkloadSettings(name="job", cgroup=f"/{own}-*"),),
    )  # fmt: skip
    other = Identity(kind=Kind.CONTAINER, node="n2", uid="elsewhere", cgroups=(1,))
    reused = Identity(kind=Kind.CONTAINER, node="n", uid="before-boot", cgroups=(1,))
    try:
        for path in paths:
            path.mkdir()
        stays, goes = (f"workload-job-{path.stat().st_ino}" for path in paths)
        async with _run(NodeInventory(bus, settings)):
            assert set(await _told(bus)) >= {stays, goes}
        paths[1].rmdir()
        node = next(one for one in (await _told(bus)).values() if one.kind is Kind.NODE)
        reused = msgspec.structs.replace(reused, cgroups=node.cgroups)
        await bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (other, reused)])
        async with _run(NodeInventory(bus, settings)) as again:
            told = await _told(bus)
            assert told[goes].ended > 0
            assert told[stays].ended == 0
            assert "before-boot" not in told  # its cgroup is the node's now
            assert told["elsewhere"].ended == 0
            async with asyncio.timeout(60):
                while goes in await _told(bus):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert again.find(paths[0].stat().st_ino) is not None
    finally:
        for path in paths:
            if path.exists():
                path.rmdir()
        await bus.close()


@asynccontextmanager
async def _run(inventory: NodeInventory) -> AsyncIterator[NodeInventory]:
    task = asyncio.create_task(inventory.run())
    try:
        await asyncio.wait_for(inventory.ready.wait(), 60)
        yield inventory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _told(bus: MemoryBus) -> dict[str, Identity]:
    found = [decode(one.value) for one in (await bus.latest(INVENTORY)).values() if one.value]
    return {one.uid: one for one in found}


async def _grown(bus: MemoryBus, uid: str) -> Identity:
    """The identity of `uid` once it has a cgroup below its own."""

    async def asked() -> Identity | None:
        known = (await _told(bus)).values()
        return next((one for one in known if one.uid == uid and len(one.cgroups) > 1), None)

    found: Identity = await until(asked)
    return found


def test_an_annotation_that_is_no_word_is_an_error_of_the_settings() -> None:
    with pytest.raises(
        msgspec.ValidationError, match="expected enabled, audited or disabled in `kubearmor-policy`, got 'audit'"
    ):
        msgspec.convert({"name": "a", "cgroup": "/a", "annotations": {"kubearmor-policy": "audit"}}, WorkloadSettings)


def test_a_label_of_docker_that_is_no_word_is_told_once_and_counted_while_its_container_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = IdentityChanges(MemoryBus(MemorySettings()), "n")
    one = Identity(
        kind=Kind.CONTAINER,
        node="n",
        uid="c1",
        namespace="demo",
        container_name="web",
        annotations={"kubearmor-visibility": "proces"},
    )
    changes.put("c1", one)
    changes.put("c1", msgspec.structs.replace(one, complete=True))
    assert [record.getMessage() for record in caplog.records] == [
        "annotations of demo/web: expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'; "
        "it changes nothing, what is in force without it stays"
    ]
    assert len(changes.misread) == 1
    changes.put("c1", msgspec.structs.replace(one, ended=1.0))
    assert len(changes.misread) == 0
