# SPDX-License-Identifier: Apache-2.0
"""The live kernel tells the inventory of a container: its first event finds an identity, under the id the kernel gives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from bus.memory import MemoryBus
from kernel.loading import LoadSettings
from processors.decode import DecodedDefinitions
from schemas import frame as frames
from schemas.behaviour import Behaviour
from schemas.errors import HauberkError
from schemas.identity import Identity, Kind, decode
from schemas.operations import Operation
from schemas.topics import EVENTS_RAW, INVENTORY
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.podman import PodmanSettings
from sensors.node.sensor import Node, NodeSettings, open_node

pytestmark = [pytest.mark.kernel, pytest.mark.containers]


@pytest.fixture
def pins(bpffs_home: Callable[[str], str]) -> str:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    return f"{bpffs_home('birth')}/pins"


def execs(bus: MemoryBus) -> list[Behaviour]:
    found: list[Behaviour] = []
    for record in bus.records(EVENTS_RAW):
        frame = frames.decode(record.value or b"")
        definitions = DecodedDefinitions(frame.definitions, frame.header.architecture)
        for ident, kind, _ in ((i, k, b) for i, k, b in frames.definitions(frame.definitions)):
            if kind == 2 and (behaviour := definitions.behaviour(ident)) and behaviour.operation is Operation.EXEC:
                found.append(behaviour)
    return found


async def test_the_first_event_of_a_container_has_an_identity(
    oci: Any, pins: str, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine runc may take long between making the cgroup and writing its state.
    monkeypatch.setattr("sensors.containers.inventory.HOST_ANSWER", 60.0)
    bus = MemoryBus()
    runtime = PodmanSettings(roots=(oci.root("runc"),), poll_seconds=600)
    inventory = NodeInventory(bus, NodeInventorySettings(node="n1", runtimes=(runtime,), rescan_seconds=600))
    load = LoadSettings(occurrence_pages=256, definition_pages=256, timeout=100.0)
    settings = NodeSettings(pin_dir=pins, load=load)
    try:
        node: Node = await asyncio.to_thread(open_node, settings, inventory.on_cgroup)
    except HauberkError as error:
        pytest.skip(f"needs BPF: {error}")
    agent = node.agent(bus)
    tasks = [asyncio.create_task(inventory.run()), asyncio.create_task(agent.run())]
    try:
        await asyncio.wait_for(inventory.ready.wait(), 60)
        name = f"hauberk-born-{os.getpid()}"
        await asyncio.to_thread(oci.run, "runc", name)
        known = await until(lambda: next((one for one in inventory.identities if one.uid == name), None))
        assert (known.kind, known.cgroup_path) == (Kind.CONTAINER, f"/{name}")
        mine = await until(
            lambda: [one for one in execs(bus) if one.cgroup == known.cgroups[0] and one.resource == "/bin/busybox"]
        )
        assert (mine[0].pid_ns, mine[0].mnt_ns) == (known.pid_ns, known.mnt_ns)

        def told() -> list[Identity]:
            said = [decode(one.value) for one in bus.records(INVENTORY) if one.value]
            return [one for one in said if known.cgroups[0] in one.cgroups]

        # Published by a task of its own.
        await until(lambda: (told()[-1].kind, told()[-1].complete) == (Kind.CONTAINER, True))
        assert (told()[0].kind, told()[0].complete) == (Kind.HOST, False)
        await asyncio.to_thread(oci.remove, name)
        await until(lambda: inventory.find(known.cgroups[0]).ended)  # type: ignore[union-attr]
    finally:
        agent.stop()
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node.close()
