# SPDX-License-Identifier: Apache-2.0
"""The whole stage: frames on a bus in; alerts, telemetry and summaries out, offsets after."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace as replaced
from waiting import until

from bus.backoff import Backoff
from bus.contract import Gap, Record
from bus.memory import MemoryBus
from bus.pump import PumpSettings
from processors.engine import Processor, ProcessorSettings
from processors.parking import ParkingSettings
from schemas import identity as identities
from schemas.alert import decode_alert
from schemas.errors import Refused, Unavailable
from schemas.expand import json_lines
from schemas.operations import Access, Class, Operation
from schemas.summary import decode as decode_summary
from schemas.telemetry import decode as decode_telemetry
from schemas.topics import ALERTS, DEAD, EVENTS_RAW, INVENTORY, POLICIES, SUMMARIES, TELEMETRY
from schemas.verdict import ALLOWED


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


@pytest.fixture
async def running(host, web):
    """A bus that knows the node and its container, and a way to start processors on it."""
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(item.key, identities.encode(item)) for item in (host, web)])
    started = []

    def start(**options):
        processor = Processor(bus, ProcessorSettings(**options))
        task = asyncio.create_task(processor.run())
        started.append((processor, task))
        return processor, task

    yield bus, start
    for processor, task in started:
        processor.stop()
        task.cancel()
    await asyncio.gather(*(task for _, task in started), return_exceptions=True)


async def test_policies_and_identities_are_followed(node, running, make_policy, replace, web):
    bus, start = running
    # However slow the machine is: nobody gives the place up before its identity is told.
    processor, _ = start(parking=ParkingSettings(max_seconds=600))
    read = node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257)
    late = node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257, cgroup=500)
    node.row(read)
    node.row(late)
    await bus.publish(EVENTS_RAW, [node.record()])
    await until(lambda: processor.stats().waiting == 1)
    document = make_policy(file={"matchPaths": [{"path": "/etc/shadow"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"a", json.dumps(document).encode()), Record(b"b", b"{}")])
    await until(lambda: processor.stats().policies == 1 and processor.stats().facts_refused == 1)
    assert processor.stats().problem
    other = replace(web, uid="other", cgroups=(500,), container_name="other")
    await bus.publish(INVENTORY, [Record(other.key, identities.encode(other))])
    await until(lambda: bus.published.get("alerts"))
    (alert,) = [decode_alert(record.value) for record in bus.records(ALERTS)]
    assert alert.ContainerName == "other", "parked rows are judged by the policies of when they are told"
    await bus.publish(POLICIES, [Record(b"a", None)])
    await until(lambda: processor.stats().policies == 0)
    node.row(read)
    await bus.publish(EVENTS_RAW, [node.record()])
    await until(lambda: processor.stats().frames == 2)
    assert len(bus.records(ALERTS)) == 1


async def test_publishing_that_fails_is_repeated_without_counting_twice(node, running):
    bus, start = running
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await bus.publish(EVENTS_RAW, [node.record()])
    bus.fail(Unavailable("away"), times=4)
    processor, task = start(pump=PumpSettings(retry=Backoff(first_seconds=0.01)))
    await until(lambda: bus.published.get("summaries"))
    assert processor.stats().events == 1
    assert [decode_telemetry(record.value).header.events for record in bus.records(TELEMETRY)] == [1]
    (summary,) = [decode_summary(record.value) for record in bus.records(SUMMARIES)]
    assert summary.entries[0].count == 1
    processor.stop()
    await task


async def test_what_was_not_told_comes_again_after_a_restart(node, running, replace, web):
    bus, start = running
    processor, task = start(parking=ParkingSettings(max_seconds=600))
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500))
    await bus.publish(EVENTS_RAW, [node.record()])
    await until(lambda: processor.stats().waiting == 1)
    processor.stop()
    await task
    assert await bus.lag("processors") == {"events.raw": 1}
    other = replace(web, uid="other", cgroups=(500,), container_name="other")
    await bus.publish(INVENTORY, [Record(other.key, identities.encode(other))])
    again, second = start()
    await until(lambda: bus.published.get("summaries"))
    assert decode_telemetry(bus.records(TELEMETRY)[-1].value).identities[0].container_name == "other"
    again.stop()
    await second
    assert await bus.lag("processors") == {"events.raw": 0}


class Faulty:
    """A ruleset with a bug: it cannot bear one path."""

    visible = frozenset(Class)
    dns_visible = True

    def scope(self, identity):
        return self

    def judge(self, behaviour, arguments=None):
        if behaviour.resource == "/bug":
            raise ZeroDivisionError("a bug")
        return ALLOWED


async def test_a_bug_in_one_frame_does_not_stop_a_node(node, host, web):
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(item.key, identities.encode(item)) for item in (host, web)])
    for path in ("/a", "/bug", "/b"):
        node.row(node.behaviour(Operation.OPEN, path, syscall=257))
        await bus.publish(EVENTS_RAW, [node.record()])
    settings = ProcessorSettings(pump=PumpSettings(retry=Backoff(first_seconds=0.01), max_wait=0.1))
    processor = Processor(bus, settings, compile_documents=lambda documents: Faulty())
    task = asyncio.create_task(processor.run())
    await until(lambda: bus.published.get("dead") and processor.stats().counted_events == 2)
    processor.stop()
    await task
    assert await bus.lag("processors") == {"events.raw": 0}
    counted = [decode_summary(record.value) for record in bus.records(SUMMARIES)]
    assert [entry.behaviour.resource for summary in counted for entry in summary.entries] == ["/a", "/b"]


async def test_a_closed_bus_ends_the_stage_with_its_error(running):
    bus, start = running
    _, task = start()
    await bus.close()
    with pytest.raises(Refused):
        await task


async def test_an_alert_does_not_wait_for_the_rest_of_its_batch(node, running, make_policy, monkeypatch):
    bus, start = running
    document = make_policy(file={"matchPaths": [{"path": "/etc/shadow", "action": "Audit"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"p", json.dumps(document).encode())])
    node.row(node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257))
    records = [node.record()]
    for number in range(5):
        node.row(node.behaviour(Operation.OPEN, f"/new/{number}", syscall=257))
        records.append(node.record())
    await bus.publish(EVENTS_RAW, records)
    # However fast the machine is: the time to send has come with each frame.
    monkeypatch.setattr("processors.engine._ALERTS", 0.0)
    processor, _ = start()
    told_after = []
    read = processor.pipeline.read
    processor.pipeline.read = lambda delivery: (told_after.append(len(bus.records(ALERTS))), read(delivery))[1]
    await until(lambda: processor.stats().frames == 6)
    assert told_after == [0, 1, 1, 1, 1, 1]


async def test_alerts_are_completed_before_they_go_and_go_all_the_same_when_that_fails(running, node, make_policy):
    bus, _ = running
    document = make_policy(file={"matchPaths": [{"path": "/etc/shadow"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"a", json.dumps(document).encode())])
    asked = []

    async def complete(records):
        asked.append(len(records))
        if len(asked) == 1:
            raise RuntimeError("a file system of another kind")
        return [
            replaced(record, value=record.value.replace(b'"HashAlgo":""', b'"HashAlgo":"sha256"')) for record in records
        ]

    processor = Processor(bus, complete=complete)
    task = asyncio.create_task(processor.run())
    for many in (1, 2):
        node.row(node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257))
        await bus.publish(EVENTS_RAW, [node.record()])
        await until(lambda many=many: len(bus.records(ALERTS)) >= many)
    assert [decode_alert(record.value).HashAlgo for record in bus.records(ALERTS)[:2]] == ["", "sha256"]
    processor.stop()
    await task


async def test_the_sensor_hears_what_is_needed_row_by_row(node, host, web, make_policy):
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(item.key, identities.encode(item)) for item in (host, web)])
    heard, logged = [], [True]
    processor = Processor(
        bus, due=lambda header, rows, counted: heard.append((header.node, rows, counted)), logged=lambda: logged[0]
    )
    task = asyncio.create_task(processor.run())
    plain = node.behaviour(Operation.OPEN, "/etc/hosts", syscall=257, access=Access.READ)
    watched = node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257, access=Access.READ)

    async def both(frames):
        node.row(plain)
        node.row(watched)
        await bus.publish(EVENTS_RAW, [node.record()])
        await until(lambda: processor.stats().frames == frames)

    await both(1)
    # Somebody reads telemetry, so each is needed.
    assert heard == []
    logged[0] = False
    await both(2)
    assert heard.pop() == ("node-1", [], [plain, watched])
    await both(3)
    assert heard == []
    document = make_policy(file={"matchPaths": [{"path": "/etc/shadow", "action": "Audit"}]}, action="Audit")
    await bus.publish(POLICIES, [Record(b"KubeArmorPolicy/demo/p", json.dumps(document).encode())])
    await until(lambda: processor.stats().policies)
    await both(4)
    assert heard.pop() == ("node-1", [watched], [])
    logged[0] = True
    await both(5)
    assert heard[0] == ("node-1", [], None)
    processor.stop()
    await task
    await bus.close()


async def test_frames_that_retention_took_are_told_as_an_alert(node, host):
    """One at once, what comes within its silence when the stage ends."""
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(host.key, identities.encode(host))])
    await bus.publish(EVENTS_RAW, [node.record() for _ in range(5)])
    async with bus.subscribe([EVENTS_RAW], "processors", "earliest") as before:
        await before.take(1, 1.0)
        await before.commit()
    bus.drop(EVENTS_RAW, 3)
    processor = Processor(bus)
    running = asyncio.create_task(processor.run())

    def told():
        found = [decode_alert(record.value) for record in bus.records(ALERTS)]
        return [alert for alert in found if alert.Operation == "FramesLost"]

    await until(told)
    (alert,) = told()
    assert (alert.Type, alert.EventData) == ("SystemEvent", {"frames": "2", "topic": "events.raw", "partition": "0"})
    assert "2 frames of `events.raw` were lost before they were judged" in alert.Message
    processor._missed.add(4, Gap("events.raw", 0, 9, 12, "retention"))
    processor.stop()
    await running
    assert [alert.EventData["frames"] for alert in told()] == ["2", "4"]
