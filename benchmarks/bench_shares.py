# SPDX-License-Identifier: Apache-2.0
"""One, two and three processors over the same frames: CPU per event, and how even their shares are.

Three worlds of topics on one broker, with one, two and three processors, all there from the beginning to the end, so that whatever the
machine does at a moment it does to each. All processors are held to one core, the other is the broker's. Each round judges a backlog
(written while all processors stand still) and frames at a pace, those of the nodes spread over it, as nodes that know nothing of each other
send them. A backlog is judged in turns of a third of a second of CPU with the other five processors stopped: two at once on one core cost each
other its caches, which is the machine's and not the program's. CPU of the processes alone, their start and the first frames of each node left
out; `idle` is what a processor takes that has nothing to do. Neighbours: kafka_world.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from kafka_world import (
    PARTITIONS,
    Result,
    Role,
    broker,
    figure,
    judged,
    known,
    numbered,
    processor,
    put,
    recorded,
    shared,
    spread,
    world,
)

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from schemas.topics import EVENTS_RAW

NODES = 24
PACE = 0.5
"""Seconds between the frames of a node in each world: three of them make what a core of processors carries without a queue."""
TURN = 0.3
"""Seconds of CPU that a processor has with a backlog before the next one has its turn."""
IDLE = 20.0
"""Seconds of rest."""


class Spent(NamedTuple):
    """Of one case: microseconds an event, frames of each processor, batches in all."""

    event: float
    frames: tuple[float, ...]
    batches: float


class World:
    """Topics of its own and `count` processors, which share them."""

    def __init__(self, bus: KafkaBus, roles: list[Role], nodes: list[str]) -> None:
        self.bus, self.roles, self._nodes = bus, roles, nodes
        self._whole = recorded(nodes[0])[1]
        self.events = self._whole.header.events
        self._number = 0

    @classmethod
    async def open(cls, cluster: Any, count: int, directory: Path) -> World:
        bus = await world(cluster)
        nodes = spread(NODES)
        await known(bus, nodes)
        roles = [processor(bus.settings, directory, cores="0") for _ in range(count)]
        await shared(roles)
        return cls(bus, roles, nodes)

    async def close(self) -> None:
        for one in self.roles:
            os.kill(one.pid, signal.SIGCONT)
        for one in self.roles:
            one.end()
        await self.bus.close()

    def row(self) -> list[Record]:
        """A frame of each node."""
        self._number += 1
        # The first frame of a node is new to its processor, the others hold what it has judged.
        return [numbered(self._whole, self._number - 1, node, patient=self._number > 1) for node in self._nodes]

    def cpu(self) -> float:
        return sum(one.cpu() for one in self.roles)

    async def counted(self) -> list[tuple[float, float]]:
        """(records, batches) of each."""
        return [
            (
                await asyncio.to_thread(one.metric, "hauberk_pump_records_total"),
                await asyncio.to_thread(one.metric, "hauberk_pump_batches_total"),
            )
            for one in self.roles
        ]


def run(scale: float) -> Result:
    """`scale` 1.0 takes eight minutes."""
    with broker() as (cluster, directory):
        return asyncio.run(_within(cluster, scale, directory))


async def _within(cluster: Any, scale: float, directory: Path) -> Result:
    async with asyncio.timeout(300 + 1500 * scale):
        worlds: list[World] = []
        try:
            for count in (1, 2, 3) if scale >= 0.1 else (1, 2):
                worlds.append(await World.open(cluster, count, directory))  # noqa: PERF401 - closed when a later one fails
            return await _measured(cluster, scale, worlds)
        finally:
            for one in worlds:
                await one.close()


async def _measured(cluster: Any, scale: float, worlds: list[World]) -> Result:
    rounds, each = (5, max(2, int(40 * scale))) if scale >= 0.1 else (1, 2)
    if (pid := cluster.nodes[1].process.pid) and (os.cpu_count() or 1) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {1})
    for one in worlds:
        for _ in range(2):
            await put(one.bus, EVENTS_RAW, one.row())
    for one in worlds:
        await judged(one.bus)
    seen: dict[tuple[int, str], list[Spent]] = {}
    for _ in range(rounds):
        for how in (_backlog, _paced):
            for one, spent in zip(worlds, await _case(worlds, how, each), strict=True):
                seen.setdefault((len(one.roles), how.__name__[1:]), []).append(spent)
    idle = -sum(one.cpu() for one in worlds)
    seconds = IDLE if scale >= 0.1 else 2.0
    await asyncio.sleep(seconds)
    idle = (idle + sum(one.cpu() for one in worlds)) / sum(len(one.roles) for one in worlds)
    many = "processors of all cases with nothing to do, the mean of one"
    return _figures(seen, rounds * each * NODES) | {
        "kafka_processor_idle_cpu": figure(
            idle / seconds * 100, "% of a core", sum(len(one.roles) for one in worlds), many
        )
    }


def _figures(seen: dict[tuple[int, str], list[Spent]], frames: int) -> Result:
    found: Result = {}
    many = sorted({count for count, _ in seen})
    for how, said in (
        ("backlog", f"a backlog, in turns of {TURN:g} s"), ("paced", f"a frame of each every {PACE:g} s")
    ):  # fmt: skip
        rounds = len(seen[1, how])
        about = f"{frames} frames of {NODES} nodes over {PARTITIONS} partitions, {said}; median of {rounds}, one core for all processors, load average {os.getloadavg()[0]:.1f}; CPU"
        for count in many:
            cost = statistics.median(one.event for one in seen[count, how])
            found[f"kafka_processors_{count}_{how}_event_cpu"] = figure(cost, "us/event", frames, about)
        for count in many[1:]:
            # Of each round: the machine is not the same for as long as all of them take.
            ratios = [one.event / alone.event for one, alone in zip(seen[count, how], seen[1, how], strict=True)]
            found[f"kafka_processors_{count}_to_1_{how}"] = figure(statistics.median(ratios), "times", frames, about)
            batches = [sum(one.batches for one in seen[number, how]) for number in (count, 1)]
            found[f"kafka_processors_{count}_to_1_{how}_batches"] = figure(
                batches[0] / batches[1], "times", frames, f"batches taken; {about}"
            )
    for count in many[1:]:
        shares = [one.frames for how in ("backlog", "paced") for one in seen[count, how]]
        found[f"kafka_shares_{count}"] = figure(
            max(max(one) / (sum(one) / len(one)) for one in shares), "times", frames,
            f"frames of the busiest of {count} processors to an even share, {NODES} nodes even over {PARTITIONS} partitions; the worst case",
        )  # fmt: skip
    return found


async def _case(worlds: list[World], how: Any, each: int) -> list[Spent]:
    # Questions for metrics cost their processes: asked before the first look at CPU and after the last.
    counted = [await one.counted() for one in worlds]
    spent = [-one.cpu() for one in worlds]
    await how(worlds, each)
    spent = [before + one.cpu() for before, one in zip(spent, worlds, strict=True)]
    made = []
    for one, early, cpu in zip(worlds, counted, spent, strict=True):
        grown = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(early, await one.counted(), strict=True)]
        made.append(
            Spent(
                cpu * 1e6 / (each * NODES * one.events), tuple(found[0] for found in grown), sum(found[1] for found in grown)
            )
        )  # fmt: skip
    return made


async def _backlog(worlds: list[World], each: int) -> None:
    roles = [one for its in worlds for one in its.roles]
    for one in roles:
        os.kill(one.pid, signal.SIGSTOP)
    for its in worlds:
        for _ in range(each):
            await put(its.bus, EVENTS_RAW, its.row())
    left = list(roles)
    while left:
        for one in list(left):
            before, began = one.cpu(), time.monotonic()
            os.kill(one.pid, signal.SIGCONT)
            while (used := one.cpu() - before) < TURN and time.monotonic() - began < 6 * TURN:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            os.kill(one.pid, signal.SIGSTOP)
            if used < TURN / 6:
                left.remove(one)
    for one in roles:
        os.kill(one.pid, signal.SIGCONT)
    for its in worlds:
        await judged(its.bus)


async def _paced(worlds: list[World], each: int) -> None:
    began = time.monotonic()
    for index in range(each):
        rows = [its.row() for its in worlds]
        for turn in range(NODES):
            for number, its in enumerate(worlds):
                due = began + (index + (turn + number / len(worlds)) / NODES) * PACE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await put(its.bus, EVENTS_RAW, [rows[number][turn]])
    for its in worlds:
        await judged(its.bus)
