# SPDX-License-Identifier: Apache-2.0
"""Wires `hauberk record`: a sensor on a bus of its own, or the bus of a running node, into a recording."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
from typing import TYPE_CHECKING

from hauberk import service, stages
from hauberk.configuration import client_bus, configuration
from hauberk.up import open_sensor, prepare
from sensors.recorder import Recorder, describe

if TYPE_CHECKING:
    from bus.contract import Bus


async def record(given: argparse.Namespace) -> tuple[int, str]:
    """(exit code, what was recorded) once the time, the size, the command or the user ended it."""
    if given.attach:
        bus = await client_bus(given)
        try:
            return await _run(bus, given, [])
        finally:
            await bus.close()
    from bus.memory import MemoryBus, MemorySettings
    from sensors.inventory import Inventory

    settings, _, state = configuration(given)
    prepare(state)
    memory = MemoryBus(MemorySettings())
    inventory = Inventory(memory, settings.inventory)
    node, _ = await asyncio.to_thread(open_sensor, settings, inventory.on_cgroup)
    try:
        _, sensing = stages.sensor(memory, node, inventory)
        return await _run(memory, given, [("sensor", sensing)])
    finally:
        node.close()
        await memory.close()


async def _run(bus: Bus, given: argparse.Namespace, before: list[tuple[str, service.Stage]]) -> tuple[int, str]:
    recorder = Recorder(bus, given.file, describe(shlex.join(given.command)), limit_bytes=given.limit_bytes)
    over = asyncio.Event()
    code = 0

    async def writing(stop: asyncio.Event) -> None:
        await stages.until(stop, recorder.run(), recorder.stop)
        over.set()

    async def driving(stop: asyncio.Event) -> None:
        nonlocal code
        await recorder.started.wait()
        if given.command:
            child = await asyncio.create_subprocess_exec(*given.command)
            watcher = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait(
                    {watcher, ending := asyncio.ensure_future(child.wait())}, return_when=asyncio.FIRST_COMPLETED
                )
                if child.returncode is None:
                    child.terminate()
                code = await ending
            finally:
                watcher.cancel()
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), given.seconds)
        over.set()

    await service.run([("command", driving), *before, ("recorder", writing)], over)
    return code, f"{recorder.frames} frames, {recorder.bytes} bytes, {recorder.identities} identities in {given.file}"
