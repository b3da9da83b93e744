# SPDX-License-Identifier: Apache-2.0
"""From an open() to its alert in another group's reader, over Kafka: a real `hauberk node`, a broker, a real processor, a reader.

The clock starts before the call in the process that makes it and ends when the reader has the alert in hand (CLOCK_REALTIME). Opens
come one at a time at random distances, so that no timer of the pipeline is met in step. The broker and all processes share the
machine. Needs root, BPF, BCC and cgroup v2. Neighbours: bench_latency.py (the same without a broker), kafka_world.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from alerting import policy
from bench_latency import OPENER
from kafka_world import Result, broker, figure, processor, put, quantile, shared, world
from live import Live, missing, running

from bus.contract import Subscription
from bus.kafka.bus import KafkaBus
from schemas.topics import ALERTS, POLICIES

SECONDS = 60.0
"""Longest wait for something to be told."""


class Told(msgspec.Struct):
    """Of an alert, what is looked at."""

    Resource: str = ""


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes a minute."""
    if lacks := missing():
        print(f"bench_kafka_alert: {lacks}", file=sys.stderr)
        return {}
    with broker() as (cluster, directory):
        return asyncio.run(_within(cluster, max(8, int(400 * scale)), directory))


async def _within(cluster: Any, count: int, directory: Path) -> Result:
    bus = await world(cluster)
    part = None
    try:
        part = processor(bus.settings, directory)
        await shared([part])
        far = json.dumps(msgspec.to_builtins(bus.settings))
        with running("node", sets=(f"bus={far}", "node=bench")) as node:
            return await _opens(bus, node, count, directory)
    finally:
        if part is not None:
            part.end()
        await bus.close()


async def _opens(bus: KafkaBus, node: Live, count: int, directory: Path) -> Result:
    watched = directory / "watched"
    for name in ("same", "fresh"):
        (watched / name).mkdir(parents=True)
        for number in range(count):
            (watched / name / str(number)).touch()
    spec = f"file: {{matchDirectories: [{{dir: {watched}/, recursive: true}}]}}, action: Audit"
    await put(bus, POLICIES, [policy("watch", spec)])
    found: Result = {}
    async with bus.subscribe((ALERTS,), "bench", "earliest") as reader:
        await _first(reader, node, watched)
        for mode, what in (("same", "judged before"), ("fresh", "nobody has seen yet")):
            times = await _series(reader, node, watched / mode, count, mode)
            how = (
                f"a behaviour {what}: before open() to its alert taken by another group; node, broker, processor, broker, reader on "
                f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f}"
            )
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                value = quantile(times, share)
                found[f"kafka_syscall_to_alert_{mode}_{name}"] = figure(value, "ms", len(times), how)
    return found


async def _first(reader: Subscription, node: Live, watched: Path) -> None:
    """The policy is in force once an open is told."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        child = node.box.popen(OPENER, str(watched / "same"), "1", "same", "0", stdin=subprocess.PIPE)
        await asyncio.to_thread(child.communicate, "\n")
        if await _took(reader, str(watched), 2.0):
            while await reader.take(1000, 0.5):
                pass
            return
    raise TimeoutError(f"expected a first alert within {SECONDS:g} s, got none")


async def _took(reader: Subscription, below: str, wait: float) -> list[tuple[int, str]]:
    """(Unix ns at which it was in hand, what was opened) of the alerts that came."""
    batch = await reader.take(1000, wait)
    at = time.time_ns()
    told = [msgspec.json.decode(one.record.value or b"{}", type=Told) for one in batch]
    await reader.commit(batch)
    return [(at, one.Resource) for one in told if one.Resource.startswith(below)]


async def _series(reader: Subscription, node: Live, watched: Path, count: int, mode: str) -> list[float]:
    """Milliseconds of each open; alerts of one path come in order."""
    child = node.box.popen(OPENER, str(watched), str(count), mode, str(count), stdin=subprocess.PIPE)
    opening = asyncio.create_task(asyncio.to_thread(child.communicate, "\n"))
    came: dict[str, list[int]] = {}
    left, deadline = count, time.monotonic() + SECONDS + count * 0.1
    while left and time.monotonic() < deadline:
        for at, path in await _took(reader, f"{watched}/", 1.0):
            came.setdefault(path, []).append(at)
            left -= 1
    out, _ = await opening
    made: dict[str, list[int]] = {}
    for line in out.splitlines():
        at, path = line.split(" ", 1)
        made.setdefault(path, []).append(int(at))
    if {path: len(times) for path, times in made.items()} != {path: len(times) for path, times in came.items()}:
        raise ValueError(f"expected an alert for each of {count} opens, {left} did not come")
    return [(b - a) / 1e6 for path, opened in made.items() for a, b in zip(opened, came[path], strict=True)]
