# SPDX-License-Identifier: Apache-2.0
"""One, two and three processors over the same frames: CPU per event, and how even their shares are.

All processors of a case are held to one core, the other is the broker's. Each case judges the same backlog (written while the
processors stand still) and, apart, frames at a pace, those of the nodes spread over it, as nodes that know nothing of each other
send them. With a backlog the processors run one after the other: two at once on one core cost each other its caches (1.15 to 1.25
times, at the same number of calls of functions), which is the machine's and not the program's. CPU of the processes alone, their start
and the first frames of each node left out. Neighbours: kafka_world.py.
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
PACE = 0.25
"""Seconds between the frames of a node: what it sends when it is busy."""


class Spent(NamedTuple):
    """Of one case: microseconds an event, frames of each processor, batches in all."""

    event: float
    frames: tuple[float, ...]
    batches: float


def run(scale: float) -> Result:
    """`scale` 1.0 takes seven minutes."""
    with broker() as (cluster, directory):
        return asyncio.run(_within(cluster, scale, directory))


async def _within(cluster: Any, scale: float, directory: Path) -> Result:
    async with asyncio.timeout(300 + 1500 * scale):
        return await _all(cluster, scale, directory)


async def _all(cluster: Any, scale: float, directory: Path) -> Result:
    rounds, each = (3, max(2, int(60 * scale))) if scale >= 0.1 else (1, 2)
    many = (1, 2, 3) if scale >= 0.1 else (1, 2)
    seen: dict[tuple[int, str], list[Spent]] = {}
    for _ in range(rounds):
        for count in many:
            for how, spent in (await _case(cluster, count, each, directory)).items():
                seen.setdefault((count, how), []).append(spent)
    events = rounds * each * NODES
    found: Result = {}
    for how, said in (
        ("backlog", "a backlog, one processor after the other"),
        ("paced", f"a frame of each every {PACE:g} s"),
    ):
        cost = {count: statistics.median(one.event for one in seen[count, how]) for count in many}
        about = f"{events} frames of {NODES} nodes over {PARTITIONS} partitions, {said}; median of {rounds}, one core for all processors; CPU"
        for count in many:
            found[f"kafka_processors_{count}_{how}_event_cpu"] = figure(cost[count], "us/event", events, about)
        for count in many[1:]:
            # Of each round: the machine is not the same for as long as all of them take.
            ratios = [one.event / alone.event for one, alone in zip(seen[count, how], seen[1, how], strict=True)]
            found[f"kafka_processors_{count}_to_1_{how}"] = figure(statistics.median(ratios), "times", events, about)
            batches = [sum(one.batches for one in seen[number, how]) for number in (count, 1)]
            found[f"kafka_processors_{count}_to_1_{how}_batches"] = figure(
                batches[0] / batches[1], "times", events, f"batches taken; {about}"
            )
    for count in many[1:]:
        shares = [one.frames for how in ("backlog", "paced") for one in seen[count, how]]
        found[f"kafka_shares_{count}"] = figure(
            max(max(one) / (sum(one) / len(one)) for one in shares), "times", events,
            f"frames of the busiest of {count} processors to an even share, {NODES} nodes even over {PARTITIONS} partitions; the worst case",
        )  # fmt: skip
    return found


async def _case(cluster: Any, many: int, each: int, directory: Path) -> dict[str, Spent]:
    bus = await world(cluster)
    nodes = spread(NODES)
    await known(bus, nodes)
    _, whole = recorded(nodes[0])
    number = 0

    def row() -> list[Record]:
        nonlocal number
        number += 1
        return [numbered(whole, number - 1, node) for node in nodes]

    roles = [processor(bus.settings, directory, cores="0") for _ in range(many)]
    if (pid := cluster.nodes[1].process.pid) and (os.cpu_count() or 1) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {1})
    try:
        await shared(roles)
        for _ in range(2):
            await put(bus, EVENTS_RAW, row())
        await judged(bus)
        found = {}
        for how in ("backlog", "paced"):
            counted = await _counted(roles)
            if how == "backlog":
                for one in roles:
                    os.kill(one.pid, signal.SIGSTOP)
                for _ in range(each):
                    await put(bus, EVENTS_RAW, row())
            # Questions for metrics cost their processes: asked before the first look at CPU and after the last.
            spent = -sum(one.cpu() for one in roles)
            if how == "backlog":
                await _in_turn(bus, roles)
            else:
                began = time.monotonic()
                for index in range(each):
                    for turn, record in enumerate(row()):
                        await asyncio.sleep(max(0.0, began + (index + turn / NODES) * PACE - time.monotonic()))
                        await put(bus, EVENTS_RAW, [record])
            await judged(bus)
            spent += sum(one.cpu() for one in roles)
            grown = [
                (late[0] - early[0], late[1] - early[1])
                for early, late in zip(counted, await _counted(roles), strict=True)
            ]
            found[how] = Spent(
                spent * 1e6 / (each * NODES * whole.header.events),
                tuple(one[0] for one in grown), sum(one[1] for one in grown),
            )  # fmt: skip
        return found
    finally:
        for one in roles:
            os.kill(one.pid, signal.SIGCONT)
        for one in roles:
            one.end()
        await bus.close()


async def _in_turn(bus: KafkaBus, roles: list[Role]) -> None:
    """Let each of the stopped `roles` judge its even share of the backlog, the others standing still; in the end all run."""
    whole = (await bus.lag("processors"))[EVENTS_RAW.name]
    for number, one in enumerate(roles, 1):
        os.kill(one.pid, signal.SIGCONT)
        while (await bus.lag("processors"))[EVENTS_RAW.name] > whole - whole * number // len(roles):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        os.kill(one.pid, signal.SIGSTOP)
    for one in roles:
        os.kill(one.pid, signal.SIGCONT)


async def _counted(roles: list[Role]) -> list[tuple[float, float]]:
    """(records, batches) of each."""
    return [
        (
            await asyncio.to_thread(one.metric, "hauberk_pump_records_total"),
            await asyncio.to_thread(one.metric, "hauberk_pump_batches_total"),
        )
        for one in roles
    ]
