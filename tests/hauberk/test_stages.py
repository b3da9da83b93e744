# SPDX-License-Identifier: Apache-2.0
"""The end of stages: everything there is gets told, and nobody waits for what cannot come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from hauberk import stages
from hauberk.sections import Configuration
from processors.ledger import LINGER
from schemas import frame as frames
from schemas.alert import Alert, encode_alert
from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES
from sensors.replay import ReplaySettings
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
    engine, stage = stages.processor(played, Configuration())
    stop = asyncio.Event()
    task = asyncio.create_task(stage(stop))
    ends = await played.end(EVENTS_RAW)
    async with asyncio.timeout(30):
        while engine.pump.position.get((EVENTS_RAW.name, 0), 0) < ends[0] or engine.parking.waiting:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    loop = asyncio.get_running_loop()
    started = loop.time()
    stop.set()
    await task
    assert loop.time() - started < LINGER / 2
    assert (await played.lag("processors"))[EVENTS_RAW.name] == 0
    events = sum(frames.decode(record.value or b"").header.events for record in played.records(EVENTS_RAW))
    assert engine.stats().counted_events == events > 0
    assert played.records(SUMMARIES)


async def test_sinks_send_at_once_when_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch that would be filled for a minute.
    monkeypatch.setattr(StoreSink, "limits", StoreSink.limits.__class__(items=5000, age_seconds=60.0))
    bus = MemoryBus()
    settings = Configuration(sinks=[StoreSettings(name="summary", path=str(tmp_path / "summary.db"))])
    engine, stage = stages.sinks(bus, settings)
    stop = asyncio.Event()
    task = asyncio.create_task(stage(stop))
    alert: Any = Alert(Timestamp=1, UpdatedTime="", EventID="a", PolicyName="p")
    await bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])
    async with asyncio.timeout(10):
        while not engine.states()[0].stats.taken:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    loop = asyncio.get_running_loop()
    started = loop.time()
    stop.set()
    await task
    assert loop.time() - started < stages.DRAIN / 2
    assert await bus.lag("sink.summary") == {"alerts": 0, "summaries": 0}
