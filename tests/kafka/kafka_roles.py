# SPDX-License-Identifier: Apache-2.0
"""Roles as processes of their own over a real Kafka, each with a state directory of its own: what their suites share."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from kafka_topics import create_topics

from bus.contract import Delivery, Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.memory import MemoryBus
from hauberk import stages
from hauberk.sections import Configuration
from schemas import frame as frames
from schemas.errors import Temporary
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, POLICIES, Topic
from sensors.recordings.replay import Replay, ReplaySettings

RECORDING = str(Path(__file__).parents[2] / "examples/recordings/host.hbrk")
POLICY_FILE = str(Path(__file__).parents[2] / "examples/policies/host-audit-shadow.yaml")
PARTITIONS = 6
POLICY = {
    "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": "everything"},
    "spec": {
        "nodeSelector": {"matchLabels": {}}, "severity": 5, "action": "Audit",
        "file": {"matchDirectories": [{"dir": "/", "recursive": True}]},
        "process": {"matchDirectories": [{"dir": "/", "recursive": True}]},
    },
}  # fmt: skip
UNTHROTTLED = {"processor": {"throttle": {"max_alerts_per_second": 0}}}


async def once(node: str) -> MemoryBus:
    """The bus of one processor in this process that has read what `played` gives of a node, once, and has told all of it."""
    bus = MemoryBus()
    await bus.publish(POLICIES, [Record(b"KubeArmorHostPolicy//everything", json.dumps(POLICY).encode())])
    identities, records = played(node)
    await bus.publish(INVENTORY, identities)
    await bus.publish(EVENTS_RAW, records)
    part = stages.processor(bus, msgspec.convert(UNTHROTTLED, Configuration), last=True)
    await asyncio.gather(part.stage(asyncio.Event()), part.finish())
    return bus


class Roles:
    """Topics of the test's own on the broker of the run, a bus of the test's own, and roles."""

    def __init__(self, hauberk: Any, bus: KafkaBus, settings: KafkaSettings) -> None:
        self.hauberk, self.bus, self.settings = hauberk, bus, settings
        self.number = 0

    def start(self, *words: str, **more: str) -> Any:
        """A role that shares nothing with the others but the brokers."""
        self.number += 1
        plain = msgspec.to_builtins(self.settings) | {"session_seconds": 6.0}
        return self.hauberk.start(
            *words, HAUBERK_STATE=str(self.hauberk.home / f"state-{self.number}"), HAUBERK__BUS=json.dumps(plain),
            HAUBERK__METRICS__ENABLED="true", HAUBERK__METRICS__PORT="0",
            HAUBERK__PROCESSOR__THROTTLE__MAX_ALERTS_PER_SECOND="0", **more,
        )  # fmt: skip

    async def judged(self, group: str = "processors") -> None:
        """Wait until the processors have committed every frame."""
        async with asyncio.timeout(120):
            while (await self.bus.lag(group)).get(EVENTS_RAW.name, 1):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)

    async def says(self, *words: str, code: int = 0, **more: str) -> str:
        """Both outputs of a verb that has the brokers' address and, unless told otherwise, an empty state directory."""
        far = {
            "HAUBERK__BUS": json.dumps(msgspec.to_builtins(self.settings)),
            "HAUBERK_STATE": str(self.hauberk.home / "nobody"),
        } | more
        done = await asyncio.to_thread(lambda: self.hauberk(*words, seconds=180, **far))
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return str(done.stdout + done.stderr)

    async def put(self, topic: Topic, records: list[Record]) -> None:
        """Publish, again when a topic that was just made has no leader yet."""
        async with asyncio.timeout(120):
            while True:
                try:
                    return await self.bus.publish(topic, records)
                except Temporary:
                    await asyncio.sleep(0.1)

    async def judge(self) -> None:
        key = b"KubeArmorHostPolicy//everything"
        await self.put(POLICIES, [Record(key, json.dumps(POLICY).encode())])

    async def alerts(self) -> list[Delivery]:
        found: list[Delivery] = []
        async with self.bus.subscribe((ALERTS,), None, "earliest") as reader:
            ends = await self.bus.end(ALERTS)
            while any(reader.position.get((ALERTS.name, number), 0) < end for number, end in ends.items()):
                found += await reader.take(1000, 1.0)
        return found


def played(node: str) -> tuple[list[Record], list[Record]]:
    """(identities, frames) of the recording as `node`'s."""
    source = Replay(ReplaySettings(path=RECORDING, speed=0, node=node), "run")
    identities: list[Record] = []
    found: list[Record] = []
    while not source.finished:
        batch = source.drain()
        identities += batch.inventory
        found += [Record(one.header.node.encode(), frames.encode(one)) for one in batch.frames]
    return identities, found


def shown(running: Any) -> str:
    """The metrics of a role, as text."""
    url = re.search(r"metrics and health: (http://\S+)/metrics", running.said())
    assert url is not None
    with urllib.request.urlopen(f"{url[1]}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def metric(running: Any, name: str) -> float:
    text = shown(running)
    found = re.search(rf"(?m)^{name}(?:{{[^}}]*}})? (\S+)$", text)
    assert found is not None, f"{name} is not shown"
    return float(found[1])


@asynccontextmanager
async def roles_on(kafka: Any, prefix: str, hauberk: Any) -> AsyncIterator[Roles]:
    """Topics under `prefix` and what starts roles on them."""
    await create_topics(kafka.bootstrap, prefix, PARTITIONS)
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=prefix, publish_seconds=60.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)
    try:
        yield Roles(hauberk, bus, settings)
    finally:
        await bus.close()


async def eventually(ask: Callable[[], Any], seconds: float = 120.0) -> None:
    """`ask` is asked in a thread: it talks to the roles."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(ask):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
