# SPDX-License-Identifier: Apache-2.0
"""Wires `hauberk record`: a sensor on a bus of its own, or the bus of a running node, into a recording."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import shlex
import sys
from typing import TYPE_CHECKING

import msgspec

from hauberk import service, stages
from hauberk.configuration import client_bus, configuration
from hauberk.ending import last_look
from hauberk.up import open_sensor, prepare
from schemas.errors import KernelError, PermissionMissing, SettingsError, Unavailable
from sensors.node.pins import require_free
from sensors.recordings.recorder import Recorder, describe
from sensors.recordings.recording import RecordingReader

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.sections import Configuration


async def record(given: argparse.Namespace) -> tuple[int, str]:
    """(exit code, what was recorded) once the time, the size, the command or the user ended it."""
    require_writable(given.file)
    if given.attach:
        return await _attached(given, await client_bus(given))
    settings, _, state = configuration(given)
    if held(settings.sensor.pin_dir):
        try:
            bus = await client_bus(given)
        except SettingsError as error:
            raise SettingsError(
                f"expected pins for a recording, got `{settings.sensor.pin_dir}` in use by a running agent whose bus is not in "
                f"`{state}`; record what that agent publishes with `--attach --state ITS-DIRECTORY`"
            ) from error
        print(
            f"hauberk record: an agent is running on `{settings.sensor.pin_dir}`; recording what is on the bus of `{state}`",
            file=sys.stderr,
            flush=True,
        )
        return await _attached(given, bus)
    from bus.memory import MemoryBus, MemorySettings

    prepare(state)
    memory = MemoryBus(MemorySettings())
    inventory = stages.Inventories(memory, settings)
    node, _ = await asyncio.to_thread(open_sensor, _apart(settings), inventory.on_cgroup)
    try:
        sensing = stages.sensor(memory, node)
        return await _run(memory, given, [("sensor", sensing.stage), ("inventory", inventory.part.stage)])
    finally:
        node.close()
        await memory.close()


def require_writable(path: str) -> None:
    """Refuse an output that cannot become a recording, before anything is loaded. SettingsError, PermissionMissing, DecodeError."""
    above = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(above):
        raise SettingsError(
            f"expected a directory at `{above}` for `{path}`, there is none; make it or name another file"
        )
    if os.path.isdir(path):
        raise SettingsError(f"expected a file at `{path}`, got a directory; name a file in it")
    if not os.access(path if os.path.exists(path) else above, os.W_OK):
        raise PermissionMissing(f"expected to write `{path}`, got no permission; run as its owner or name another file")
    if os.path.exists(path) and os.path.getsize(path):
        RecordingReader(path).close()


def held(pin_dir: str) -> bool:
    """Whether a running agent drains these pins. What else is wrong with them is the loader's to say."""
    try:
        require_free(pin_dir)
    except KernelError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


def _apart(settings: Configuration) -> Configuration:
    """With pins of its own where an agent has left some: the rules it left in force are not this command's to lift."""
    sensor = settings.sensor
    if not os.path.isdir(sensor.pin_dir):
        return settings
    apart = msgspec.structs.replace(sensor, pin_dir=f"{sensor.pin_dir.rstrip('/')}-record", keep=False)
    return msgspec.structs.replace(settings, sensor=apart)


async def _attached(given: argparse.Namespace, bus: Bus) -> tuple[int, str]:
    try:
        code, told = await _run(bus, given, [])
    finally:
        await bus.close()
    if told.startswith("0 frames"):
        told += "; nothing was published meanwhile: is --state that of the running agent?"
    return code, told


async def _run(bus: Bus, given: argparse.Namespace, before: list[tuple[str, service.Stage]]) -> tuple[int, str]:
    recorder = Recorder(bus, given.file, describe(shlex.join(given.command)), limit_bytes=given.limit_bytes)
    over = asyncio.Event()
    code = 0

    async def writing(stop: asyncio.Event) -> None:
        try:
            await stages.run(recorder, stop)
        except Unavailable as error:
            if not over.is_set():
                raise
            service.say(f"the bus does not answer, what came last is not in the file: {error}", "record")
        over.set()

    async def driving(stop: asyncio.Event) -> None:
        nonlocal code
        # Not for ever: when the file cannot be written, it never starts.
        begun, told = (asyncio.ensure_future(event.wait()) for event in (recorder.started, stop))
        try:
            await asyncio.wait({begun, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
            told.cancel()
        if not recorder.started.is_set():
            return
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

    looking = asyncio.create_task(last_look(bus, over))
    try:
        await service.run([("command", driving), *before, ("recorder", writing)], over)
    finally:
        looking.cancel()
    return code, f"{recorder.frames} frames, {recorder.bytes} bytes, {recorder.identities} identities in {given.file}"
