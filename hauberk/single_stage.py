# SPDX-License-Identifier: Apache-2.0
"""Wires the parts of `up` that run as processes of their own: `hauberk node`, `processor`, `planner`, `sink`; and `hauberk cluster`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import msgspec

from bus.registry import elsewhere, open_bus
from hauberk import caches, disk, health, ports, service, stages, supervision
from hauberk.allocator import give_back
from hauberk.client import damage_text
from hauberk.configuration import configuration, node_configuration
from hauberk.ending import last_look
from hauberk.memory import ProcessMemory
from hauberk.metrics import Exposure, expose, of_bus
from hauberk.node_claim import Claiming
from hauberk.page import listening, open_page
from hauberk.spooling import spooled
from hauberk.topic_watch import TopicWatch
from hauberk.up import load_sensor, prepare, say, tell_runtimes
from schemas.errors import HauberkError, SettingsError
from schemas.topics import Role
from sensors.node.sensor import node_name

if TYPE_CHECKING:
    from bus.contract import Bus
    from bus.spool_settings import SpoolSettings
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration
    from hauberk.settings import LoadedSettings
    from sinks.registry import SinkSettings
    from sinks.web.page import PageSettings

UNASKED: Final = (Role.PROCESSOR, Role.PLANNER)
"""Roles that nobody connects to: not being ready takes nothing away. The page of a sink and the webhook of `cluster` would be away
because of a topic, and the update of all nodes would stop at the first."""
S = TypeVar("S", "Configuration", "NodeConfiguration")
Built = tuple[list[tuple[str, service.Stage]], Exposure]
"""The stages of a role, in the order of their end, and where its metrics and health are shown."""


class Starting(NamedTuple, Generic[S]):
    """What a role is built of. `opened`: closed when it ends; `stop`: set when it is asked to end, perhaps while it is built."""

    bus: Bus
    settings: S
    opened: contextlib.AsyncExitStack
    kept: supervision.Supervision
    stop: asyncio.Event
    memory: ProcessMemory


async def _part(
    given: argparse.Namespace,
    name: str,
    build: Callable[[Starting[S]], Awaitable[Built]],
    read: Callable[[argparse.Namespace], tuple[S, LoadedSettings, Path]],
    spool: Callable[[S], SpoolSettings] | None = None,
    shown: Callable[[S], tuple[Sequence[SinkSettings], PageSettings] | tuple[()]] = lambda _: (),
) -> int:
    settings, _, state = read(given)
    await ports.look(state, settings.metrics, *shown(settings))
    prepare(state)
    stop = asyncio.Event()
    with service.listening(stop) as hurry:
        far = bus = await open_bus(settings.bus)
        if spool is not None:
            bus = await spooled(bus, settings.bus, spool(settings), node_name(settings.sensor))
        kept = supervision.Supervision(supervision.reporter(bus, node_name(settings.sensor)))
        role = Role(name.split()[0])
        topics = TopicWatch(far, role)
        telling = [asyncio.create_task(one) for one in (disk.report(far), last_look(far, stop), topics.run())]
        memory = ProcessMemory(settings)
        caches.of_bus(memory, bus)
        telling.append(asyncio.create_task(memory.keep_low()))
        try:
            async with contextlib.AsyncExitStack() as opened:
                try:
                    wanted, exposure = await build(Starting(bus, settings, opened, kept, stop, memory))
                except HauberkError:
                    if stop.is_set():
                        return 130
                    raise
                exposure.collect(lambda: of_bus(bus))
                exposure.collect(lambda: [("memory", memory.stats())])
                exposure.collect(supervision.shown(kept))
                exposure.ready_when(health.of_stages(kept))
                exposure.ready_when(health.of_spool(bus))
                if role in UNASKED:
                    exposure.ready_when(topics.checks)
                give_back()
                print(f"hauberk {name}: running", file=sys.stderr, flush=True)
                service.notify("READY=1")
                await service.run(wanted, stop, signals=False, hurry=hurry, supervision=kept)
        finally:
            for task in telling:
                task.cancel()
            await bus.close()
            if bus.damaged():
                service.say(damage_text(bus))
    if kept.fatal is not None:
        raise kept.fatal
    service.say("ended", name)
    return supervision.exit_code(kept)


async def run_node(given: argparse.Namespace, usual: int) -> int:
    """Sensor, inventory and enforcement. Pins stay when it ends, so that rules hold while it restarts. `usual`: the CPU priority
    of this process where `sensor.nice` leaves it alone."""
    from sensors.node.priority import prefer

    given.set = ["sensor.keep=true", *given.set]

    async def build(start: Starting[NodeConfiguration]) -> Built:
        bus, settings, opened, kept, stop, memory = start
        prefer(settings.sensor.nice or usual)
        if settings.sensor.hashes.enabled:
            service.say(
                "`sensor.hashes.enabled` does nothing here: alerts are made by processors that cannot read this node's files",
                "node",
            )
        claiming = Claiming(bus, node_name(settings.sensor), kept, stop)
        opened.callback(claiming.cancel)
        inventory = stages.Inventories(bus, settings)
        node, _ = await load_sensor(settings, inventory, stop)
        opened.callback(node.close, take_down=False)
        caches.of_node(memory, node)
        await claiming.check()
        opened.callback(asyncio.create_task(tell_runtimes(lambda: inventory.engine.status)).cancel)
        following = stages.following(bus, node)
        sensing = stages.sensor(
            bus, node, lambda header: following.engine.read(header), elsewhere=elsewhere(settings.bus)
        )
        enforcing = stages.enforcement(
            bus, settings, inventory.engine.node, lambda cgroup: inventory.engine.find(cgroup)
        )
        starting = stages.starts(settings.inventory.start_socket, inventory, enforcing)
        exposure = await expose(settings.metrics, opened)
        exposure.collect(lambda: [
            ("sensor", sensing.engine.stats), ("rings", node.source.stats), ("applier", enforcing.engine.stats),
            ("inventory", inventory.engine.stats), *(("starts", part.engine.stats) for part in starting),
        ])  # fmt: skip
        exposure.enforcement(lambda: enforcing.engine.receipt)
        for checks in (
            health.of_sensor(sensing), health.of_inventory(lambda: inventory.engine), health.of_enforcement(enforcing)
        ):  # fmt: skip
            exposure.ready_when(checks)
        return [
            ("enforcement", enforcing.stage), ("sensor", sensing.stage), ("inventory", inventory.part.stage),
            ("progress", following.stage), ("claim", claiming.stage), *(("starts", part.stage) for part in starting),
        ], exposure  # fmt: skip

    return await _part(given, "node", build, node_configuration, lambda settings: settings.spool)


async def run_processor(given: argparse.Namespace) -> int:
    """Frames in; alerts, telemetry, summaries out."""

    async def build(start: Starting[Configuration]) -> Built:
        bus, settings, opened, _, _, memory = start
        judging = stages.processor(bus, settings)
        caches.of_processor(memory, judging)
        exposure = await expose(settings.metrics, opened)
        exposure.collect(lambda: [("processor", judging.engine.stats()), ("pump", judging.engine.pump.stats)])
        exposure.ready_when(health.of_processor(judging))
        return [("processor", judging.stage)], exposure

    return await _part(given, "processor", build, configuration)


def only(settings: Configuration, name: str) -> Configuration:
    """`settings` with the sink `name` alone. SettingsError when there is none."""
    names = [one.name or str(one.__struct_config__.tag) for one in settings.sinks]
    if name not in names:
        import difflib

        near = "".join(f"; did you mean `{one}`?" for one in difflib.get_close_matches(name, names, n=1))
        raise SettingsError(
            f"expected the name of a sink of the settings ({', '.join(names) or 'there is none'}), got `{name}`{near}; "
            "`hauberk settings` shows them"
        )
    # Two of one name are refused by the engine, which is to see both.
    return msgspec.structs.replace(
        settings, sinks=[one for one, called in zip(settings.sinks, names, strict=True) if called == name]
    )


async def run_sink(given: argparse.Namespace) -> int:
    """Every configured sink, or the one that `given.name` names."""

    def read(given: argparse.Namespace) -> tuple[Configuration, LoadedSettings, Path]:
        settings, loaded, state = configuration(given)
        return only(settings, given.name) if given.name else settings, loaded, state

    async def build(start: Starting[Configuration]) -> Built:
        bus, settings, opened, kept, _, memory = start
        part = stages.sinks(bus, settings, kept)
        await part.engine.check()
        exposure = await expose(settings.metrics, opened, part.engine)
        page = await open_page(settings, bus, opened)
        caches.of_sinks(memory, part.engine, page)
        if page:
            say("page", page.url)
            exposure.collect(listening(page))
        return [("sinks", part.stage)], exposure

    return await _part(
        given,
        f"sink {given.name}" if given.name else "sink",
        build,
        read,
        shown=lambda settings: (settings.sinks, settings.page),
    )


async def run_planner(given: argparse.Namespace) -> int:
    """Policies and inventory in; plans out."""

    async def build(start: Starting[Configuration]) -> Built:
        bus, settings, opened, *_ = start
        planning = stages.planner(bus, settings)
        exposure = await expose(settings.metrics, opened)
        exposure.collect(lambda: [("planner", planning.engine.stats)])
        exposure.ready_when(health.of_planner(planning))
        return [("planner", planning.stage)], exposure

    return await _part(given, "planner", build, configuration)


async def run_cluster(given: argparse.Namespace) -> int:
    """A Kubernetes cluster in; facts and policies out."""
    from cluster.server import connected

    async def build(start: Starting[Configuration]) -> Built:
        bus, settings, opened, *_ = start
        server = await opened.enter_async_context(connected(settings.cluster.server))
        watching = stages.ClusterPart(bus, server, settings)
        exposure = await expose(settings.metrics, opened)
        exposure.collect(lambda: [("cluster", watching.engine.stats)])
        if (teller := watching.teller) is not None:
            exposure.collect(lambda: [("cluster_status", teller.stats)])
        if settings.cluster_webhook.enabled:
            from hauberk.policy_findings import findings
            from sinks.kubernetes.policy_webhook import PolicyWebhook

            webhook = PolicyWebhook(settings.cluster_webhook, findings)
            await webhook.open()
            opened.push_async_callback(webhook.close)
            say("webhook", f"policies are checked on port {webhook.port}")
            exposure.collect(lambda: [("cluster_webhook", webhook.stats), ("listener", webhook.listening)])
        exposure.ready_when(health.of_cluster(watching))
        return [("cluster", watching.stage)], exposure

    return await _part(given, "cluster", build, configuration)
