# SPDX-License-Identifier: Apache-2.0
"""The recordings that are shipped: they play, hold what their script does, and name nothing of the machine they were made on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus.memory import MemoryBus
from schemas import frame as words
from schemas import identity
from schemas.kernel import BEHAVIOUR, DefinitionKind
from schemas.operations import Operation
from schemas.topics import EVENTS_RAW, INVENTORY
from sensors.node.agent import Agent
from sensors.recordings.recorder import Recorder, describe
from sensors.recordings.recording import BlockKind, RecordingReader
from sensors.recordings.replay import Replay, ReplaySettings

HOST = Path(__file__).parents[3] / "examples" / "recordings" / "host.hbrk"


async def play(bus: MemoryBus, path: Path = HOST) -> Agent:
    replay = Replay(ReplaySettings(path=str(path), speed=0), "run")
    agent = Agent(replay, bus)
    await asyncio.wait_for(agent.run(), 60)
    assert (replay.truncated, replay.skipped) == (0, 0)
    return agent


async def published(bus: MemoryBus, topic: Any) -> list[Any]:
    async with bus.subscribe([topic], None, "earliest") as reader:
        return [delivery.record for delivery in await reader.take(1000, 0.05)]


async def test_the_host_recording_holds_what_its_script_does() -> None:
    bus = MemoryBus()
    await play(bus)
    who = [identity.decode(record.value) for record in await published(bus, INVENTORY)]
    assert {(each.kind.value, each.namespace) for each in who} == {("node", ""), ("host", ""), ("container", "shop")}
    cgroups = {cgroup: each for each in who for cgroup in each.cgroups}
    seen = set()
    for record in await published(bus, EVENTS_RAW):
        frame = words.decode(record.value)
        assert frame.header.undefined == 0
        found = {(kind, ident): body for ident, kind, body in words.definitions(frame.definitions)}
        for (kind, _), body in found.items():
            if kind != DefinitionKind.BEHAVIOUR:
                continue
            at = BEHAVIOUR.offsets
            cgroup, executable, _, resource, *_ = BEHAVIOUR.struct.unpack(body.ljust(BEHAVIOUR.size, b"\0"))
            operation = int.from_bytes(body[at["operation"] : at["operation"] + 2], "little")
            text = [found.get((1, ident), b"").decode() for ident in (executable, resource)]
            seen.add((cgroups[cgroup].kind.value, Operation(operation), *text))
    assert ("host", Operation.OPEN, "/usr/bin/cat", "/etc/shadow") in seen
    assert ("container", Operation.EXEC, "/usr/bin/dash", "/usr/bin/curl") in seen
    assert ("container", Operation.CREATE, "/usr/bin/dash", "/tmp/demo/access.log") in seen
    assert {row[1] for row in seen} >= {
        Operation.RENAME, Operation.UNLINK, Operation.CHMOD, Operation.MKDIR, Operation.RMDIR, Operation.CONNECT,
        Operation.EXIT,
    }  # fmt: skip
    await bus.close()


def test_it_names_nothing_of_where_it_was_made() -> None:
    with RecordingReader(str(HOST)) as reader:
        assert "-" not in reader.header["kernel"]
        for entry in reader:
            assert entry.key.split(b"/")[0] == b"demo"
            for word in (b"python", b"/work", b"/home", b"/root", b"library/env"):
                assert word not in (entry.value or b"")
    assert HOST.stat().st_size < 300_000


async def test_what_is_recorded_again_is_the_same(tmp_path: Path) -> None:
    bus = MemoryBus()
    recorder = Recorder(bus, str(tmp_path / "copy"), describe("a test"))
    task = asyncio.create_task(recorder.run())
    await recorder.started.wait()
    agent = await play(bus)
    recorder.stop()
    await task
    assert recorder.frames == agent.stats.frames
    with RecordingReader(str(tmp_path / "copy")) as copy, RecordingReader(str(HOST)) as original:
        assert copy.header["command"] == "a test"
        ours = [words.decode(e.value).occurrences for e in copy if e.kind is BlockKind.FRAMES and e.value]
        theirs = [words.decode(e.value).occurrences for e in original if e.kind is BlockKind.FRAMES and e.value]
    assert ours == theirs
    await bus.close()


async def test_recording_stops_at_its_limit_and_keeps_identities(tmp_path: Path) -> None:
    bus = MemoryBus()
    await play(bus)
    recorder = Recorder(bus, str(tmp_path / "copy"), limit_bytes=1)
    task = asyncio.create_task(recorder.run())
    await recorder.started.wait()
    await play(bus)
    await asyncio.wait_for(task, 60)
    with RecordingReader(str(tmp_path / "copy")) as reader:
        kinds = [entry.kind for entry in reader]
    assert kinds.count(BlockKind.INVENTORY) >= 3
    assert BlockKind.FRAMES in kinds or recorder.bytes >= 1


@pytest.mark.kernel
def test_the_script_that_makes_it_runs(tmp_path: Path) -> None:
    if os.geteuid() or not os.path.isdir("/usr/lib/python3/dist-packages/bcc"):
        pytest.skip("needs root and BCC (python3-bpfcc)")
    command = [sys.executable, str(HOST.parent / "make.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    events = int(done.stdout.split(":")[1].split()[0])
    assert events > 300
    assert not os.path.exists("/tmp/demo")
