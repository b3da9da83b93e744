# SPDX-License-Identifier: Apache-2.0
"""The end of stages: everything there is gets told, and nobody waits for what cannot come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from hauberk import stages
from hauberk.sections import Configuration
from processors.engine import ProcessorSettings
from processors.parking import ParkingSettings
from schemas import frame as frames
from schemas.alert import Alert, encode_alert
from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES
from sensors.recordings.replay import ReplaySettings
from sinks import registry
from sinks.blackhole import BlackholeSettings, BlackholeSink
from sinks.sink import BatchLimits, Item, SendResult
from sinks.store.sink import StoreSettings, StoreSink

RECORDING = str(Path(__file__).parents[2] / "examples/recordings/host.hbrk")


@pytest.fixture
async def played() -> MemoryBus:
    """A bus with a recording on it."""
    bus = MemoryBus()
    over = asyncio.Event()
    _, stage = stages.replay(bus, ReplaySettings(path=RECORDING, speed=0), over)
    await stage(asyncio.Event())
    assert bus.records(EVENTS_RAW)
    return bus


async def test_the_processor_does_not_wait_for_frames_that_cannot_come(played: MemoryBus) -> None:
    part = stages.processor(played, Configuration())
    engine, stage = part.engine, part.stage
    stop = asyncio.Event()
    task = asyncio.create_task(stage(stop))
    ends = await played.end(EVENTS_RAW)
    async with asyncio.timeout(60):
        while engine.pump.position.get((EVENTS_RAW.name, 0), 0) < ends[0] or engine.parking.waiting:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.wait_for(task, 60)
    assert (await played.lag("processors"))[EVENTS_RAW.name] == 0
    events = sum(frames.decode(record.value or b"").header.events for record in played.records(EVENTS_RAW))
    assert engine.stats().counted_events == events > 0
    assert played.records(SUMMARIES)


async def test_rows_that_nobody_can_name_any_more_are_told_as_they_are(played: MemoryBus) -> None:
    bus = MemoryBus()
    await bus.publish(EVENTS_RAW, played.records(EVENTS_RAW))
    patient = ProcessorSettings(parking=ParkingSettings(max_seconds=3600.0))
    part = stages.processor(bus, Configuration(processor=patient), last=True)
    engine, stage = part.engine, part.stage
    stop = asyncio.Event()
    task = asyncio.create_task(stage(stop))
    async with asyncio.timeout(60):
        while not engine.parking.waiting:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.wait_for(task, 60)
    assert (await bus.lag("processors"))[EVENTS_RAW.name] == 0
    events = sum(frames.decode(record.value or b"").header.events for record in bus.records(EVENTS_RAW))
    assert engine.stats().counted_events == events
    assert engine.stats().told_unknown > 0


async def test_sinks_send_at_once_when_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch that would be filled for an hour.
    monkeypatch.setattr(StoreSink, "limits", StoreSink.limits.__class__(items=5000, age_seconds=3600.0))
    bus = MemoryBus()
    settings = Configuration(sinks=[StoreSettings(name="summary", path=str(tmp_path / "summary.db"))])
    sending = stages.sinks(bus, settings)
    engine, stage = sending.engine, sending.stage
    stop = asyncio.Event()
    task = asyncio.create_task(stage(stop))
    alert: Any = Alert(Timestamp=1, UpdatedTime="", EventID="a", PolicyName="p")
    await bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])
    async with asyncio.timeout(60):
        while not engine.states()[0].stats.taken:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.wait_for(task, 60)
    assert await bus.lag("sink.summary") == {"alerts": 0, "summaries": 0}


async def test_a_replay_is_over_when_all_of_it_is_judged_and_sent_however_long_that_takes(tmp_path: Path) -> None:
    bus, over, stop = MemoryBus(), asyncio.Event(), asyncio.Event()
    settings = Configuration(sinks=[StoreSettings(path=str(tmp_path / "summary.db"))])
    part = stages.processor(bus, settings)
    engine, judging = part.engine, part.stage
    sending = stages.sinks(bus, settings)
    telling = sending.stage
    wanted = ReplaySettings(path=RECORDING, speed=0)
    agent, playing = stages.replay(bus, wanted, over, part.finish, sending.finish)
    tasks = [asyncio.create_task(playing(asyncio.Event()))]
    async with asyncio.timeout(60):
        while not agent.source.finished:  # noqa: ASYNC110 - a flag
            await asyncio.sleep(0.005)
        assert not over.is_set()
        tasks += [asyncio.create_task(stage(stop)) for stage in (judging, telling)]
        await over.wait()
        ends = await bus.end(EVENTS_RAW)
        assert engine.pump.position[EVENTS_RAW.name, 0] == ends[0] > 0
        assert not any((await bus.lag("sink.store")).values())
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_replay_that_is_told_to_stop_waits_for_nobody() -> None:
    bus, over, stop = MemoryBus(), asyncio.Event(), asyncio.Event()
    agent, playing = stages.replay(bus, ReplaySettings(path=RECORDING, speed=0), over, asyncio.Event().wait)
    task = asyncio.create_task(playing(stop))
    async with asyncio.timeout(60):
        while not agent.source.finished:  # noqa: ASYNC110 - a flag
            await asyncio.sleep(0.005)
        stop.set()
        await task
    assert over.is_set()


class Slow(BlackholeSink):
    """A far side that takes one item each 10 ms."""

    limits = BatchLimits(items=1, age_seconds=0.0)

    async def send(self, items: Sequence[Item]) -> SendResult:
        await asyncio.sleep(0.01)
        return await super().send(items)


async def test_a_stop_reads_a_backlog_for_a_while_only_and_the_end_of_a_replay_reads_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "READ_SECONDS", 0.2)
    monkeypatch.setattr(registry, "BlackholeSink", Slow)
    bus, stop, backlog = MemoryBus(), asyncio.Event(), 100
    settings = Configuration(sinks=[BlackholeSettings()])
    alert: Any = Alert(Timestamp=1, UpdatedTime="", EventID="a", PolicyName="p")
    await bus.publish(ALERTS, [Record(b"w", encode_alert(alert))] * backlog)
    part = stages.sinks(bus, settings)
    stop.set()
    await asyncio.wait_for(part.stage(stop), 60)
    left = (await bus.lag("sink.blackhole"))[ALERTS.name]
    assert 0 < left < backlog
    assert part.engine.states()[0].stats.accepted == backlog - left, "what was sent is committed, whatever is left"
    part = stages.sinks(bus, settings)
    task = asyncio.create_task(part.stage(asyncio.Event()))
    await asyncio.wait_for(part.finish(), 60)
    await task
    assert (await bus.lag("sink.blackhole"))[ALERTS.name] == 0
