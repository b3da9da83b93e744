# SPDX-License-Identifier: Apache-2.0
"""How far frames are read is published for the nodes they came from: what moved, per node the latest run, and nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from bus.memory import MemoryBus
from processors.engine import Processor
from processors.progress import Reporting
from schemas.progress import decode
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
    from schemas.errors import Unavailable

    bus = MemoryBus()
    reporting = Reporting(bus, "g", lambda: {("n", "b", "r"): 3})

    async def away(*_: object) -> None:
        raise Unavailable("expected a bus, got none", 0.1)

    with monkeypatch.context() as gone:
        gone.setattr(bus, "publish", away)
        await reporting.report()
    await reporting.report()
    assert told(bus) == [("n", "r", 3)]


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
