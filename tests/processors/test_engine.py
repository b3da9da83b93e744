# SPDX-License-Identifier: Apache-2.0
"""The whole stage: frames on a bus in; alerts, telemetry and summaries out, offsets after."""

from __future__ import annotations

import asyncio
import json

from bus.contract import Record
from bus.memory import MemoryBus
from processors.engine import Processor
from schemas import identity as identities
from schemas.alert import decode_alert
from schemas.expand import json_lines
from schemas.operations import Access, Operation
from schemas.summary import decode as decode_summary
from schemas.telemetry import decode as decode_telemetry
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, INVENTORY, POLICIES, SUMMARIES, TELEMETRY


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - polls a bus, which has no event for this.
            await asyncio.sleep(0.01)


async def test_from_frame_to_alert_telemetry_and_summary(node, web, host, make_policy):
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(item.key, identities.encode(item)) for item in (host, web)])
    document = make_policy(file={"matchPaths": [{"path": "/etc/shadow", "action": "Audit"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"KubeArmorPolicy/demo/p", json.dumps(document).encode())])
    processor = Processor(bus)
    running = asyncio.create_task(processor.run())

    cat = node.process("/bin/cat", ("cat", "/etc/shadow"), cwd="/root")
    read = node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257, access=Access.READ, flags=0o2000000)
    other = node.behaviour(Operation.OPEN, "/etc/hosts", syscall=257, access=Access.READ)
    node.row(read, process=cat, aux=4294967196)
    for _ in range(10):
        node.row(other, process=cat, aux=4294967196)
    await bus.publish(EVENTS_RAW, [node.record(), Record(b"node-1", b"not a frame")])

    await until(lambda: bus.published.get("summaries") and bus.published.get("alerts") and processor.pump.stats.dead)
    (alert,) = [decode_alert(record.value) for record in bus.records(ALERTS)]
    assert (alert.PolicyName, alert.Action, alert.Resource) == ("p", "Audit", "/etc/shadow")
    assert alert.Source == "/bin/cat /etc/shadow"
    assert alert.EventID == "node-1:boot-a:1"
    (frame,) = [decode_telemetry(record.value) for record in bus.records(TELEMETRY)]
    assert len(list(json_lines(frame))) == 11
    (summary,) = [decode_summary(record.value) for record in bus.records(SUMMARIES)]
    assert sorted((entry.behaviour.resource, entry.count, entry.status) for entry in summary.entries) == [
        ("/etc/hosts", 10, "Allow"),
        ("/etc/shadow", 1, "Audit"),
    ]
    assert len(bus.records(DEAD)) == 1
    processor.stop()
    await running
    assert await bus.lag("processors") == {"events.raw": 0}
    assert processor.stats().events == 11
