# SPDX-License-Identifier: Apache-2.0
"""How long alerts pause when a processor ends, is killed, or the broker is killed and started again; and that none is lost.

Six nodes, one in each partition, a frame of each every quarter of a second with one alert in it; two processors as processes, a
reader of the alerts here. The pause of a node is the longest time between two of its alerts from the event on, less the pace.
Waiting for a killed member is `bus.session_seconds`, 6 as by default. Neighbours: bench_shares.py, kafka_world.py.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from kafka_world import (
    PARTITIONS,
    Result,
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

from bus.kafka.bus import KafkaBus
from schemas.topics import ALERTS, EVENTS_RAW

PACE = 0.25
BEFORE, AFTER = 4.0, 25.0
"""Seconds of load before the event and after it: longer than a session and a rebalance."""


class Told(msgspec.Struct):
    HostName: str = ""


class Load:
    """Frames out, alerts in: `sent` frames of each node, `heard` times of the alerts of each."""

    def __init__(self, bus: KafkaBus) -> None:
        self.sent = 0
        self.heard: dict[str, list[float]] = {}
        self._bus = bus
        self._nodes = spread(PARTITIONS)
        self._whole = recorded(self._nodes[0])[1]

    async def start(self) -> None:
        await known(self._bus, self._nodes)

    async def send(self, until: Callable[[], bool]) -> None:
        began, first = time.monotonic(), self.sent
        while not until():
            await asyncio.sleep(max(0.0, began + (self.sent - first) * PACE - time.monotonic()))
            await put(self._bus, EVENTS_RAW, [numbered(self._whole, self.sent, node) for node in self._nodes])
            self.sent += 1

    async def hear(self) -> None:
        async with self._bus.subscribe((ALERTS,), None, "earliest") as reader:
            while True:
                for one in await reader.take(1000, 1.0):
                    node = msgspec.json.decode(one.record.value or b"{}", type=Told).HostName
                    self.heard.setdefault(node, []).append(time.monotonic())

    def pause(self, since: float) -> float:
        """Seconds."""
        longest = 0.0
        for times in self.heard.values():
            later = [max(since, times[max(0, len([one for one in times if one < since]) - 1)])]
            later += [one for one in times if one >= since]
            longest = max([longest, *(b - a - PACE for a, b in itertools.pairwise(later))])
        return longest

    def missing(self) -> int:
        """Alerts that did not come: one of each frame."""
        return sum(max(0, self.sent - len(self.heard.get(node, []))) for node in self._nodes)


def run(scale: float) -> Result:
    """`scale` 1.0 takes three minutes; a small one does the first case alone."""
    with broker() as (cluster, directory):
        return asyncio.run(_within(cluster, scale, directory))


async def _within(cluster: Any, scale: float, directory: Path) -> Result:
    async with asyncio.timeout(400):
        found = await _case(cluster, directory, "processor_ended", signal.SIGTERM)
        if scale >= 0.1:
            found |= await _case(cluster, directory, "processor_killed", signal.SIGKILL)
            found |= await _case(cluster, directory, "broker_killed", None)
        return found


async def _case(cluster: Any, directory: Path, name: str, number: signal.Signals | None) -> Result:
    bus = await world(cluster, session_seconds=6.0)
    load = Load(bus)
    await load.start()
    roles = [processor(bus.settings, directory) for _ in range(2)]
    hearing = asyncio.create_task(load.hear())
    try:
        await shared(roles)
        until = time.monotonic() + BEFORE
        await load.send(lambda: time.monotonic() >= until)
        await judged(bus)
        began = time.monotonic()
        after = AFTER if number is not signal.SIGTERM else 5.0
        sending = asyncio.create_task(load.send(lambda: time.monotonic() >= began + after))
        await asyncio.sleep(PACE * 4)
        began = since = time.monotonic()
        if number is not None:
            roles[0].process.send_signal(number)
        else:
            await asyncio.to_thread(cluster.kill)
            await asyncio.to_thread(cluster.start)
            since = time.monotonic()
        await sending
        await judged(bus)
        deadline = time.monotonic() + 60
        while load.missing() and time.monotonic() < deadline:  # noqa: ASYNC110 - another task fills it
            await asyncio.sleep(0.1)
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        for one in roles:
            one.end()
        await bus.close()
    frames = load.sent * PARTITIONS
    what = {
        "processor_ended": "one of two processors gets SIGTERM", "processor_killed": "one of two processors gets SIGKILL",
        "broker_killed": "the only broker gets SIGKILL and is started again; from the moment it answers",
    }[name]  # fmt: skip
    how = f"{what}; longest pause of a node's alerts, a frame every {PACE:g} s of {PARTITIONS} nodes"
    return {
        f"kafka_{name}_pause": figure(max(load.pause(since), 0.001), "s", frames, how),
        f"kafka_{name}_lost": figure(load.missing(), "alerts", frames, f"{what}; frames without their alert"),
    }
