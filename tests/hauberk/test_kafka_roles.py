# SPDX-License-Identifier: Apache-2.0
"""Roles as processes of their own over a real Kafka, each with a state directory of its own: nothing is lost when one is killed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
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

pytestmark = pytest.mark.timeout(400)

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


class Cluster:
    """Topics of the test's own on the broker of the run, a bus of the test's own, and roles."""

    def __init__(self, hauberk: Any, bus: KafkaBus, settings: KafkaSettings) -> None:
        self.hauberk, self.bus, self.settings = hauberk, bus, settings
        self.number = 0

    def start(self, role: str, **more: str) -> Any:
        """A role that shares nothing with the others but the brokers."""
        self.number += 1
        plain = msgspec.to_builtins(self.settings) | {"session_seconds": 6.0}
        return self.hauberk.start(
            role, HAUBERK_STATE=str(self.hauberk.home / f"state-{self.number}"), HAUBERK__BUS=json.dumps(plain),
            HAUBERK__METRICS__ENABLED="true", HAUBERK__METRICS__PORT="0",
            HAUBERK__PROCESSOR__THROTTLE__MAX_ALERTS_PER_SECOND="0", **more,
        )  # fmt: skip

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


def metric(running: Any, name: str) -> float:
    url = re.search(r"metrics and health: (http://\S+)/metrics", running.said())
    assert url is not None
    with urllib.request.urlopen(f"{url[1]}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.search(rf"(?m)^{name}(?:{{[^}}]*}})? (\S+)$", text)
    assert found is not None, f"{name} is not shown"
    return float(found[1])


async def _reference(node: str) -> list[str]:
    """Ids of the alerts of one node, as one processor in this process makes them."""
    bus = MemoryBus()
    await bus.publish(POLICIES, [Record(b"KubeArmorHostPolicy//everything", json.dumps(POLICY).encode())])
    identities, records = played(node)
    await bus.publish(INVENTORY, identities)
    await bus.publish(EVENTS_RAW, records)
    part = stages.processor(bus, msgspec.convert(UNTHROTTLED, Configuration), last=True)
    await asyncio.gather(part.stage(asyncio.Event()), part.finish())
    return [json.loads(one.value or b"")["EventID"] for one in bus.records(ALERTS)]


@pytest.fixture
async def cluster(hauberk: Any, kafka: Any, kafka_prefix: str) -> AsyncIterator[Cluster]:
    await create_topics(kafka.bootstrap, kafka_prefix, PARTITIONS)
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=60.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)
    try:
        yield Cluster(hauberk, bus, settings)
    finally:
        await bus.close()


async def _eventually(ask: Callable[[], Any], seconds: float = 120.0) -> None:
    """`ask` is asked in a thread: it talks to the roles."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(ask):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_a_processor_that_is_killed_loses_nothing_and_orders_stay(cluster: Cluster) -> None:
    await cluster.judge()
    wanted = await _reference("n0")
    assert len(wanted) > 100
    names = [f"n{index}" for index in range(24)]
    first, second = cluster.start("processor"), cluster.start("processor")
    for one in (first, second):
        await asyncio.to_thread(one.ready)
    await _eventually(lambda: all(metric(one, "hauberk_pump_partitions") == PARTITIONS / 2 for one in (first, second)))
    plays = {name: played(name) for name in names}
    for identities, _ in plays.values():
        await cluster.put(INVENTORY, identities)
    rounds = max(len(records) for _, records in plays.values())
    for number in range(rounds):
        if number == rounds // 2:
            # In the middle: some of its frames are read and not committed, others wait.
            first.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*(
            cluster.put(EVENTS_RAW, records[number : number + 1])
            for _, records in plays.values() if number < len(records)
        ))  # fmt: skip
    assert first.process.wait(60) == -signal.SIGKILL
    await _eventually(lambda: metric(second, "hauberk_pump_partitions") == PARTITIONS)
    async with asyncio.timeout(120):
        while (await cluster.bus.lag("processors")).get(EVENTS_RAW.name, 1):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert second.end(signal.SIGTERM) == 0, second.said()

    told = await cluster.alerts()
    alerts = [json.loads(one.record.value or b"") for one in told]
    assert Counter(one["Operation"] for one in alerts if one["Type"] == "SystemEvent") == {}, "no false `EventsLost`"
    ids = [one["EventID"] for one in alerts]
    for name in names:
        # The keys of one node's alerts lie in partitions of their own; a repeat has the id of the first.
        mine = {}
        for delivery, ident in zip(told, ids, strict=True):
            if ident.startswith(f"{name}:"):
                mine.setdefault((delivery.partition, delivery.record.key), []).append(ident)
        expected = [ident.replace("n0:", f"{name}:", 1) for ident in wanted]
        assert {ident for found in mine.values() for ident in found} == set(expected), "nothing is lost, nothing is new"
        for found in mine.values():
            once = list(dict.fromkeys(found))
            assert once == [ident for ident in expected if ident in set(once)], "in order, repeats apart"
    assert second.process.returncode == 0
    assert "Traceback" not in second.said()


async def test_three_processors_have_even_shares_and_a_leaver_hands_over(cluster: Cluster) -> None:
    running = [cluster.start("processor") for _ in range(3)]
    for one in running:
        await asyncio.to_thread(one.ready)
    await _eventually(lambda: [metric(one, "hauberk_pump_partitions") for one in running] == [2, 2, 2])
    assert metric(running[0], "hauberk_pump_rebalances_total") >= 1
    assert running[0].end(signal.SIGTERM) == 0, running[0].said()
    await _eventually(lambda: [metric(one, "hauberk_pump_partitions") for one in running[1:]] == [3, 3])
    for one in running[1:]:
        assert one.end(signal.SIGTERM) == 0, one.said()


async def test_of_two_planners_one_plans_and_the_other_takes_over(cluster: Cluster) -> None:
    first, second = cluster.start("planner"), cluster.start("planner")
    for one in (first, second):
        await asyncio.to_thread(one.ready)

    def active() -> list[float]:
        return [metric(one, "hauberk_planner_active") for one in (first, second)]

    await _eventually(lambda: sorted(active()) == [0, 1])
    await cluster.judge()
    await cluster.put(INVENTORY, played("n0")[0])

    async def plans() -> int:
        from schemas.topics import ENFORCEMENT_DESIRED

        return sum((await cluster.bus.end(ENFORCEMENT_DESIRED)).values())

    async with asyncio.timeout(60):
        while not await plans():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    leader, other = (first, second) if active()[0] else (second, first)
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait(60)
    await _eventually(lambda: metric(other, "hauberk_planner_active") == 1)
    await cluster.put(INVENTORY, played("n1")[0])
    before = await plans()
    async with asyncio.timeout(60):
        while await plans() == before:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert other.end(signal.SIGTERM) == 0, other.said()


@pytest.fixture
def said(cluster: Cluster) -> Callable[..., Any]:
    """said(words, code=0): both outputs of a verb that has the brokers' address and an empty state directory."""
    hauberk = cluster.hauberk
    far = {
        "HAUBERK__BUS": json.dumps(msgspec.to_builtins(cluster.settings)),
        "HAUBERK_STATE": str(hauberk.home / "nobody"),
    }

    async def said(*words: str, code: int = 0) -> str:
        done = await asyncio.to_thread(lambda: hauberk(*words, seconds=180, **far))
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return str(done.stdout + done.stderr)

    return said


async def test_verbs_read_the_brokers(cluster: Cluster, said: Callable[..., Any]) -> None:
    await cluster.judge()
    identities, records = played("n0")
    await cluster.put(INVENTORY, identities)
    await cluster.put(EVENTS_RAW, records)
    processor = cluster.start("processor")
    await asyncio.to_thread(processor.ready)
    async with asyncio.timeout(120):
        while (await cluster.bus.lag("processors")).get(EVENTS_RAW.name, 1):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert processor.end(signal.SIGTERM) == 0, processor.said()
    assert "everything" in await said("get", "policies")
    assert "n0" in await said("get", "nodes")
    assert "KubeArmorHostPolicy" in await said("describe", "policy", "everything")
    assert "everything" in await said("get", "alerts", "-o", "wide")
    assert "/etc/shadow" in await said("logs", "--from", "earliest", "--no-follow")
    assert "events.raw" in await said("topic", "list")
    assert "processors" in await said("topic", "groups")
    assert '"occurrences"' in await said("topic", "tail", "events.raw", "--from", "earliest", "--limit", "1")


async def test_verbs_say_what_they_lack(cluster: Cluster, said: Callable[..., Any]) -> None:
    await cluster.judge()
    assert "everything" in await said("completion", "--words", "describe", "policy", "")
    # The store is another machine's.
    for verb in (("summary", "--host"), ("policy", "backtest", "-f", POLICY_FILE)):
        lacking = await said(*verb, code=2)
        assert "expected a summary store at" in lacking
        assert len(lacking.splitlines()) == 1
