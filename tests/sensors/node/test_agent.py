# SPDX-License-Identifier: Apache-2.0
"""The engine: publish before release, a full bus only delays, a stop empties the ring, a recording plays to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from bus.backoff import Backoff
from bus.contract import PATIENT
from bus.memory import MemoryBus
from schemas import frame as words
from schemas.errors import Backpressure, Refused
from schemas.frame import Frame, FrameHeader
from schemas.identity import Identity
from schemas.identity import Kind as Who
from schemas.identity import decode as decode_identity
from schemas.identity import encode as encode_identity
from schemas.topics import EVENTS_RAW, INVENTORY
from sensors.node.agent import Agent, AgentSettings, Allowance
from sensors.node.rings import RingSettings, RingSource
from sensors.recordings.recording import BlockKind, RecordingWriter
from sensors.recordings.replay import Replay, ReplaySettings
from sensors.source import Batch


def frame(number: int, node: str = "n") -> Frame:
    header = FrameHeader(node=node, boot="b", run="old", number=number, clock_offset_ns=10**18, events=0)
    return Frame(header=header, occurrences=b"", definitions=b"")


async def everything(bus: Any, topic: Any) -> list[Any]:
    async with bus.subscribe([topic], None, "earliest") as reader:
        return [delivery.record for delivery in await reader.take(1000, 0.05)]


def recording(path: Path, frames: int) -> str:
    with RecordingWriter(str(path), {}) as writer:
        who = Identity(kind=Who.CONTAINER, node="n", uid="c1", cgroups=(7,))
        writer.add(BlockKind.INVENTORY, 0, who.key, encode_identity(who))
        for number in range(frames):
            writer.add(BlockKind.FRAMES, number * 1_000_000_000, b"n", words.encode(frame(number)))
    return str(path)


def first_frame(path: str, *, rebase: bool) -> Frame:
    replay = Replay(ReplaySettings(path=path, speed=0, rebase=rebase), "run")
    batch = replay.drain()
    replay.close()
    return batch.frames[0]


async def test_a_recording_plays_through_the_same_path(tmp_path: Path) -> None:
    bus = MemoryBus()
    path = recording(tmp_path / "r", 5)
    agent = Agent(Replay(ReplaySettings(path=path, speed=0, node="other", rebase=False), "new"), bus)
    await asyncio.wait_for(agent.run(), 60)
    frames = [words.decode(record.value) for record in await everything(bus, EVENTS_RAW)]
    assert [f.header.number for f in frames] == [0, 1, 2, 3, 4]
    assert {(f.header.node, f.header.run, f.header.origin) for f in frames} == {("other", "new", "recording")}
    (record,) = await everything(bus, INVENTORY)
    assert record.key == b"other/c1"
    assert decode_identity(record.value).node == "other"
    assert agent.stats.frames == 5
    await bus.close()


def test_replay_keeps_the_pace_and_repeats(tmp_path: Path) -> None:
    now = [0.0]
    path = recording(tmp_path / "r", 4)
    replay = Replay(ReplaySettings(path=path, speed=2, repeat=2), "run", clock=lambda: now[0])
    first = replay.drain()
    assert (len(first.inventory), len(first.frames)) == (1, 1)
    assert replay.drain().frames == ()
    now[0] = 0.5
    assert len(replay.drain().frames) == 1
    now[0] = 1.5
    assert len(replay.drain().frames) == 2
    assert not replay.finished
    numbers = [f.header.number for f in replay.drain().frames]
    now[0] = 10
    while not replay.finished:
        numbers += [f.header.number for f in replay.drain().frames]
    assert numbers == [4, 5, 6, 7]
    assert replay.drain() == replay.drain()


def test_replay_moves_times_to_now_when_asked(tmp_path: Path) -> None:
    path = recording(tmp_path / "r", 1)
    kept, moved = first_frame(path, rebase=False), first_frame(path, rebase=True)
    assert kept.header.clock_offset_ns == 10**18
    assert moved.header.clock_offset_ns > 10**18


def test_single_events_do_not_wait_for_what_the_one_before_cost() -> None:
    """25 a second at 5 ms each are an eighth of a core."""
    allowance = Allowance(0.2, 0.2)
    assert [allowance.spend(0.005, 100 + number * 0.04) for number in range(200)] == [0.0] * 200


def test_who_takes_more_than_its_share_waits_as_long_as_keeps_it_there() -> None:
    allowance = Allowance(0.2, 0.2)
    now = began = 100.0
    spent = 0.0
    for _ in range(500):
        now += 0.02 + min(0.2, allowance.spend(0.02, now))
        spent += 0.02
    # A fifth of a core, and what was saved up before: a second of it.
    assert (now - began) * 0.2 + 0.2 == pytest.approx(spent, rel=0.02)


def test_a_debt_is_forgotten_beyond_the_longest_wait() -> None:
    allowance = Allowance(0.2, 0.2)
    assert allowance.spend(30.0, 100.0) == pytest.approx(0.2)
    assert allowance.spend(0.0, 100.2) == pytest.approx(0.0, abs=1e-9)


class Full(MemoryBus):
    """A memory bus that answers Backpressure a few times, or Refused for one frame."""

    busy = 0
    bad: bytes | None = None

    async def publish(self, topic: Any, records: Any) -> None:
        if self.busy:
            self.busy -= 1
            raise Backpressure("expected room in the log, got a full queue; try later")
        if self.bad is not None and any(record.value == self.bad for record in records):
            raise Refused("expected a record of at most 1 byte, got more")
        await super().publish(topic, records)


@pytest.mark.kernel
async def test_a_full_bus_leaves_data_in_the_ring(stand_in: Any) -> None:
    bus = Full()
    bus.busy = 10**9
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    stand_in.behaviour(5)
    stand_in.happen(5)
    agent = Agent(source, bus, AgentSettings(retry=Backoff(first_seconds=0.001)))
    task = asyncio.create_task(agent.run())
    await until(lambda: agent.stats.retries > 3)
    for _ in range(9):
        stand_in.happen(5)
    assert source.fill > 0
    bus.busy = 0
    await until(lambda: agent.stats.events == 10)
    # Given back strictly after it was published.
    await until(lambda: source.fill == 0)
    agent.stop()
    await asyncio.wait_for(task, 60)
    source.close()
    await bus.close()


class Hurried(Agent):
    """Remembers what it waits for, and waits for none of it."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.delays: list[float] = []

    async def _wait(self, delay: float) -> None:
        self.delays.append(delay)
        await asyncio.sleep(0)


@pytest.mark.kernel
@pytest.mark.parametrize(("elsewhere", "pause"), [(True, 0.05), (False, 0.002)])
async def test_publications_are_spaced_where_the_bus_is_elsewhere(stand_in: Any, elsewhere: bool, pause: float) -> None:
    bus = MemoryBus()
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    agent = Hurried(source, bus, AgentSettings(share=1.0, tick=0.002, coalesce=0.2), elsewhere=elsewhere)
    stand_in.behaviour(5)
    stand_in.happen(5)
    task = asyncio.create_task(agent.run())
    await until(lambda: len(agent.delays) >= 2)
    agent.stop()
    await asyncio.wait_for(task, 60)
    # After a drain with something in it, then until `coalesce` is over.
    assert agent.delays[0] == pytest.approx(pause, rel=0.9)
    assert agent.delays[0] >= pause
    assert agent.delays[0] + agent.delays[1] == pytest.approx(0.2)
    source.close()
    await bus.close()


class Told:
    """A source of one frame at each drain."""

    finished = False

    def __init__(self, hasty: bool) -> None:
        self._batch = Batch(frames=(frame(0),), hasty=hasty)

    def drain(self) -> Batch:
        batch, self._batch, self.finished = self._batch, Batch(), not self._batch
        return batch

    def release(self) -> None:
        return


@pytest.mark.parametrize(
    ("elsewhere", "hasty", "waits"), [(True, False, True), (True, True, False), (False, False, False)]
)
async def test_a_frame_says_that_it_may_wait_where_batches_cost(elsewhere: bool, hasty: bool, waits: bool) -> None:
    bus = MemoryBus()
    await asyncio.wait_for(Agent(Told(hasty), bus, AgentSettings(tick=0.001), elsewhere=elsewhere).run(), 60)
    (record,) = await everything(bus, EVENTS_RAW)
    assert record.headers == (((PATIENT, b""),) if waits else ())


@pytest.mark.kernel
async def test_stop_drains_what_there_is(stand_in: Any) -> None:
    bus = MemoryBus()
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    agent = Agent(source, bus, AgentSettings(tick=600, idle=600, coalesce=600))
    task = asyncio.create_task(agent.run())
    await until(lambda: agent.stats.drains == 1)
    stand_in.behaviour(5)
    for _ in range(20):
        stand_in.happen(5)
    agent.stop()
    await asyncio.wait_for(task, 60)
    assert agent.stats.events == 20
    source.close()
    await bus.close()


@pytest.mark.kernel
@pytest.mark.parametrize("stand_in", [64], indirect=True)
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_a_late_stop_leaves_in_the_ring_is_said(stand_in: Any, elsewhere: bool, caplog: Any) -> None:
    bus = MemoryBus()
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings(drain_bytes=64 * 1024, fold="never"))
    agent = Agent(source, bus, AgentSettings(drain_seconds=0), elsewhere=elsewhere)
    stand_in.behaviour(5)
    for _ in range(3072):
        assert stand_in.happen(5)
    agent.stop()
    await asyncio.wait_for(agent.run(), 60)
    assert agent.stats.events == 1024
    said = [one.getMessage() for one in caplog.records if "not told" in one.getMessage()]
    # Where the rings outlive this process the next start finds it.
    assert [one.partition(" after")[2][:55] for one in said] == (
        [] if elsewhere else [" the stop the ring of events was still 50 % full, and th"[:55]]
    )
    source.close()
    await bus.close()


@pytest.mark.kernel
async def test_a_call_of_the_kernel_ends_the_wait(stand_in: Any) -> None:
    bus = MemoryBus()
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    agent = Agent(source, bus, AgentSettings(tick=600, idle=600, coalesce=600))
    task = asyncio.create_task(agent.run())
    await until(lambda: agent.stats.drains == 1)
    stand_in.behaviour(5)
    for _ in range(20):
        stand_in.happen(5)
    await asyncio.sleep(0)
    assert (agent.stats.calls, agent.stats.drains) == (0, 1)
    stand_in.call(5)
    await until(lambda: agent.stats.events == 21)
    assert agent.stats.calls == 1
    # What lies in a ring that was drained is no call.
    stand_in.happen(5)
    await asyncio.sleep(0.05)
    assert (agent.stats.calls, agent.stats.drains) == (1, 2)
    agent.stop()
    await asyncio.wait_for(task, 60)
    source.close()
    await bus.close()


@pytest.mark.kernel
async def test_cancelled_in_the_middle_nothing_is_lost(stand_in: Any, tmp_path: Path) -> None:
    bus = Full()
    bus.busy = 10**9
    settings = RingSettings(state_dir=str(tmp_path))
    source = RingSource(str(stand_in.pins), "n", "run", settings)
    stand_in.behaviour(5)
    stand_in.happen(5)
    agent = Agent(source, bus)
    task = asyncio.create_task(agent.run())
    await until(lambda: agent.stats.retries)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    source.close()
    bus.busy = 0
    source = RingSource(str(stand_in.pins), "n", "run2", settings)
    agent = Agent(source, bus)
    agent.stop()
    await agent.run()
    (record,) = await everything(bus, EVENTS_RAW)
    assert words.decode(record.value).header.undefined == 0
    assert agent.stats.events == 1
    source.close()
    await bus.close()


async def test_one_refused_frame_does_not_take_its_neighbours(tmp_path: Path) -> None:
    bus = Full()
    path = recording(tmp_path / "r", 3)
    replay = Replay(ReplaySettings(path=path, speed=0, rebase=False), "run")
    bus.bad = words.encode(first_frame(path, rebase=False))
    agent = Agent(replay, bus)
    await asyncio.wait_for(agent.run(), 60)
    assert agent.stats.refused == 1
    assert len(await everything(bus, EVENTS_RAW)) == 2
    await bus.close()
