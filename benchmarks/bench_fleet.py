# SPDX-License-Identifier: Apache-2.0
"""Stages over a real Kafka: what a frame costs each of them, how long an alert takes, and a fleet: its load, its memory, its plans.

The broker is the tests' own, on loopback and on the same cores: CPU is what counts, wall times are those of a crowded machine.
Neighbours: kafka_world.py (frames, topics, processes), bench_kafka.py (the client alone), bench_shares.py (processors together).
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

import msgspec
from kafka_world import (
    KEY,
    PARTITIONS,
    POLICY,
    Cluster,
    Result,
    Role,
    broker,
    figure,
    judged,
    known,
    numbered,
    processor,
    put,
    quantile,
    recorded,
    shared,
    world,
)

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from hauberk import stages
from hauberk.sections import Configuration
from schemas import frame as frames
from schemas.enforcement import Receipt, decode_plan, encode
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, EVENTS_RAW, POLICIES

NODES = 50
RATE = 300
"""Events a second of each node while plans are timed: what two shared cores carry beside everything else."""
RATES = (300, 500, 1000, 2000)
"""Events a second of each node that are tried; the last is what the sizing assumes."""
UNTHROTTLED = msgspec.convert({"processor": {"throttle": {"max_alerts_per_second": 0}}}, Configuration)


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes three minutes."""
    with broker() as (cluster, directory):
        return asyncio.run(_within(cluster, scale, directory))


async def _within(cluster: Cluster, scale: float, directory: Path) -> Result:
    # Whatever waits for another group's offsets must not wait for ever.
    async with asyncio.timeout(240 + 600 * scale):
        found = await _costs(cluster, max(20, int(2000 * scale)))
        found |= await _latency(cluster, max(10, int(200 * scale)))
        return found | await _fleet(
            cluster, max(2, int(NODES * min(1.0, scale * 10))), max(2, int(20 * scale)), scale, directory
        )


async def _costs(cluster: Cluster, count: int) -> Result:
    """CPU of each stage by itself, one after the other in this process, and the broker's beside it."""
    bus = await world(cluster)
    one = cluster.nodes[1]
    _, whole = recorded("n0")
    events = whole.header.events
    await known(bus, [f"n{index}" for index in range(PARTITIONS)])
    records = [numbered(whole, index // PARTITIONS, f"n{index % PARTITIONS}") for index in range(count)]
    size = sum(record.size for record in records) / count
    there, here = one.cpu(), time.process_time()
    for start in range(0, count, PARTITIONS):
        await put(bus, EVENTS_RAW, records[start : start + PARTITIONS])
    node, brokered = time.process_time() - here, one.cpu() - there
    wire = _written(one.directory, EVENTS_RAW.named(bus.settings.prefix))
    part = stages.processor(bus, UNTHROTTLED)
    stop = asyncio.Event()
    there, here = one.cpu(), time.process_time()
    task = asyncio.create_task(part.stage(stop))
    await judged(bus)
    stop.set()
    await task
    judge, brokered = time.process_time() - here, brokered + one.cpu() - there
    sinks = stages.sinks(bus, msgspec.convert({"sinks": [{"type": "blackhole", "content": "alerts"}]}, Configuration))
    there, here = one.cpu(), time.process_time()
    stop = asyncio.Event()
    task = asyncio.create_task(sinks.stage(stop))
    alerts = sum((await bus.end(ALERTS)).values())
    while (await bus.lag("sink.blackhole")).get(ALERTS.name, 1):  # noqa: ASYNC110 - another group
        await asyncio.sleep(0.1)
    stop.set()
    await task
    sink, brokered = time.process_time() - here, brokered + one.cpu() - there
    await bus.close()
    how = f"{events} events and {size / 1000:.0f} kB a frame, {PARTITIONS} partitions, {alerts} alerts, zstd; CPU"
    made = {
        "kafka_node_frame_cpu": figure(node / count * 1e6, "us/frame", count, f"publish, {how}"),
        "kafka_node_event_cpu": figure(node / count / events * 1e6, "us/event", count, f"publish, {how}"),
        "kafka_processor_frame_cpu": figure(judge / count * 1e6, "us/frame", count, f"take, judge, publish; {how}, its start included"),
        "kafka_processor_event_cpu": figure(judge / count / events * 1e6, "us/event", count, f"take, judge, publish; {how}, its start included"),
        "kafka_broker_frame_cpu": figure(brokered / count * 1e6, "us/frame", count, f"the broker's for all of it; {how}"),
    }  # fmt: skip
    made["kafka_broker_event_cpu"] = figure(
        brokered / count / events * 1e6,
        "us/event",
        count,
        f"the broker's for all of it, with what its JVM compiles; {how}",
    )
    made["kafka_frame_event"] = figure(size / events, "bytes/event", count, f"as published, before compression; {how}")
    made["kafka_wire_event"] = figure(
        wire / count / events, "bytes/event", count, f"what the broker wrote of `events.raw`; {how}"
    )
    if alerts:
        made["kafka_sink_alert_cpu"] = figure(sink / alerts * 1e6, "us/alert", alerts, f"take, decode, batch; {how}")
    return made


async def _latency(cluster: Cluster, count: int) -> Result:
    """From a frame in hand to its alert in a reader's: node, broker, processor, broker, sink; all stages in this process."""
    bus = await world(cluster)
    _, whole = recorded("n0")
    await known(bus, ["n0"])
    part = stages.processor(bus, UNTHROTTLED)
    stop = asyncio.Event()
    task = asyncio.create_task(part.stage(stop))
    times = []
    async with bus.subscribe((ALERTS,), "bench", "earliest") as reader:
        await part.engine.facts.ready.wait()
        for number in range(count + 5):
            began = time.monotonic()
            await put(bus, EVENTS_RAW, [numbered(whole, number, "n0")])
            while not (batch := await reader.take(1000, 5.0)):
                continue
            if number >= 5:  # the first wait for groups to form
                times.append(time.monotonic() - began)
            await reader.commit(batch)
            while await reader.take(1000, 0.02):
                pass
    stop.set()
    await task
    await bus.close()
    how = "a frame published to its first alert taken by another group, two hops; one process, broker on the same cores"
    return {
        "kafka_frame_to_alert_p50": figure(statistics.median(times) * 1000, "ms", count, how),
        "kafka_frame_to_alert_p99": figure(quantile(times, 0.99) * 1000, "ms", count, how),
    }


def _written(directory: Path, topic: str) -> int:
    """Bytes of a topic's log on the broker's disk: batches lie there as they travelled."""
    return sum(one.stat().st_size for one in directory.glob(f"data/{topic}-*/*.log"))


class _Answers:
    """Nodes without a kernel: each plan is answered by a receipt, and each receipt is heard. Other tasks of this process."""

    def __init__(self, bus: KafkaBus) -> None:
        self.heard: dict[str, float] = {}
        self._bus = bus
        self._tasks = [asyncio.create_task(self._answer()), asyncio.create_task(self._hear())]

    async def _answer(self) -> None:
        async with self._bus.subscribe((ENFORCEMENT_DESIRED,), None, "latest") as reader:
            while True:
                plans = [decode_plan(one.record.value or b"") for one in await reader.take(1000, 5.0)]
                receipts = [
                    Receipt(node=one.node, generation=one.generation, digest=one.digest, applied_ns=time.time_ns(), took_ms=0.0,
                            backends=(), scopes=0, rules=0)
                    for one in plans
                ]  # fmt: skip
                if receipts:
                    records = [Record(one.node.encode(), encode(one)) for one in receipts]
                    await put(self._bus, ENFORCEMENT_STATUS, records)

    async def _hear(self) -> None:
        async with self._bus.subscribe((ENFORCEMENT_STATUS,), None, "latest") as reader:
            while True:
                for one in await reader.take(1000, 5.0):
                    self.heard.setdefault(one.record.key.decode(), time.monotonic())

    async def close(self) -> None:
        for one in self._tasks:
            one.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Load:
    """Frames of all nodes at `rate` events a second of each, until closed; the nodes' frames are spread over the time between two."""

    def __init__(self, bus: KafkaBus, nodes: list[str], whole: frames.Frame, rate: float, first: int) -> None:
        self.number = first
        self.frames = 0
        self.began = time.monotonic()
        self._bus, self._nodes, self._whole = bus, nodes, whole
        self._every = whole.header.events / rate
        self._first = first
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        step = self._every / 10
        while True:
            for part in range(10):
                records = [numbered(self._whole, self.number, node) for node in self._nodes[part::10]]
                if records:
                    await put(self._bus, EVENTS_RAW, records)
                    self.frames += len(records)
                due = self.began + (self.number * 10 + part + 1) * step - self._first * 10 * step
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.number += 1

    @property
    def rate(self) -> float:
        """Events a second of all nodes, as they were really sent."""
        return self.frames * self._whole.header.events / (time.monotonic() - self.began)

    async def close(self) -> int:
        """The next number."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.number + 1


async def _fleet(cluster: Cluster, nodes: int, rounds: int, scale: float, directory: Path) -> Result:
    """A policy published until every node has answered the plan made of it, while the nodes send frames; planner and processors are
    processes of their own."""
    bus = await world(cluster)
    names = [f"n{index}" for index in range(nodes)]
    await known(bus, names)
    _, whole = recorded(names[0])
    roles = [
        Role(["planner"], bus.settings, directory / "planner"),
        *(processor(bus.settings, directory) for _ in range(2)),
    ]
    answers = _Answers(bus)
    load = None
    times: list[float] = []
    slowest: list[float] = []
    try:
        await shared(roles[1:])
        async with asyncio.timeout(120):
            while len(answers.heard) < nodes:
                await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
                await asyncio.sleep(0.5)
        load = _Load(bus, names, whole, RATE, 0)
        await asyncio.sleep(whole.header.events / RATE)
        for number in range(rounds):
            answers.heard.clear()
            changed = POLICY | {"spec": POLICY["spec"] | {"severity": 1 + number % 9}}
            began = time.monotonic()
            await put(bus, POLICIES, [Record(KEY, json.dumps(changed).encode())])
            while len(answers.heard) < nodes:  # noqa: ASYNC110 - another task fills it
                await asyncio.sleep(0.005)
            times += [one - began for one in answers.heard.values()]
            slowest.append(max(answers.heard.values()) - began)
        offered = load.rate
        first = await load.close()
        await judged(bus)
        how = (
            f"{nodes} nodes with {RATE} events/s each ({offered:,.0f} in all), planner and two processors as processes, "
            f"nodes answer without a kernel; load average {os.getloadavg()[0]:.1f}"
        )
        found = {
            "kafka_policy_to_receipt_p50": figure(statistics.median(times) * 1000, "ms", len(times), f"policy published to receipt heard; {how}"),
            "kafka_policy_to_receipt_p99": figure(quantile(times, 0.99) * 1000, "ms", len(times), f"policy published to receipt heard; {how}"),
            "kafka_policy_to_all_p50": figure(statistics.median(slowest) * 1000, "ms", len(slowest), f"the last node; {how}"),
            "kafka_fleet_planner_rss": figure(roles[0].memory(), "MB", nodes, f"of the planner, resident; {how}"),
            "kafka_fleet_processor_rss": figure(max(one.memory() for one in roles[1:]), "MB", nodes, f"of the larger processor, resident; {how}"),
        }  # fmt: skip
        if scale >= 0.1:
            found |= await _carried(bus, names, whole, roles[1:], first)
        return found
    finally:
        if load is not None:
            await load.close()
        await answers.close()
        for one in roles:
            one.end()
        await bus.close()


async def _carried(bus: KafkaBus, names: list[str], whole: frames.Frame, processors: list[Role], first: int) -> Result:
    """Events a second of all nodes at the highest rate at which the processors are less than a second behind after ten. Behind is
    what they have not taken: offsets are committed when the counts of a second are whole, which is seconds later at any rate."""
    best, said = 0.0, "none"
    for rate in RATES:
        spent, had = -sum(one.cpu() for one in processors), await _taken(processors)
        load = _Load(bus, names, whole, rate, first)
        await asyncio.sleep(10)
        sent, offered = load.frames, load.rate
        behind = int(sent - (await _taken(processors) - had)) * whole.header.events
        first = await load.close()
        await judged(bus)
        spent += sum(one.cpu() for one in processors)
        if behind > offered or offered < 0.9 * rate * len(names):
            said += f"; at {rate} a node: {offered:,.0f}/s sent, {behind:,} events behind"
            break
        best, said = offered, f"at {rate} a node, {spent:.1f} s of two processors' CPU in ten"
    if not best:
        # A machine that others crowd: nothing was shown, which is no figure.
        print(f"kafka_fleet_carried: none of the rates was carried: {said}", file=sys.stderr)
        return {}
    how = f"{len(names)} nodes, generator, broker and two processors on {os.cpu_count()} cores; {said}; load average {os.getloadavg()[0]:.1f}"
    return {"kafka_fleet_carried": figure(best, "events/s", len(names), how)}


async def _taken(processors: list[Role]) -> float:
    """Frames that they have read."""
    return sum([await asyncio.to_thread(one.metric, "hauberk_pump_records_total") for one in processors])
