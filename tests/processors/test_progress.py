# SPDX-License-Identifier: Apache-2.0
"""How far frames are read is published for the nodes they came from: what moved, per node the latest run, and nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from bus.memory import MemoryBus
from processors.engine import Processor
from processors.progress import _PENDING, Reporting
from schemas.errors import Unavailable
from schemas.frame import FrameHeader
from schemas.progress import MOST_CALLS, decode
from schemas.topics import EVENTS_RAW, PROGRESS


def told(bus: MemoryBus) -> list[tuple[str, str, int]]:
    return [(one.node, one.run, one.number) for one in (decode(record.value) for record in bus.records(PROGRESS))]


async def test_what_moved_is_published_once_and_of_each_node_the_latest_run() -> None:
    bus, numbers = MemoryBus(), {("n", "b", "old"): 9, ("m", "b", "r"): 1, ("n", "b", "new"): 0}
    reporting = Reporting(bus, "processors", lambda: numbers)
    await reporting.report()
    assert sorted(told(bus)) == [("m", "r", 1), ("n", "new", 0)]
    await reporting.report()
    assert len(told(bus)) == 2
    numbers["m", "b", "r"] = 2
    await reporting.report()
    assert told(bus)[2:] == [("m", "r", 2)]
    assert set(await bus.latest(PROGRESS)) == {b"n/processors", b"m/processors"}


async def test_a_bus_that_is_away_costs_that_record_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = MemoryBus()
    reporting = Reporting(bus, "g", lambda: {("n", "b", "r"): 3})

    async def away(*_: object) -> None:
        raise Unavailable("expected a bus, got none", 0.1)

    with monkeypatch.context() as gone:
        gone.setattr(bus, "publish", away)
        await reporting.report()
    await reporting.report()
    assert told(bus) == [("n", "r", 3)]


async def test_what_may_be_an_alert_is_said_once_bounded_and_again_after_a_failure() -> None:
    bus = MemoryBus()
    reporting = Reporting(bus, "g", lambda: {("n", "b", "r"): 3})
    header = FrameHeader(node="n", boot="b", run="r", number=3, clock_offset_ns=0, events=0)
    wanted = list(range((1 << 64) - MOST_CALLS - 10, 1 << 64))
    reporting.due(header, wanted, [1, 2])
    reporting.due(header, [], None)
    bus.fail(Unavailable("expected a bus, got none", 0.1))
    await reporting.report()
    for _ in range(3):
        await reporting.report()
    said = [decode(record.value).calls for record in bus.records(PROGRESS)]
    assert [len(calls) for calls in said] == [MOST_CALLS, 10]
    assert [*said[0], *said[1]] == wanted
    # Over what may wait: left out, and named again by the pipeline within a minute.
    reporting.due(header, list(range(_PENDING + 100)), [])
    reporting.due(header, [1 << 40], [])
    while reporting.moved():
        await reporting.report()
    assert sum(len(decode(record.value).calls) for record in bus.records(PROGRESS)) == len(wanted) + _PENDING


@pytest.mark.parametrize("reports", [True, False])
async def test_a_processor_says_how_far_it_is_unless_its_node_can_ask_it(node, reports: bool) -> None:
    bus = MemoryBus()
    processor = Processor(bus, reports=reports)
    running = asyncio.create_task(processor.run())
    await bus.publish(EVENTS_RAW, [node.record(), node.record()])
    async with asyncio.timeout(60):
        while processor.stats().frames < 2 or (reports and told(bus)[-1:] != [("node-1", "run-1", 1)]):  # noqa: ASYNC110 - polls a bus
            await asyncio.sleep(0.01)
    assert bool(told(bus)) is reports
    processor.stop()
    await running
