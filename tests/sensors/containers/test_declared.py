# SPDX-License-Identifier: Apache-2.0
"""Declared workloads: a cgroup somebody named is a container to policies, from birth to end, with all below it."""

import asyncio
import os
from pathlib import Path

import pytest

from bus.memory import MemoryBus, MemorySettings
from schemas.identity import Identity, Kind, decode
from schemas.topics import INVENTORY
from sensors.containers import cgroups
from sensors.containers.declared import Declared, WorkloadSettings
from sensors.inventory import Inventory, InventorySettings

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
    path = Path(f"{mount}/hauberk-declared-{os.getpid()}")
    path.mkdir()
    bus = MemoryBus(MemorySettings())
    settings = InventorySettings(
        node="n",
        runtimes=(),
        workloads=(WorkloadSettings(name="web", cgroup="/hauberk-declared-*", labels={"app": "web"}),),
    )
    inventory = Inventory(bus, settings)
    task = asyncio.create_task(inventory.run())
    try:
        await asyncio.wait_for(inventory.ready.wait(), 5)
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
        published = await _eventually(bus, found.uid)
        assert published.labels == {"app": "web"}
        assert set(published.cgroups) == {path.stat().st_ino, inner}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for directory in (path / "below", path):
            if directory.exists():
                directory.rmdir()
        await bus.close()


async def _eventually(bus: MemoryBus, uid: str) -> Identity:
    async with asyncio.timeout(5):
        while True:
            for record in (await bus.latest(INVENTORY)).values():
                assert record.value is not None
                identity = decode(record.value)
                if identity.uid == uid and len(identity.cgroups) > 1:
                    return identity
            await asyncio.sleep(0.01)
