# SPDX-License-Identifier: Apache-2.0
"""`hauberk node` over Kafka: it starts without a broker, keeps what it reports, tells it later, and has its name alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka_topics import create_topics

from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas import frame as frames
from schemas.claim import decode
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, NODES
from sensors.node.claim import NameClaim

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("live"), pytest.mark.timeout(900)]


async def test_a_node_needs_no_broker_and_has_its_name_alone(hauberk: Any, kafka_clusters: Any) -> None:
    from kernel.loading import unload

    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "node.", 3)
    await asyncio.to_thread(cluster.stop)
    settings = KafkaSettings(bootstrap=cluster.bootstrap, prefix="node.", publish_seconds=5.0, away_seconds=3.0)
    pins = f"{hauberk.pins}-kafka"
    far = {
        "HAUBERK__BUS": json.dumps(msgspec.to_builtins(settings)), "HAUBERK__NODE": "n1", "HAUBERK__SENSOR__PIN_DIR": pins,
        "HAUBERK__INVENTORY__RUNTIMES": "[]",
    }  # fmt: skip
    try:
        node = hauberk.start("node", **far)
        await asyncio.to_thread(node.ready)
        spool = Path(hauberk.state, "spool")
        async with asyncio.timeout(120):
            while not any(one.stat().st_size for one in spool.rglob("*") if one.is_file()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.start)
        bus = await KafkaBus.open(settings)
        try:
            async with asyncio.timeout(120):
                while not any(key.startswith(b"n1/") for key in await bus.latest(INVENTORY)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                while b"n1" not in await bus.latest(NODES):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)
                found = []
                async with bus.subscribe((EVENTS_RAW,), None, "earliest") as reader:
                    while not found:
                        found = [frames.decode(one.record.value or b"") for one in await reader.take(100, 1.0)]
            assert {one.header.node for one in found} == {"n1"}
            # Neither TLS nor an account is asked for, and the log of one machine is not this bus: 5 MB of the 40 that a node may take.
            assert "libcrypto" not in Path(f"/proc/{node.process.pid}/maps").read_text()
            # A second of its name: the older one answers.
            second = NameClaim(bus, "n1")
            task = asyncio.create_task(second.run())
            async with asyncio.timeout(60):
                await second.taken.wait()
            await task
            assert "got `n1`" in second.problem
            # An older one that comes back from a partition: this node is the younger, ends and says why.
            older = NameClaim(bus, "n1")
            older.mine = msgspec.structs.replace(older.mine, started_ns=1)
            task = asyncio.create_task(older.run())
            assert await asyncio.to_thread(node.process.wait, 120) == 2
            older.stop()
            await task
            assert "expected a node name that no other process goes by, got `n1`" in node.said()
            assert decode((await bus.latest(NODES))[b"n1"].value or b"").started_ns == 1
            told = []
            async with bus.subscribe((ALERTS,), None, "earliest") as reader, asyncio.timeout(60):
                while not any(one["Operation"] == "NodeNameTaken" for one in told):
                    told += [json.loads(one.record.value or b"") for one in await reader.take(100, 1.0)]
        finally:
            await bus.close()
        assert "Traceback" not in node.said()
    finally:
        hauberk.close()
        unload(pins)
