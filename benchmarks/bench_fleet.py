# SPDX-License-Identifier: Apache-2.0
"""Stages over a real Kafka: what a frame costs each of them, how long an alert takes, one processor against two, a fleet's plans.

Frames are those of the example recording, their rows put together to 601 events each (a third of a second of a node with 2,000
events a second), with every file and process of the host alerted on or none. The broker is the tests' own, on loopback and on the
same cores: CPU is what counts, wall times are those of a crowded machine. Neighbours: bench_kafka.py (the client alone).
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/kafka"))

from kafka_cluster import Cluster  # noqa: E402
from kafka_jars import NoKafka  # noqa: E402
from kafka_topics import create_topics  # noqa: E402

from bus.contract import Record  # noqa: E402
from bus.kafka.bus import KafkaBus  # noqa: E402
from bus.kafka.settings import KafkaSettings  # noqa: E402
from hauberk import stages  # noqa: E402
from hauberk.sections import Configuration  # noqa: E402
from schemas import frame as frames  # noqa: E402
from schemas import identity as identities  # noqa: E402
from schemas.enforcement import Receipt, decode_plan, encode  # noqa: E402
from schemas.errors import Temporary  # noqa: E402
from schemas.topics import (  # noqa: E402
    ALERTS,
    ENFORCEMENT_DESIRED,
    ENFORCEMENT_STATUS,
    EVENTS_RAW,
    INVENTORY,
    POLICIES,
    Topic,
)
from sensors.recordings.replay import Replay, ReplaySettings  # noqa: E402

Result = dict[str, dict[str, Any]]
PARTITIONS = 6
NODES = 50
POLICY = {
    "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": "bench"},
    "spec": {"nodeSelector": {"matchLabels": {}}, "severity": 5, "action": "Audit",
             "file": {"matchPaths": [{"path": "/etc/shadow"}]}},
}  # fmt: skip
KEY = b"KubeArmorHostPolicy//bench"
UNTHROTTLED = msgspec.convert({"processor": {"throttle": {"max_alerts_per_second": 0}}}, Configuration)
_PROCESSOR = "from hauberk.cli import main; import sys; sys.exit(main(['processor']))"


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes a minute."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            cluster = Cluster(Path(directory) / "kafka", heap="256m")
        except NoKafka as error:
            raise SystemExit(f"bench_fleet: no Kafka: {error}") from error
        try:
            cluster.start()
            return asyncio.run(_within(cluster, scale, Path(directory)))
        finally:
            cluster.close()


async def _within(cluster: Cluster, scale: float, directory: Path) -> Result:
    # Whatever waits for another group's offsets must not wait for ever.
    async with asyncio.timeout(240 + 600 * scale):
        return await _all(cluster, scale, directory)


async def _all(cluster: Cluster, scale: float, directory: Path) -> Result:
    found = await _costs(cluster, max(20, int(2000 * scale)))
    found |= await _latency(cluster, max(10, int(200 * scale)))
    found |= await _fleet(cluster, max(2, int(NODES * min(1.0, scale * 10))), max(2, int(20 * scale)))
    return found | await _shares(cluster, max(72, int(2400 * scale)), directory)


async def _world(cluster: Cluster) -> KafkaBus:
    prefix = f"b{uuid.uuid4().hex[:8]}."
    await create_topics(cluster.bootstrap, prefix, PARTITIONS)
    return await KafkaBus.open(
        KafkaSettings(
            bootstrap=cluster.bootstrap,
            prefix=prefix,
            publish_seconds=120.0,
            call_seconds=120.0,
            away_seconds=120.0,
            session_seconds=60.0,
        )
    )


def recorded(node: str) -> tuple[list[Record], frames.Frame]:
    """(identities, one frame of all rows) of the recording, as `node`'s."""
    path = str(ROOT / "examples/recordings/host.hbrk")
    source = Replay(ReplaySettings(path=path, speed=0, node=node), "bench")
    known: list[Record] = []
    parts: list[frames.Frame] = []
    while not source.finished:
        batch = source.drain()
        known += batch.inventory
        parts += batch.frames
    header = msgspec.structs.replace(parts[0].header, number=0, events=sum(one.header.events for one in parts), lost=())
    return known, frames.Frame(
        header=header, occurrences=b"".join(one.occurrences for one in parts),
        definitions=b"".join(one.definitions for one in parts), folded=b"".join(one.folded for one in parts),
    )  # fmt: skip


async def put(bus: KafkaBus, topic: Topic, records: list[Record]) -> None:
    """Publish, again when a topic that was just made has no leader yet."""
    while True:
        try:
            return await bus.publish(topic, records)
        except Temporary:
            await asyncio.sleep(0.1)


def numbered(whole: frames.Frame, number: int, node: str) -> Record:
    header = msgspec.structs.replace(whole.header, number=number, node=node)
    return Record(node.encode(), frames.encode(msgspec.structs.replace(whole, header=header)))


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 4), "unit": unit, "n": n, "how": how}


async def _judged(bus: KafkaBus) -> None:
    while (await bus.lag("processors")).get(EVENTS_RAW.name, 1):  # noqa: ASYNC110 - another group's offsets
        await asyncio.sleep(0.1)


async def _costs(cluster: Cluster, count: int) -> Result:
    """CPU of each stage by itself, one after the other in this process, and the broker's beside it."""
    bus = await _world(cluster)
    broker = cluster.nodes[1]
    known, whole = recorded("n0")
    events = whole.header.events
    await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
    for index in range(PARTITIONS):
        await put(bus, INVENTORY, recorded(f"n{index}")[0] if index else known)
    records = [numbered(whole, index // PARTITIONS, f"n{index % PARTITIONS}") for index in range(count)]
    size = sum(record.size for record in records) / count
    there, here = broker.cpu(), time.process_time()
    for start in range(0, count, PARTITIONS):
        await put(bus, EVENTS_RAW, records[start : start + PARTITIONS])
    node, brokered = time.process_time() - here, broker.cpu() - there
    part = stages.processor(bus, UNTHROTTLED)
    stop = asyncio.Event()
    there, here = broker.cpu(), time.process_time()
    task = asyncio.create_task(part.stage(stop))
    await _judged(bus)
    stop.set()
    await task
    judge, brokered = time.process_time() - here, brokered + broker.cpu() - there
    sinks = stages.sinks(bus, msgspec.convert({"sinks": [{"type": "blackhole"}]}, Configuration))
    there, here = broker.cpu(), time.process_time()
    stop = asyncio.Event()
    task = asyncio.create_task(sinks.stage(stop))
    alerts = sum((await bus.end(ALERTS)).values())
    while (await bus.lag("sink.blackhole")).get(ALERTS.name, 1):  # noqa: ASYNC110 - another group
        await asyncio.sleep(0.1)
    stop.set()
    await task
    sink, brokered = time.process_time() - here, brokered + broker.cpu() - there
    await bus.close()
    how = f"{events} events and {size / 1000:.0f} kB a frame, {PARTITIONS} partitions, {alerts} alerts, zstd; CPU"
    made = {
        "kafka_node_frame_cpu": _figure(node / count * 1e6, "us/frame", count, f"publish, {how}"),
        "kafka_node_event_cpu": _figure(node / count / events * 1e6, "us/event", count, f"publish, {how}"),
        "kafka_processor_frame_cpu": _figure(judge / count * 1e6, "us/frame", count, f"take, judge, publish; {how}, its start included"),
        "kafka_processor_event_cpu": _figure(judge / count / events * 1e6, "us/event", count, f"take, judge, publish; {how}, its start included"),
        "kafka_broker_frame_cpu": _figure(brokered / count * 1e6, "us/frame", count, f"the broker's for all of it; {how}"),
    }  # fmt: skip
    if alerts:
        made["kafka_sink_alert_cpu"] = _figure(sink / alerts * 1e6, "us/alert", alerts, f"take, decode, batch; {how}")
    return made


async def _latency(cluster: Cluster, count: int) -> Result:
    """From a frame in hand to its alert in a reader's: node, broker, processor, broker, sink; all stages in this process."""
    bus = await _world(cluster)
    known, whole = recorded("n0")
    await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
    await put(bus, INVENTORY, known)
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
        "kafka_frame_to_alert_p50": _figure(statistics.median(times) * 1000, "ms", count, how),
        "kafka_frame_to_alert_p99": _figure(sorted(times)[int(len(times) * 0.99)] * 1000, "ms", count, how),
    }


async def _fleet(cluster: Cluster, nodes: int, rounds: int) -> Result:
    """A policy published until every node has answered the plan made of it. Planner real, nodes answer without a kernel."""
    bus = await _world(cluster)
    for index in range(nodes):
        known = [identities.decode(one.value or b"") for one in recorded(f"n{index}")[0]]
        await put(bus, INVENTORY, [Record(f"{one.node}/{one.uid}".encode(), identities.encode(one)) for one in known])
    part = stages.planner(bus, Configuration())
    stop = asyncio.Event()
    planning = asyncio.create_task(part.stage(stop))
    answered: dict[str, float] = {}

    async def answer() -> None:
        async with bus.subscribe((ENFORCEMENT_DESIRED,), None, "latest") as reader:
            while True:
                plans = [decode_plan(one.record.value or b"") for one in await reader.take(1000, 5.0)]
                receipts = [
                    Receipt(node=one.node, generation=one.generation, digest=one.digest, applied_ns=time.time_ns(), took_ms=0.0,
                            backends=(), scopes=0, rules=0)
                    for one in plans
                ]  # fmt: skip
                if receipts:
                    await put(bus, ENFORCEMENT_STATUS, [Record(one.node.encode(), encode(one)) for one in receipts])

    async def hear() -> None:
        async with bus.subscribe((ENFORCEMENT_STATUS,), None, "latest") as reader:
            while True:
                for one in await reader.take(1000, 5.0):
                    answered.setdefault(one.record.key.decode(), time.monotonic())

    answering, hearing = asyncio.create_task(answer()), asyncio.create_task(hear())
    times, slowest = [], []
    try:
        async with asyncio.timeout(120):
            while len(answered) < nodes:
                if part.engine.ready.is_set():
                    await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
                await asyncio.sleep(0.5)
            for number in range(rounds):
                answered.clear()
                changed = POLICY | {"spec": POLICY["spec"] | {"severity": 1 + number % 9}}  # type: ignore[operator]
                began = time.monotonic()
                await put(bus, POLICIES, [Record(KEY, json.dumps(changed).encode())])
                while len(answered) < nodes:  # noqa: ASYNC110 - another task fills it
                    await asyncio.sleep(0.005)
                times += [one - began for one in answered.values()]
                slowest.append(max(answered.values()) - began)
    finally:
        for one in (answering, hearing):
            one.cancel()
        await asyncio.gather(answering, hearing, return_exceptions=True)
        stop.set()
        await planning
        await bus.close()
    how = f"policy published to receipt heard, {nodes} nodes, planner and nodes in one process, no kernel"
    return {
        "kafka_policy_to_receipt_p50": _figure(statistics.median(times) * 1000, "ms", len(times), how),
        "kafka_policy_to_receipt_p99": _figure(sorted(times)[int(len(times) * 0.99)] * 1000, "ms", len(times), how),
        "kafka_policy_to_all_p50": _figure(
            statistics.median(slowest) * 1000, "ms", len(slowest), f"the last node; {how}"
        ),
    }


async def _shares(cluster: Cluster, count: int, directory: Path) -> Result:
    """CPU per event of one processor and of two together over the same frames, as processes; their start is not counted."""
    spent = {}
    _, whole = recorded("n0")
    for many in (1, 2):
        bus = await _world(cluster)
        await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
        for index in range(24):
            await put(bus, INVENTORY, recorded(f"n{index}")[0])
        records = [numbered(whole, index // 24, f"n{index % 24}") for index in range(count)]
        running = [_processor(bus.settings, directory / f"state-{many}-{index}") for index in range(many)]
        try:
            # Each has judged something before the count begins: imports, policies and the group's forming are over.
            await put(bus, EVENTS_RAW, records[:24])
            await _judged(bus)
            before = [_cpu(one.pid) for one in running]
            for start in range(24, count, 24):
                await put(bus, EVENTS_RAW, records[start : start + 24])
            await _judged(bus)
            spent[many] = sum(_cpu(one.pid) for one in running) - sum(before)
        finally:
            for one in running:
                one.terminate()
            for one in running:
                one.wait(60)
            await bus.close()
    left = count - 24
    events = left * whole.header.events
    how = f"{left} frames of {whole.header.events} events of 24 nodes, {PARTITIONS} partitions; CPU of the processes"
    ratio = spent[2] / spent[1] if spent[1] else 1.0
    return {
        "kafka_one_processor_event_cpu": _figure(spent[1] / events * 1e6, "us/event", left, how),
        "kafka_two_processors_event_cpu": _figure(spent[2] / events * 1e6, "us/event", left, how),
        "kafka_two_processors_to_one": _figure(ratio, "times", left, how),
    }


def _processor(settings: KafkaSettings, state: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")} | {
        "HAUBERK_STATE": str(state), "HAUBERK__BUS": json.dumps(msgspec.to_builtins(settings)),
        "HAUBERK__PROCESSOR__THROTTLE__MAX_ALERTS_PER_SECOND": "0",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", _PROCESSOR], env=environment, stderr=subprocess.DEVNULL)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
