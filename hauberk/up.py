# SPDX-License-Identifier: Apache-2.0
"""Wires `hauberk up`: bus, policies, sensor or recording, processors, enforcement, sinks; says what it watches and where."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bus.contract import Record
from bus.permissions import refuse_loose
from bus.registry import open_bus
from bus.rest import until_look
from hauberk import caches, disk, health, ports, service, stages, supervision
from hauberk.allocator import give_back
from hauberk.client import damage_text
from hauberk.configuration import configuration
from hauberk.ending import take_down, unsent
from hauberk.handing_over import handing_over, logged, needless_of, needs_of, put_aside, word_of
from hauberk.lock import sole
from hauberk.memory import ProcessMemory
from hauberk.metrics import Exposure, expose, of_bus
from hauberk.output import colourful, paint
from hauberk.page import listening, open_page
from kernel.descriptors import raise_limit
from schemas.errors import DiskFull, HauberkError, KernelError, PermissionMissing, SettingsError
from schemas.topics import ENFORCEMENT_STATUS, POLICIES
from sensors.node.sensor import node_name

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration
    from kernel.loader import Halt
    from kernel.loading import LoadedPrograms
    from processors.engine import Processor
    from sensors.node.sensor import Node
    from sinks.delivery.engine import SinkEngine


_LOOK: Final = 5.0
"""Seconds between looks at what is only told here."""


def say(what: str, text: str) -> None:
    """One line of the opening: a word and a sentence."""
    print(f"  {paint(f'{what:<10}', 'bold')} {text}", file=sys.stderr, flush=True)


def prepare(state: Path) -> None:
    """Make the state directory, set up logging to standard error and take as many descriptors as may be had."""
    level = os.environ.get("HAUBERK_LOG", "WARNING").upper()
    if level not in (levels := logging.getLevelNamesMapping()):
        raise SettingsError(f"HAUBERK_LOG: expected one of {', '.join(levels)}, got `{level}`")
    raise_limit()
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionMissing(
            f"expected to write to `{state}`, got no permission; run as root or choose another with --state"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"expected to make `{state}`, got {error.strerror}; free space or choose another with --state"
            ) from error
        raise SettingsError(
            f"expected a directory at `{state}` or room to make one, got: {error.strerror}; choose another with --state"
        ) from error
    refuse_loose(state)
    if not os.access(state, os.W_OK | os.X_OK):
        raise PermissionMissing(
            f"expected to write to `{state}`, got no permission; run as root or choose another with --state"
        )


def progress(step: str, seconds: float) -> None:
    """What the loader is at, on a terminal: it takes some seconds."""
    if sys.stderr.isatty():
        print(f"\r  {'loading':<10} {step} ({seconds:.1f} s)\x1b[K", end="\r", file=sys.stderr, flush=True)


async def load_sensor(
    settings: Configuration | NodeConfiguration, inventory: stages.Inventories, stop: asyncio.Event
) -> tuple[Node, float]:
    """`open_sensor` in a thread. A stop ends the load at once: Unavailable then, and nothing is left behind."""
    from enforcers.swap import carry_over
    from kernel.loader import Halt

    halt, node = Halt(), inventory.engine.node
    loading = asyncio.create_task(asyncio.to_thread(
        open_sensor, settings, inventory.on_cgroup, halt, lambda pins: carry_over(pins, node, settings.enforcement)
    ))  # fmt: skip
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            halt.now()
        return await loading
    finally:
        stopping.cancel()


def open_sensor(
    settings: Configuration | NodeConfiguration, on_cgroup: Any, halt: Halt | None = None, prepare: Callable[[str], None] | None = None
) -> tuple[Node, float]:  # fmt: skip
    """The live sensor and how long its loading took. PermissionMissing and MissingDependency say what to do."""
    from hauberk.verbs.probe import missing
    from schemas.errors import MissingDependency
    from sensors.node.sensor import open_node

    started = time.monotonic()
    try:
        return open_node(settings.sensor, on_cgroup, progress, halt=halt, prepare=prepare), time.monotonic() - started
    except (KernelError, MissingDependency) as error:
        if error.__class__ is KernelError and "the only agent" in str(error):
            raise
        lacks = missing()
        hint = "`hauberk up --replay RECORDING` needs none of this"
        raise type(error)(f"{error}; {'; '.join([*lacks, hint])}") from error


async def run_up(given: argparse.Namespace, usual: int) -> int:
    """Everything in this process, until a signal or the end of the replay. 0, or 130 when told to stop before it began.
    `usual`: the CPU priority of this process where `sensor.nice` leaves it alone."""
    from hauberk.policy_files import read
    from sensors.node.priority import prefer

    settings, loaded, state = configuration(given)
    if not given.replay:
        prefer(settings.sensor.nice or usual)
    if given.replay:
        stages.require_recording(given.replay)
        settings = ports.beside_another(settings, loaded)
    documents = read(given.filename, False, quiet=True) if given.filename else []
    await ports.look(state, settings.metrics, settings.sinks, settings.page)
    prepare(state)
    if not given.quiet and "console" not in map(_kind, settings.sinks):
        console = {"type": "console", "name": "live", "form": given.output}
        settings = msgspec.structs.replace(settings, sinks=[*settings.sinks, msgspec.convert(console, _sink_type())])
    over = asyncio.Event()
    with service.listening(over) as hurry, sole(state):
        print(
            f"{paint('hauberk', 'bold', colourful(sys.stderr))} {_version()} on {node_name(settings.sensor)}",
            file=sys.stderr,
            flush=True,
        )
        bus = await open_bus(settings.bus)
        if not given.replay:
            bus = handing_over(bus, settings)
        watch = asyncio.create_task(_watch(bus))
        telling = asyncio.create_task(disk.report(bus))
        try:
            return await _run(bus, settings, state, given, documents, over, hurry)
        finally:
            watch.cancel()
            telling.cancel()
            await bus.close()
            if bus.damaged():
                service.say(damage_text(bus))


async def _run(
    bus: Bus, settings: Configuration, state: Path, given: argparse.Namespace, documents: list[Any],
    over: asyncio.Event, hurry: asyncio.Event,
) -> int:  # fmt: skip
    from hauberk.verbs.apply import publish

    memory = ProcessMemory(settings)
    kept = None if given.replay else supervision.Supervision(supervision.reporter(bus, node_name(settings.sensor)))
    # Before the programs are loaded: what a sink lacks should not cost seconds.
    telling = stages.sinks(bus, settings, kept)
    sinks = telling.engine
    await sinks.check()
    async with contextlib.AsyncExitStack() as opened:
        exposure = await expose(settings.metrics, opened, sinks)
        exposure.collect(lambda: of_bus(bus))
        exposure.collect(lambda: [("memory", memory.stats())])
        opened.callback(asyncio.create_task(memory.keep_low()).cancel)
        page = await open_page(settings, bus, opened)
        caches.of_bus(memory, bus)
        caches.of_sinks(memory, sinks, page)
        if kept is None:
            wanted, processor = _replay(bus, settings, telling, given, over, exposure)
        else:
            try:
                wanted, processor = await _live(bus, settings, exposure, opened, over, memory)
            except HauberkError:
                # Ctrl-C reaches the loader too; what it then says is no news.
                if over.is_set():
                    return 130
                raise
            if over.is_set():
                return 130
            exposure.collect(supervision.shown(kept))
            exposure.ready_when(health.of_stages(kept))
        caches.of_processor(memory, processor)
        told = await publish(bus, documents)
        known = len(await bus.latest(POLICIES))
        applied = f"{len(told)} applied from {', '.join(given.filename)}, " if told else ""
        say("policies", f"{applied}{known} known; `hauberk apply -f FILE` adds more")
        if page:
            say("page", page.url)
            exposure.collect(listening(page))
        await _say_where(bus, settings, sinks)
        give_back()
        service.notify("READY=1")
        await service.run([*wanted, ("sinks", telling.stage)], over, signals=False, hurry=hurry, supervision=kept)
        if left := await put_aside(bus):
            service.say(f"frames that were not judged are lost, the log did not take them: {left}")
        if kept is not None and over.is_set() and not settings.sensor.keep:
            # What a receipt says is in force is taken down next: nobody should go on reading that it holds.
            try:
                async with asyncio.timeout(supervision.TELLING):
                    await bus.publish(ENFORCEMENT_STATUS, [Record(node_name(settings.sensor).encode(), None)])
            except (HauberkError, TimeoutError) as error:
                service.say(
                    f"the last receipt could not be withdrawn and claims rules that are no longer enforced: {error}"
                )
    if kept is None:
        service.say("ended")
    if buried := processor.engine.pump.stats.dead:
        service.say(
            f"{buried} frame{'s' * (buried != 1)} could not be judged and went to the dead letters; "
            "`hauberk topic tail dead --from earliest` says why"
        )
    waiting = unsent(sinks.states())
    # A recording is played once, for what comes out of it; a live `up` goes on where it stopped.
    return int(waiting) if kept is None else supervision.exit_code(kept)


async def _watch(bus: Bus) -> None:
    """Say at once, not only at the end, when a file of the bus turns out to be damaged."""
    while not bus.damaged():  # noqa: ASYNC110 - counted in another thread
        await asyncio.sleep(until_look(_LOOK))
    service.say(damage_text(bus))


def how(loaded: LoadedPrograms, took: float) -> str:
    """Where the programs of `loaded` come from, after `took` seconds."""
    calls = f"; calls are seen at {loaded.functions} functions" if loaded.functions else ""
    made = "compiled, loaded and attached" if loaded.compiled else "found compiled, loaded and attached"
    kept = f" (they are not kept for the next start: {loaded.not_kept})" if loaded.not_kept else ""
    return ("reused from the last run" if loaded.reused else f"{made} in {took:.1f} s{kept}") + calls


async def _live(
    bus: Bus,
    settings: Configuration,
    exposure: Exposure,
    opened: contextlib.AsyncExitStack,
    over: asyncio.Event,
    memory: ProcessMemory,
) -> tuple[list[tuple[str, service.Stage]], stages.StagePart[Processor]]:
    inventory = stages.Inventories(bus, settings)
    node, took = await load_sensor(settings, inventory, over)
    opened.callback(take_down, node, over)
    caches.of_node(memory, node)
    say("kernel", f"Linux {os.uname().release}, programs {how(node.loaded, took)}; pins in {settings.sensor.pin_dir}")
    hashes = None
    if settings.sensor.hashes.enabled:
        from sensors.containers.hashes import Hashes, inside

        def root_of(container: str) -> int:
            return inside(next((one for one in inventory.engine.identities if one.uid == container), None))

        hashes = Hashes(settings.sensor.hashes, root_of)
        opened.callback(hashes.close)
    name = inventory.engine.node
    judging = stages.processor(bus, settings, last=True, complete=None if hashes is None else hashes.fill,
                               due=needs_of(bus, node, name), logged=logged(bus), needless=needless_of(bus, node, name))  # fmt: skip
    sensing = stages.sensor(bus, node, lambda header: judging.engine.pipeline.reached(header), word_of(bus, node))
    planning = stages.planner(bus, settings)
    enforcing = stages.enforcement(bus, settings, inventory.engine.node, lambda cgroup: inventory.engine.find(cgroup))
    starting = stages.starts(settings.inventory.start_socket, inventory, enforcing)
    exposure.collect(lambda: {
        "sensor": sensing.engine.stats, "processor": judging.engine.stats(), "pump": judging.engine.pump.stats,
        "planner": planning.engine.stats, "rings": node.source.stats, "applier": enforcing.engine.stats,
        "inventory": inventory.engine.stats, **({"starts": starting[0].engine.stats} if starting else {}),
    }.items())  # fmt: skip
    if hashes is not None:
        exposure.collect(lambda: [("hashes", hashes.stats)])
    if not any(_kind(sink) == "prometheus" for sink in settings.sinks):
        # That sink shows the receipts of every node, this one's too.
        exposure.enforcement(lambda: enforcing.engine.receipt)
    for checks in (
        health.of_sensor(sensing), health.of_inventory(lambda: inventory.engine), health.of_planner(planning),
        health.of_enforcement(enforcing), health.of_processor(judging),
    ):  # fmt: skip
        exposure.ready_when(checks)
    # Not waited for: what is to be in force must not wait for the survey, which takes seconds on a busy machine.
    opened.callback(asyncio.create_task(_say_enforcing(settings)).cancel)
    opened.callback(asyncio.create_task(tell_runtimes(lambda: inventory.engine.status)).cancel)
    return [
        ("sensor", sensing.stage), ("inventory", inventory.part.stage), ("planner", planning.stage),
        ("enforcement", enforcing.stage), ("processor", judging.stage), *(("starts", part.stage) for part in starting),
    ], judging  # fmt: skip


async def tell_runtimes(status: Callable[[], list[str]]) -> None:
    """Say once what each container runtime has to say: connected, or why not."""
    told: set[str] = set()
    started = time.monotonic()
    while True:
        for line in status():
            if line not in told:
                told.add(line)
                say("runtime", line)
        await asyncio.sleep(0.5 if time.monotonic() - started < _LOOK else until_look(_LOOK))


async def _say_enforcing(settings: Configuration) -> None:
    """What can be enforced here, asked of a process of its own: the survey reads all of the kernel's BTF, some 40 MB for a moment."""
    if not (settings.enforcement.backends or settings.enforcement.lsm):
        say("enforcing", "nothing, because of `enforcement.backends`: policies are only audited")
        return
    asked = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "hauberk",
        "probe",
        "-o",
        "json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said, _ = await asked.communicate()
    except asyncio.CancelledError:
        asked.terminate()
        await asked.wait()
        raise
    choices = msgspec.json.decode(said or b"{}").get("chosen", {})
    if choices.get("LSM", "").startswith("nothing;"):
        choices["LSM"] = "nothing, `hauberk probe` says why"
    words = (("network", "block network"), ("exec and open", "block exec and open"), ("LSM", "LSM"))
    say("enforcing", "; ".join(f"{word}: {choices.get(key, 'not known, see `hauberk probe`')}" for word, key in words))


def _replay(
    bus: Bus, settings: Configuration, sending: stages.StagePart[SinkEngine], given: argparse.Namespace, over: asyncio.Event,
    exposure: Exposure,
) -> tuple[list[tuple[str, service.Stage]], stages.StagePart[Processor]]:  # fmt: skip
    from sensors.recordings.replay import ReplaySettings

    wanted = ReplaySettings(path=given.replay, speed=given.speed, skip_damaged=given.skip_damaged)
    judging = stages.processor(bus, settings, last=True)
    processor = judging.engine
    _, playing = stages.replay(bus, wanted, over, judging.finish, sending.finish)
    exposure.collect(lambda: (("processor", processor.stats()), ("pump", processor.pump.stats)))
    exposure.ready_when(health.of_processor(judging))
    say("replay", f"{given.replay}, {'at once' if not given.speed else f'{given.speed:g} times as fast as recorded'}")
    return [("replay", playing), ("processor", judging.stage)], judging


async def _say_where(bus: Bus, settings: Configuration, sinks: SinkEngine) -> None:
    urls = iter([str(getattr(sink, "url", "")) for sink in sinks.sinks if hasattr(sink, "url")])
    for sink in settings.sinks:
        match sink.__struct_config__.tag:
            case "prometheus":
                say("metrics", f"{next(urls)}/metrics")
            case "file" | "store" as kind:
                say("alerts" if kind == "file" else "summaries", str(getattr(sink, "path", "")))
            case "console":
                say("live", "alerts below; Ctrl-C ends it")
            case kind:
                say(str(kind), getattr(sink, "name", "") or "running")
    say("bus", f"{getattr(settings.bus, 'directory', 'in memory')} (hauberk logs, hauberk topic tail alerts)")


def _kind(sink: msgspec.Struct) -> str:
    return str(sink.__struct_config__.tag)


def _sink_type() -> Any:
    from sinks.registry import SinkSettings

    return SinkSettings


def _version() -> str:
    from importlib.metadata import version

    return version("hauberk")
