# SPDX-License-Identifier: Apache-2.0
"""A container of runc that waits in its hook: what is told of it while only runc runs in its cgroup, and once its own program does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from schemas.identity import Identity, decode
from schemas.topics import INVENTORY, POLICIES
from sensors.containers import start_hook
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.podman import PodmanSettings
from sensors.containers.start_socket import StartSocket

pytestmark = [pytest.mark.containers, pytest.mark.kernel]


async def test_it_is_told_with_its_links_before_its_program_runs_and_again_then(
    oci: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    bus = MemoryBus()
    policy = {"spec": {"process": {"matchPaths": [{"path": "/bin/sh"}]}}}
    await bus.publish(POLICIES, [Record(b"KubeArmorPolicy/a/b", json.dumps(policy).encode())])
    inventory = NodeInventory(
        bus, NodeInventorySettings(node="n1", runtimes=(PodmanSettings(roots=(oci.root("runc"),)),))
    )
    may = asyncio.Event()
    waiting: list[int] = []

    async def held(cgroup: int) -> str:
        waiting.append(cgroup)
        await may.wait()
        return ""

    path = tmp_path / "start.sock"
    name = f"hauberk-starts-{os.getpid()}"
    hook = {
        "path": sys.executable,
        "args": ["python", "-I", "-S", start_hook.__file__, "--socket", str(path), "--seconds", "50"],
    }
    tasks = [asyncio.create_task(inventory.run())]
    tasks.append(asyncio.create_task(StartSocket(str(path), lambda state: inventory.starts.begin(state), held).run()))
    try:
        await asyncio.wait_for(inventory.ready.wait(), 60)
        await until(path.exists)
        running = asyncio.create_task(asyncio.to_thread(
            oci.output, name, ["/bin/sh", "-c", "sleep 2; echo done"], hooks={"createRuntime": [hook]}))  # fmt: skip
        await until(lambda: waiting or running.done())
        assert not running.done(), running.result()

        def told() -> list[Identity]:
            found = [decode(one.value) for one in bus.records(INVENTORY) if one.value]
            return [one for one in found if one.uid == name]

        first = (await until(told))[-1]
        # Its root is not the host's yet, nor its process's: its links are those that it will have.
        assert (first.starting, first.complete, first.confirmed) == (True, True, True)
        assert first.links == {"/bin/sh": "/bin/busybox"}
        assert first.cgroups[:1] == tuple(waiting)
        assert first.cgroup_path == f"/{name}"
        assert Path(f"/proc/{first.root_pid}/root/etc/os-release").exists(), "runc has not changed its root yet"
        # Whatever the runtime says meanwhile.
        await asyncio.sleep(0.1)
        assert all(one.starting and one.links == first.links for one in told())
        may.set()
        later = await until(lambda: (found := told()) and not found[-1].starting and found[-1])
        assert not running.done()
        assert (later.links, later.root_pid, later.cgroups[:1]) == (first.links, first.root_pid, first.cgroups[:1])
        done = await asyncio.wait_for(running, 60)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        await until(lambda: inventory.find(first.cgroups[0]).ended)  # type: ignore[union-attr]
    finally:
        may.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_container_that_ends_in_its_hook_is_not_one_that_starts(
    oci: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    inventory = NodeInventory(MemoryBus(), NodeInventorySettings(node="n1", runtimes=()))

    async def held(cgroup: int) -> str:
        return "nobody may start here"

    path = tmp_path / "start.sock"
    name = f"hauberk-refused-{os.getpid()}"
    words = [
        "python",
        "-I",
        "-S",
        start_hook.__file__,
        "--socket",
        str(path),
        "--seconds",
        "50",
        "--unanswered",
        "refuse",
    ]
    tasks = [asyncio.create_task(inventory.run())]
    server = StartSocket(str(path), lambda state: inventory.starts.begin(state), held)
    tasks.append(asyncio.create_task(server.run()))
    try:
        await until(path.exists)
        done = await asyncio.to_thread(
            oci.output, name, ["/bin/true"], hooks={"createRuntime": [{"path": sys.executable, "args": words}]}
        )
        assert done.returncode != 0
        assert "is not started: nobody may start here" in done.stderr
        await until(lambda: name not in inventory.starts)
        assert not any(one.starting for one in inventory.identities)
        assert server.stats.refused == 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
