# SPDX-License-Identifier: Apache-2.0
"""A recorded ring through the stage: what a real kernel sent is counted to the last event and told in KubeArmor's words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.memory import MemoryBus
from processors.engine import Processor
from schemas.alert import decode_alert
from schemas.expand import json_lines
from schemas.frame import decode
from schemas.summary import decode as decode_summary
from schemas.telemetry import decode as decode_telemetry
from schemas.topics import ALERTS, EVENTS_RAW, POLICIES, SUMMARIES, TELEMETRY
from sensors.node.agent import Agent
from sensors.recordings.replay import Replay, ReplaySettings

RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "host.hbrk"


async def test_a_recorded_session(make_policy):
    bus = MemoryBus()
    document = make_policy("KubeArmorHostPolicy", file={"matchPaths": [{"path": "/etc/shadow"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"p", json.dumps(document).encode())])
    await Agent(Replay(ReplaySettings(path=str(RECORDING), speed=0, rebase=False), "run"), bus).run()
    sent = sum(decode(record.value).header.events for record in bus.records(EVENTS_RAW))
    processor = Processor(bus)
    running = asyncio.create_task(processor.run())
    async with asyncio.timeout(60):
        while processor.stats().events < sent or processor.stats().open_frames:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    processor.stop()
    await running
    summaries = [decode_summary(record.value) for record in bus.records(SUMMARIES)]
    assert sum(entry.count for summary in summaries for entry in summary.entries) == sent == processor.stats().events
    (alert,) = [decode_alert(record.value) for record in bus.records(ALERTS)]
    assert (alert.Type, alert.Resource, alert.Action) == ("MatchedHostPolicy", "/etc/shadow", "Audit")
    assert alert.Source.endswith("cat /etc/shadow")
    lines = [
        json.loads(line) for record in bus.records(TELEMETRY) for line in json_lines(decode_telemetry(record.value))
    ]
    assert len(lines) == processor.stats().telemetry_events
    assert len({line["EventID"] for line in lines}) == len(lines)
    web = [line for line in lines if line.get("ContainerName") == "web"]
    assert any(line["Data"] == "kprobe=tcp_connect domain=AF_INET" for line in web)
    assert any("cat /etc/passwd" in line["Source"] and line["Resource"] == "/etc/passwd" for line in web)
    assert all(line["Resource"] for line in lines if line["Operation"] in ("Process", "File"))


async def played(bus, frames):
    """Run a processor until it has read `frames` or more and committed all there is; its stats."""
    processor = Processor(bus)
    running = asyncio.create_task(processor.run())

    async def busy():
        return processor.stats().frames < frames or (await bus.lag("processors")).get(EVENTS_RAW.name, 1)

    async with asyncio.timeout(60):
        while await busy():  # noqa: ASYNC110 - polls a bus, which has no event for this.
            await asyncio.sleep(0.02)
    processor.stop()
    await running
    return processor.stats()


async def test_the_same_on_the_embedded_log(tmp_path):
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
    try:
        await Agent(Replay(ReplaySettings(path=str(RECORDING), speed=0, rebase=False), "run"), bus).run()
        async with bus.subscribe((SUMMARIES, TELEMETRY), None, "earliest") as reader:
            first, second = await played(bus, frames=1), await played(bus, frames=0)
            taken = []
            while batch := await reader.take(500, 0.2):
                taken += batch
    finally:
        await bus.close()
    counted = sum(
        entry.count
        for delivery in taken
        if delivery.topic.name == SUMMARIES.name
        for entry in decode_summary(delivery.record.value).entries
    )
    logged = [
        decode_telemetry(delivery.record.value).header.events
        for delivery in taken
        if delivery.topic.name == TELEMETRY.name
    ]
    assert counted > sum(logged) > 100
    assert counted == first.events
    assert second.frames == 0, "what was committed does not come again"
