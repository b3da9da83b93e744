# SPDX-License-Identifier: Apache-2.0
"""The bus on Kafka, against a real broker on loopback: CPU of the client per frame and per event, bytes per event, CPU of the broker.

CPU time of this process and of the broker's, never wall time, so that neighbours on a shared machine do not count. Frames hold
rows as the kernel lays them, with Pareto-distributed behaviours (`bench_ring`). The broker is the tests' (`tests/kafka`); its
figure includes what the JVM compiles meanwhile, so it is an upper bound. Neighbours: bus/kafka/batches.py (hot), producer, reader.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_ring import Synthetic, stamp

from bus.contract import Record
from bus.kafka.batches import CODECS, delivered, encoded, partition_of
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas import frame as words
from schemas.kernel import STRIDE
from schemas.topics import ALERTS, EVENTS_RAW
from sensors.node.frames import columns, frames

sys.path.append(str(Path(__file__).parent.parent / "tests" / "kafka"))

Result = dict[str, dict[str, Any]]


def figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n, "how": how}


def made(size: int) -> tuple[bytes, int]:
    """(frame of about `size` bytes, events in it)."""
    source = Synthetic(2000, 200)
    rows = bytes(source.memory[4096 : 4096 + source.size])[: size // STRIDE * STRIDE]
    ((frame, *_),) = [
        list(frames(rows, source.definitions.closure(*columns(rows)), source.definitions, stamp, 1 << 20))
    ]
    return words.encode(frame), len(rows) // STRIDE


def encoding(scale: float) -> Result:
    """What `batches` costs without a broker."""
    found: Result = {}
    rounds = max(3, int(200 * scale))
    for kilobytes in (100, 400):
        value, events = made(kilobytes << 10)
        record = Record(b"node-1", value, (("frame-id", b"node-1:boot:1"),), 1)
        began = time.process_time()
        for _ in range(rounds):
            data = encoded([record], CODECS["zstd"], (1, 0), 0, 1)
        spent = (time.process_time() - began) / rounds
        how = f"one frame of {len(value)} bytes and {events} events to a zstd batch, CPU"
        found[f"kafka_encode_{kilobytes}k"] = figure(spent * 1e6, "us", rounds, how)
        found[f"kafka_encode_{kilobytes}k_event"] = figure(spent * 1e9 / events, "ns/event", rounds, how)
        found[f"kafka_bytes_{kilobytes}k_event"] = figure(len(data) / events, "bytes/event", rounds, "as it travels")
    keys = [b"node-%d" % number for number in range(1000)]
    partition_of.cache_clear()
    for key in keys:
        partition_of(key, 6)
    began = time.process_time()
    for _ in range(rounds):
        for key in keys:
            partition_of(key, 6)
    spent = (time.process_time() - began) / rounds / len(keys)
    found["kafka_partition"] = figure(
        spent * 1e9, "ns", rounds * len(keys), "partition of a key that was seen before, CPU"
    )

    class Came:
        partition, offset, timestamp, headers, key, value = 0, 1, 1, (("a", b"b"),), b"k", b"v"

    came = Came()
    began = time.process_time()
    for _ in range(rounds * 100):
        delivered(EVENTS_RAW, came)
    spent = (time.process_time() - began) / rounds / 100
    found["kafka_delivered"] = figure(spent * 1e9, "ns", rounds * 100, "a record of the library to a delivery, CPU")
    return found


async def travelling(cluster: Any, prefix: str, scale: float) -> Result:
    found: Result = {}
    settings = KafkaSettings(bootstrap=cluster.bootstrap, prefix=prefix, publish_seconds=60.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)
    node = cluster.nodes[1]
    try:
        await bus.publish(EVENTS_RAW, [Record(b"warm", b"up")])
        for kilobytes, rounds in ((100, max(5, int(400 * scale))), (400, max(5, int(200 * scale)))):
            value, events = made(kilobytes << 10)
            async with bus.subscribe([EVENTS_RAW], f"bench{kilobytes}", "latest") as subscription:
                while not subscription.owned:
                    await subscription.take(0, 0.05)
                theirs, began = node.cpu(), time.process_time()
                for index in range(rounds):
                    await bus.publish(EVENTS_RAW, [Record(b"node-%d" % (index % 12), value)])
                spent, broker = (time.process_time() - began) / rounds, (node.cpu() - theirs) / rounds
                how = f"one frame of {len(value)} bytes and {events} events at a time, acks=all, zstd; CPU"
                found[f"kafka_publish_{kilobytes}k"] = figure(spent * 1e3, "ms/frame", rounds, how)
                found[f"kafka_publish_{kilobytes}k_event"] = figure(spent * 1e9 / events, "ns/event", rounds, how)
                found[f"kafka_broker_in_{kilobytes}k"] = figure(
                    broker * 1e3, "ms/frame", rounds, "of the broker, an upper bound"
                )
                theirs, began, taken = node.cpu(), time.process_time(), 0
                while taken < rounds:
                    batch = await subscription.take(500, 5.0)
                    taken += len(batch)
                    await subscription.commit(batch)
                spent, broker = (time.process_time() - began) / taken, (node.cpu() - theirs) / taken
                how = "the same taken and committed, CPU"
                found[f"kafka_take_{kilobytes}k"] = figure(spent * 1e3, "ms/frame", taken, how)
                found[f"kafka_take_{kilobytes}k_event"] = figure(spent * 1e9 / events, "ns/event", taken, how)
                found[f"kafka_broker_out_{kilobytes}k"] = figure(
                    broker * 1e3, "ms/frame", taken, "of the broker, an upper bound"
                )
        alerts = [
            Record(b"workload-%d" % (number % 20), b"{" + b"a" * 998 + b"}")
            for number in range(max(100, int(20_000 * scale)))
        ]
        began = time.process_time()
        for first in range(0, len(alerts), 500):
            await bus.publish(ALERTS, alerts[first : first + 500])
        spent = (time.process_time() - began) / len(alerts)
        found["kafka_publish_1k_alert"] = figure(spent * 1e6, "us/alert", len(alerts), "1 KB each, 500 at a time, CPU")
    finally:
        await bus.close()
    return found


def run(scale: float) -> Result:
    """`scale` 1.0 takes about twenty seconds with the start of a broker."""
    import kafka_jars
    from kafka_cluster import Cluster
    from kafka_topics import create_topics

    found = encoding(scale)
    try:
        kafka_jars.fetch()
    except kafka_jars.NoKafka as error:
        print(f"bench_kafka: no broker, the figures without one alone: {error}", file=sys.stderr)
        return found
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(Path(directory, "cluster"))
        try:
            cluster.start()
            asyncio.run(create_topics(cluster.bootstrap, "bench.", 6, topics=(EVENTS_RAW, ALERTS)))
            return found | asyncio.run(travelling(cluster, "bench.", scale))
        finally:
            cluster.close()
