# SPDX-License-Identifier: Apache-2.0
"""One bad frame, identity or record stops nobody else's: it is a dead letter with a reason, once, and the others are told."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from waiting import until

from bus.backoff import Backoff
from bus.contract import Record
from bus.dead_letters import HEADERS
from bus.memory import MemoryBus
from bus.pump import PumpSettings
from processors.engine import Processor, ProcessorSettings
from processors.parking import ParkingSettings
from schemas import identity as identities
from schemas.errors import DiskFull, HauberkError, Refused
from schemas.frame import FOLDED, VERSION, decode, definition, encode
from schemas.kernel import STRIDE, DefinitionKind
from schemas.operations import Operation
from schemas.topics import DEAD, EVENTS_RAW, INVENTORY, SUMMARIES


def poisons(record):
    """Frames of one node that say what no node says."""
    base = decode(record.value)
    change = msgspec.structs.replace

    def header(**changes):
        return encode(change(base, header=change(base.header, **changes)))

    late = (2**64 - 1).to_bytes(8, "little")
    ident = base.occurrences[8:16]
    return {
        "time of 2^64-1": encode(change(base, occurrences=base.occurrences[:16] + late + base.occurrences[24:])),
        "clock": header(clock_offset_ns=2**63), "clock before 1970": header(clock_offset_ns=-(2**62)),
        "node": header(node="a/b\n"), "lost": header(lost=(-5,)), "number": header(number=2**63),
        "folded": encode(change(base, folded=FOLDED.pack(int.from_bytes(ident, "little"), 2**64 - 1, 5, 2**64 - 1, 0, 0))),
        "short definition": encode(change(base, definitions=definition(DefinitionKind.BEHAVIOUR, int.from_bytes(ident, "little"), b"x" * 8))),
        "cut definitions": encode(change(base, definitions=base.definitions[:-9])),
        "half a row": encode(change(base, occurrences=base.occurrences[: STRIDE // 2])),
        "not UTF-8": record.value.replace(b"boot-a", b"\xff\xfe\xff\xfe\xff\xfe"), "deep": b"\x91" * 100_000, "nothing": b"",
        "a later version": header(version=VERSION + 1),
    }  # fmt: skip


async def test_bad_frames_are_dead_letters_and_the_other_node_is_told(node, make_node, host, web, replace):
    bus = MemoryBus()
    other = replace(host, node="node-2", uid="node-2")
    await bus.publish(INVENTORY, [Record(one.key, identities.encode(one)) for one in (host, web, other)])
    # Beside the true ones: none of these may end who follows the inventory.
    await bus.publish(
        INVENTORY, [Record(b"\xff\xff/x", b"\x91" * 100_000), Record(b"node-1/bad", b"\xff"), Record(b"", b"\x90")]
    )
    processor = Processor(bus, ProcessorSettings(pump=PumpSettings(retry=Backoff(first_seconds=0.01))))
    running = asyncio.create_task(processor.run())
    second = make_node("node-2")
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    bad = poisons(node.record())
    records = []
    for value in bad.values():
        second.row(second.behaviour(Operation.OPEN, "/b", syscall=257, cgroup=1))
        records += [Record(b"node-1", value), second.record()]
    await bus.publish(EVENTS_RAW, records)
    await until(lambda: processor.pump.stats.dead >= len(bad) and processor.stats().frames >= len(bad))
    assert not running.done()
    letters = bus.records(DEAD)
    assert len(letters) == len(bad), "each once"
    for letter in letters:
        reasons = dict(letter.headers)
        assert tuple(reasons) == HEADERS
        later = b"upgrade hauberk" in reasons["dead.error"]
        assert reasons["dead.reason"] == (b"incompatible" if later else b"decode"), reasons
        assert reasons["dead.attempts"] == b"1", "it is not tried again: its bytes do not change"
    # What to do is in the letter, where there is something to do.
    assert sum(b"upgrade hauberk" in dict(letter.headers)["dead.error"] for letter in letters) == 1
    assert processor.stats().bad_frames == len(bad)
    assert processor.stats().events == len(bad), "the other node's events are all counted"
    processor.stop()
    await running
    assert (await bus.lag("processors"))["events.raw"] == 0


async def test_a_bad_frame_is_not_committed_before_its_letter_is_written(node, host, web, monkeypatch):
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(one.key, identities.encode(one)) for one in (host, web)])
    publish, refused = bus.publish, []

    async def full(topic, records):
        if topic is DEAD:
            refused.append(topic)
            raise DiskFull("no room")
        await publish(topic, records)

    monkeypatch.setattr(bus, "publish", full)
    quick = PumpSettings(retry=Backoff(first_seconds=0.01), drain_seconds=0.1)
    processor = Processor(bus, ProcessorSettings(pump=quick))
    running = asyncio.create_task(processor.run())
    await publish(EVENTS_RAW, [Record(b"node-1", b"\xff")])
    await until(lambda: refused)
    processor.stop()
    await running
    assert (await bus.lag("processors"))["events.raw"] == 1
    monkeypatch.setattr(bus, "publish", publish)
    processor = Processor(bus, ProcessorSettings(pump=quick))
    running = asyncio.create_task(processor.run())
    await until(lambda: bus.records(DEAD))
    processor.stop()
    await running
    assert (await bus.lag("processors"))["events.raw"] == 0


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_frames_end_nothing(node, make_node, stage, seed):
    """Bytes are changed at random: a frame is told or dead, and a true one behind it is told."""
    chance = random.Random(seed)
    for number in range(6):
        node.row(node.behaviour(Operation.OPEN, f"/a{number}", syscall=257), process=node.process("/bin/cat", ("cat",)))
    node.fold(node.behaviour(Operation.CONNECT, "", family=2, address="10.0.0.1", port=9), 5)
    whole = node.record().value
    said = []
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 12)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            await stage.take(Record(b"node-1", bytes(raw)))
        except HauberkError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "report it" in text]
    await stage.finish()
    assert stage.processor.stats().unjudged == 0
    before = stage.processor.stats().events
    good = make_node(run="run-good")
    good.row(good.behaviour(Operation.OPEN, "/good", syscall=257))
    await stage.take(good.record())
    await stage.finish()
    assert stage.processor.stats().events == before + 1


async def test_what_the_bus_will_not_take_holds_nothing_back(node, stage, monkeypatch):
    for number in range(3):
        node.row(node.behaviour(Operation.OPEN, f"/a{number}", syscall=257))
        await stage.take(node.record())
    publish, tried = stage.bus.publish, []

    async def picky(topic, records):
        tried.append(topic.name)
        if topic is SUMMARIES and any(b"/a1" in record.value for record in records):
            raise Refused("too large")
        await publish(topic, records)

    monkeypatch.setattr(stage.bus, "publish", picky)
    stage.processor.pipeline.outbox.summaries += [Record(b"k", value) for value in (b"/a0", b"/a1", b"/a2")]
    await stage.processor.send()
    values = [record.value for record in stage.bus.records(SUMMARIES)]
    assert values == [b"/a0", b"/a2"]
    (letter,) = stage.bus.records(DEAD)
    headers = dict(letter.headers)
    assert tuple(headers) == HEADERS
    assert (headers["dead.topic"], headers["dead.offset"], headers["dead.attempts"]) == (b"summaries", b"", b"1")
    assert stage.processor.stats().refused_records == 1
    assert not stage.processor.pipeline.outbox.summaries


async def test_an_error_of_ours_in_one_node_s_counts_is_told_and_the_other_s_are_exact(
    node, make_node, make_stage, host, web, replace, monkeypatch
):
    from processors import pipeline

    stage = make_stage(ProcessorSettings(parking=ParkingSettings(max_seconds=0)))
    for one in (host, web, replace(host, node="node-2", uid="node-2")):
        stage.identity(one)
    second = make_node("node-2")
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    second.row(second.behaviour(Operation.OPEN, "/b", syscall=257, cgroup=1))
    whole = pipeline.summaries

    def broken(group):
        if group[0].header.node == "node-1":
            raise OverflowError("a value that nobody thought of")
        return whole(group)

    monkeypatch.setattr(pipeline, "summaries", broken)
    await stage.take(node.record(), second.record())
    await stage.finish()
    await stage.finish()
    assert [entry.count for summary in stage.summaries for entry in summary.entries] == [1]
    assert stage.processor.stats().unjudged == 1
    assert any("unjudged=1" in alert.Data for alert in stage.alerts)
    assert len(stage.processor.tracker.done()) == 1, "and the offset moves on"
