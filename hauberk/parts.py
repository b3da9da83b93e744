# SPDX-License-Identifier: Apache-2.0
"""Wires the parts of `up` that run as processes of their own: `hauberk node`, `processor`, `enforcer`, `sink`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bus.registry import open_bus
from hauberk import service, stages
from hauberk.configuration import configuration
from hauberk.up import open_sensor, prepare

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.sections import Configuration


async def _part(
    given: argparse.Namespace,
    name: str,
    build: Callable[[Bus, Configuration], Awaitable[list[tuple[str, service.Stage]]]],
) -> None:
    settings, _, state = configuration(given)
    prepare(state)
    bus = await open_bus(settings.bus)
    try:
        wanted = await build(bus, settings)
        print(f"hauberk {name}: running", file=sys.stderr, flush=True)
        service.notify("READY=1")
        await service.run(wanted)
    finally:
        await bus.close()
    print(f"hauberk {name}: ended", file=sys.stderr)


async def run_node(given: argparse.Namespace) -> None:
    """Sensor, inventory and enforcement. Pins stay when it ends, so that rules hold while it restarts."""
    given.set = ["sensor.keep=true", *given.set]

    async def build(bus: Bus, settings: Configuration) -> list[tuple[str, service.Stage]]:
        from sensors.inventory import Inventory

        inventory = Inventory(bus, settings.inventory)
        node, _ = await asyncio.to_thread(open_sensor, settings, inventory.on_cgroup)
        _, sensing = stages.sensor(bus, node, inventory)
        _, enforcing = stages.enforcement(bus, settings, inventory.node)

        async def stage(stop: asyncio.Event) -> None:
            try:
                await sensing(stop)
            finally:
                node.close()

        return [("enforcement", enforcing), ("sensor", stage)]

    await _part(given, "node", build)


async def run_processor(given: argparse.Namespace) -> None:
    """Frames in; alerts, telemetry, summaries out."""

    async def build(bus: Bus, settings: Configuration) -> list[tuple[str, service.Stage]]:
        return [("processor", stages.processor(bus, settings)[1])]

    await _part(given, "processor", build)


async def run_sink(given: argparse.Namespace) -> None:
    """Every configured sink."""

    async def build(bus: Bus, settings: Configuration) -> list[tuple[str, service.Stage]]:
        engine, stage = stages.sinks(bus, settings)
        await engine.check()
        return [("sinks", stage)]

    await _part(given, "sink", build)


async def run_enforcer(given: argparse.Namespace) -> None:
    """Policies and inventory in; plans out."""

    async def build(bus: Bus, settings: Configuration) -> list[tuple[str, service.Stage]]:
        return [("planner", stages.planner(bus, settings)[1])]

    await _part(given, "enforcer", build)
