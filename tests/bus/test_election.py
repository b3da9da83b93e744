# SPDX-License-Identifier: Apache-2.0
"""One of several candidates works at a time; another takes over when it ends or fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.election import Election
from bus.memory import MemoryBus
from schemas.errors import Unavailable
from schemas.topics import POLICIES


class Candidate:
    """One process: `working` counts terms under way, in all candidates of `bus` together as `busy`."""

    busy = 0

    def __init__(self, bus: Any) -> None:
        self.election = Election(bus, POLICIES, "planners")
        self.stop = asyncio.Event()
        self.fail = asyncio.Event()
        self.task = asyncio.create_task(self.election.run(self.stop, self.term))

    async def term(self, over: asyncio.Event) -> None:
        Candidate.busy += 1
        assert Candidate.busy == 1, "two at a time"
        try:
            ways = {asyncio.create_task(over.wait()), asyncio.create_task(self.fail.wait())}
            await asyncio.wait(ways, return_when="FIRST_COMPLETED")
            for way in ways:
                way.cancel()
            if self.fail.is_set():
                raise Unavailable("it broke")
        finally:
            Candidate.busy -= 1

    async def end(self) -> None:
        self.stop.set()
        await self.task


@pytest.fixture
async def candidates():
    made: list[Candidate] = []
    Candidate.busy = 0

    def make(bus: Any) -> Candidate:
        made.append(Candidate(bus))
        return made[-1]

    yield make
    for one in made:
        if not one.task.done():
            await one.end()


async def test_the_second_stands_by_until_the_first_ends(world, candidates, until):
    bus = await world.open()
    first = candidates(bus)
    await until(lambda: first.election.state == "active")
    second = candidates(bus)
    await until(lambda: second.election.state == "standing by")
    assert first.election.state == "active"
    await first.end()
    await until(lambda: second.election.state == "active")
    assert (first.election.terms, second.election.terms) == (1, 1)


async def test_one_that_fails_lets_the_other_work_and_raises_why(candidates, until):
    bus = MemoryBus()
    first = candidates(bus)
    await until(lambda: first.election.state == "active")
    second = candidates(bus)
    await until(lambda: second.election.state == "standing by")
    first.fail.set()
    with pytest.raises(Unavailable, match="it broke"):
        await first.task
    await until(lambda: second.election.state == "active")


async def test_a_bus_that_cannot_be_asked_ends_no_term(candidates, until):
    bus = MemoryBus()
    first = candidates(bus)
    await until(lambda: first.election.state == "active")
    bus.fail(Unavailable("away", 0.01), call="take", times=3)
    await until(lambda: not bus._failures)
    second = candidates(bus)
    await until(lambda: second.election.state == "standing by")
    assert (first.election.state, first.election.terms, Candidate.busy) == ("active", 1, 1)
