# SPDX-License-Identifier: Apache-2.0
"""A node whose processors are elsewhere: it names less while they are behind, and is not blinded by those that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from schemas.frame import Frame, FrameHeader
from schemas.progress import Progress, encode
from schemas.topics import PROGRESS
from sensors.node.backlog import LATE, STEP_SECONDS, Backlog
from sensors.node.following import FORGOTTEN, Following


def header(number: int, run: str = "r") -> FrameHeader:
    return FrameHeader(node="n", boot="b", run=run, number=number, clock_offset_ns=0, events=0)


class Scene:
    """A bus, a node that follows, and a clock that moves when told."""

    def __init__(self) -> None:
        self.bus, self.now = MemoryBus(), 100.0
        self.called: list[int] = []
        self.following = Following(self.bus, "n", lambda: self.now, self.called.extend)

    async def report(
        self, number: int, *, group: str = "g", node: str = "n", run: str = "r", calls: tuple[int, ...] = ()
    ) -> None:
        one = Progress(node=node, group=group, boot="b", run=run, number=number, calls=calls)
        await self.bus.publish(
            PROGRESS, [Record(one.key, encode(one)), Record(b"n/bad", b"\xc1"), Record(b"n/gone", None)]
        )

    async def reads(self, number: int, of: FrameHeader | None = None) -> None:
        async with asyncio.timeout(60):
            while self.following.read(of or header(7)) != number:  # noqa: ASYNC110 - polls a bus
                await asyncio.sleep(0.001)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    task = asyncio.create_task(made.following.run())
    await asyncio.sleep(0)
    yield made
    made.following.stop()
    await task


async def test_the_slowest_group_counts_and_only_of_this_node_and_run(scene: Scene) -> None:
    assert scene.following.read(header(7)) == 7, "nobody heard of is nobody behind"
    await scene.report(5)
    await scene.reads(5)
    await scene.report(2, group="other")
    await scene.reads(2)
    await scene.report(1, group="third", node="m")
    await scene.report(6, group="other")
    await scene.reads(5)
    assert scene.following.read(header(0, "new")) == -1, "they are at an older run's frames still"


async def test_what_may_be_an_alert_is_marked_and_nothing_of_other_nodes(scene: Scene) -> None:
    await scene.report(1, node="m", calls=(9,))
    await scene.report(1, calls=(5, (1 << 64) - 1))
    bad = msgspec.msgpack.encode(["n", "g", "b", "r", 2, [-1]])
    await scene.bus.publish(PROGRESS, [Record(b"n/g", bad)])
    await scene.report(3)
    await scene.reads(3)
    assert scene.called == [5, (1 << 64) - 1]


async def test_who_is_silent_for_long_is_not_followed(scene: Scene) -> None:
    await scene.report(5)
    await scene.reads(5)
    scene.now += FORGOTTEN + 1
    assert scene.following.read(header(7)) == 7
    await scene.report(6)
    await scene.reads(6)


async def test_less_is_named_while_they_are_behind_and_all_again_when_they_are_not(scene: Scene) -> None:
    steps: list[int] = []
    backlog = Backlog(scene.following.read, steps.append, lambda: scene.now)
    for number in range(8):
        backlog.published([Frame(header=header(number), occurrences=b"", definitions=b"")])
    await scene.report(0)
    await scene.reads(0)
    scene.now += LATE
    backlog.look()
    scene.now += STEP_SECONDS
    backlog.look()
    assert steps == [0, 1, 2]
    await scene.report(7)
    await scene.reads(7)
    for _ in range(2):
        scene.now += STEP_SECONDS
        backlog.look()
    assert steps[-1] == 0
