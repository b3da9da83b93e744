# SPDX-License-Identifier: Apache-2.0
"""The embedded bus: throughput by record size, latency from publish to take, in one process and across two.

Each figure is taken on a log in a temporary directory of the machine's own disk. Neighbour: bus/embedded/bus.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from typing import Any

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import ALERTS, EVENTS_RAW, Topic

Result = dict[str, dict[str, Any]]

# Writes the monotonic clock into each record: CLOCK_MONOTONIC is one clock for all processes of a machine.
_PUBLISHER = """
import asyncio, sys, time
from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import BY_NAME

async def main(directory, topic, count, size):
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory))
    tail = b" " + b"x" * size
    for _ in range(count):
        await asyncio.sleep(0.005)
        await bus.publish(BY_NAME[topic], [Record(b"k", b"%d" % time.monotonic_ns() + tail)])
    await bus.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about fifteen seconds."""
    result: Result = {}
    for size, total in ((1024, 64 << 20), (64 << 10, 256 << 20), (512 << 10, 256 << 20)):
        count = max(64, int(total * scale) // size)
        result |= asyncio.run(_throughput(size, count))
    for topic in (EVENTS_RAW, ALERTS):
        result |= asyncio.run(_hop(topic, max(100, int(1000 * scale)), busy=False))
        result |= asyncio.run(_across(topic, max(100, int(600 * scale))))
    result |= asyncio.run(_hop(EVENTS_RAW, max(50, int(300 * scale)), busy=True))
    result |= _memory()
    return result


async def _throughput(size: int, count: int) -> Result:
    batch = max(1, min(500, (1 << 20) // size))
    name = f"{size // 1024}k"
    payload = b"x" * size
    with tempfile.TemporaryDirectory() as directory:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory, retention_bytes=4 << 30))
        started = time.perf_counter()
        for _ in range(count // batch):
            await bus.publish(EVENTS_RAW, [Record(b"node", payload)] * batch)
        written = count // batch * batch
        publish = time.perf_counter() - started
        started = time.perf_counter()
        async with bus.subscribe([EVENTS_RAW], "bench") as subscription:
            taken = 0
            while taken < written:
                taken += len(await subscription.take(1000, 1.0))
                await subscription.commit()
        consume = time.perf_counter() - started
        await bus.close()
    how = f"events.raw, batches of {batch}, one after the other, no fsync per commit"
    return {
        f"bus_publish_{name}": _figure(written / publish, "records/s", written, how),
        f"bus_publish_{name}_mb": _figure(written * size / publish / 1e6, "MB/s", written, how),
        f"bus_consume_{name}": _figure(
            written / consume, "records/s", taken, "cold reader, from the log, commit per take"
        ),
        f"bus_consume_{name}_mb": _figure(written * size / consume / 1e6, "MB/s", taken, "the same in bytes"),
    }


async def _hop(topic: Topic, count: int, *, busy: bool) -> Result:
    size = 100_000 if topic is EVENTS_RAW else 1024
    waits: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory))

        async def publish() -> None:
            for _ in range(count):
                await asyncio.sleep(0.002)
                await bus.publish(topic, [Record(b"k", b"%d " % time.perf_counter_ns() + b"x" * size)])

        async def compute() -> None:
            # A stage that judges: 5 ms of pure Python at a time, half of the core.
            while True:
                until = time.perf_counter() + 0.005
                while time.perf_counter() < until:
                    sum(range(200))
                await asyncio.sleep(0.005)

        async with bus.subscribe([topic], "bench") as subscription:
            working = asyncio.create_task(compute()) if busy else None
            publishing = asyncio.create_task(publish())
            while len(waits) < count:
                for delivery in await subscription.take(100, 1.0):
                    assert delivery.record.value is not None
                    waits.append(time.perf_counter_ns() - int(delivery.record.value.split(b" ", 1)[0]))
            await publishing
            if working is not None:
                working.cancel()
        await bus.close()
    label = "hop_busy" if busy else "hop"
    how = f"publish to take, one process, {size} bytes every 2 ms"
    if busy:
        how += ", while the loop computes 5 ms of every 10"
    return _quantiles(f"bus_{label}_{topic.name}", waits, how)


async def _across(topic: Topic, count: int) -> Result:
    waits: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory))
        async with bus.subscribe([topic], "bench") as subscription:
            process = subprocess.Popen([sys.executable, "-c", _PUBLISHER, directory, topic.name, str(count), "1024"])  # noqa: ASYNC220
            while len(waits) < count:
                for delivery in await subscription.take(100, 1.0):
                    assert delivery.record.value is not None
                    waits.append(time.monotonic_ns() - int(delivery.record.value.split(b" ", 1)[0]))
            await asyncio.to_thread(process.wait)
        await bus.close()
    return _quantiles(f"bus_across_{topic.name}", waits, "publish in one process to take in another, 1 KB every 5 ms")


def _memory() -> Result:
    """What importing and opening the bus adds to a bare interpreter with asyncio and msgspec."""
    program = """
import asyncio, os, tempfile
import msgspec
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = rss()
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.contract import Record
from schemas.topics import TOPICS
imported = rss()
async def main():
    with tempfile.TemporaryDirectory() as directory:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory))
        async with bus.subscribe(TOPICS, "g") as subscription:
            for _ in range(20):
                for topic in TOPICS:
                    await bus.publish(topic, [Record(b"k", b"x" * 1000)])
                while await subscription.take(1000, 0.0):
                    pass
                await subscription.commit()
            print(imported - before, rss() - before)
        await bus.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported, opened = map(int, done.stdout.split())
    return {
        "bus_rss_import": _figure(imported / 1e6, "MB", 1, "bus.embedded.bus on top of asyncio and msgspec"),
        "bus_rss_open": _figure(opened / 1e6, "MB", 1, "the same with all topics open, written and read"),
    }


def _quantiles(name: str, waits: list[int], how: str) -> Result:
    waits = sorted(waits)
    return {
        f"{name}_p50": _figure(waits[len(waits) // 2] / 1e6, "ms", len(waits), how),
        f"{name}_p99": _figure(waits[len(waits) * 99 // 100] / 1e6, "ms", len(waits), how),
    }


def _figure(value: float, unit: str, count: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": count, "how": how}


if __name__ == "__main__":
    for name, figure in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{name:32} {figure['value']:>12,.3f} {figure['unit']:10} {figure['how']}")
