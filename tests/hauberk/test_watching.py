# SPDX-License-Identifier: Apache-2.0
"""`hauberk get -w` reads each record once, by readers that stay, on whichever bus; what it prints is what `get` prints then."""

from __future__ import annotations

import argparse
import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from kafka_topics import create_topics

from bus.contract import Bus, Delivery, Record, Start, Subscription
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.memory import MemoryBus, MemorySettings
from hauberk.verbs import get
from schemas.alert import Alert
from schemas.errors import Unavailable
from schemas.identity import Identity, Kind, encode
from schemas.topics import ALERTS, INVENTORY, POLICIES, Topic
from schemas.wording import updated_time


def policy(name: str) -> Record:
    document = {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": {}}, "file": {"matchPaths": [{"path": "/x"}]}, "action": "Audit"},
    }  # fmt: skip
    return Record(f"KubeArmorHostPolicy//{name}".encode(), json.dumps(document).encode())


def alert(second: int, name: str = "p", **more: Any) -> Record:
    fields = {"EventID": f"id-{second}", "PolicyName": name, "Type": "MatchedHostPolicy", "HostName": "n1"} | more
    made: Any = Alert(Timestamp=second, UpdatedTime=updated_time(second * 10**9), **fields)
    return Record(b"n%d" % (second % 5), msgspec.json.encode(made))


def workload(name: str, **more: Any) -> Record:
    one = Identity(kind=Kind.CONTAINER, node="n1", uid=f"uid-{name}", container_name=name, **more)
    return Record(one.key, encode(one))


class CountingBus:
    """`inner`, and `handed`: how many records of each topic were handed out, whichever way they were asked for."""

    def __init__(self, inner: Bus) -> None:
        self._inner = inner
        self.handed: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[Subscription]:
        async with self._inner.subscribe(topics, group, start, keys) as inner:
            take = inner.take

            async def counted(most: int, seconds: float) -> list[Delivery]:
                batch = await take(most, seconds)
                self.handed.update(one.topic.name for one in batch)
                return batch

            inner.take = counted  # type: ignore[method-assign]
            yield inner

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        found = await self._inner.latest(topic)
        self.handed[topic.name] += len(found)
        return found


@pytest.fixture(params=["memory", "embedded", "kafka"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CountingBus]:
    inner: Bus
    if request.param == "memory":
        inner = MemoryBus(MemorySettings(partitions=3))
    elif request.param == "embedded":
        inner = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
    else:
        kafka, prefix = request.getfixturevalue("kafka"), request.getfixturevalue("kafka_prefix")
        await create_topics(kafka.bootstrap, prefix, 3)
        inner = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=prefix))
    yield CountingBus(inner)
    await inner.close()


Watch = Callable[..., Awaitable[Callable[[], str]]]


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Watch]:
    """await watch(bus, *words): `hauberk get WORDS -w` on `bus`, as a task; gives what returns all that it has printed so far."""
    running: list[asyncio.Task[int]] = []
    works: list[Callable[[Any], Awaitable[int]]] = []

    def with_bus(given: argparse.Namespace, work: Callable[[Any], Awaitable[int]]) -> int:
        works.append(work)
        return 0

    monkeypatch.setattr(get, "with_bus", with_bus)

    async def start(bus: Any, *words: str) -> Callable[[], str]:
        get.main([*words, "-w"])
        printed: list[str] = []
        task = asyncio.ensure_future(works.pop()(bus))
        running.append(task)

        def so_far() -> str:
            if task.done():
                task.result()
            printed.append(capsys.readouterr().out)
            return "".join(printed)

        return so_far

    yield start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_each_alert_is_read_once(bus: CountingBus, watch: Watch, until: Any) -> None:
    await bus.publish(ALERTS, [alert(second) for second in range(100, 105)])
    printed = await watch(bus, "alerts", "--limit", "3", "-o", "name")
    await until(lambda: "alert/id-104" in printed())
    for second in (105, 106, 107):
        await bus.publish(ALERTS, [alert(second)])
        await until(lambda: f"alert/id-{second}" in printed())  # noqa: B023
    lists = [tuple(range(newest - 2, newest + 1)) for newest in (104, 105, 106, 107)]
    assert printed() == "".join(f"alert/id-{second}\n" for one in lists for second in one)
    assert bus.handed == {"alerts": 8}


async def test_hits_go_on_from_where_they_stood(bus: CountingBus, watch: Watch, until: Any) -> None:
    def hits(name: str) -> int:
        documents, end, decode = printed(), 0, json.JSONDecoder().raw_decode
        told = {}
        while documents[end:].strip():
            found, end = decode(documents, end + (documents[end] == "\n"))
            told = {one["metadata"]["name"]: one["status"]["hits"] for one in found}
        return int(told.get(name, -1))

    await bus.publish(POLICIES, [policy("p")])
    await bus.publish(ALERTS, [alert(100), alert(101), alert(102, "other")])
    printed = await watch(bus, "policies", "-o", "json")
    await until(lambda: hits("p") == 2)
    for second in (103, 104):
        await bus.publish(ALERTS, [alert(second)])
        await until(lambda: hits("p") == second - 100)  # noqa: B023
    assert bus.handed == {"policies": 1, "alerts": 5}
    # Whose alerts those before were is another question now: this once they are all counted again.
    await bus.publish(POLICIES, [policy("other")])
    await until(lambda: (hits("p"), hits("other")) == (4, 1))
    await bus.publish(POLICIES, [Record(policy("p").key, None)])
    await until(lambda: (hits("p"), hits("other")) == (-1, 1))
    await bus.publish(ALERTS, [alert(105, "other")])
    await until(lambda: hits("other") == 2)
    assert bus.handed == {"policies": 3, "alerts": 5 + 5 + 5 + 1}


async def test_each_workload_is_read_once(bus: CountingBus, watch: Watch, until: Any) -> None:
    await bus.publish(INVENTORY, [workload("a"), workload("b")])
    printed = await watch(bus, "workloads", "-o", "name")
    await until(lambda: printed() == "workload/a\nworkload/b\n")
    await bus.publish(INVENTORY, [workload("c")])
    await until(lambda: printed().endswith("workload/a\nworkload/b\nworkload/c\n"))
    await bus.publish(INVENTORY, [Record(workload("a").key, None)])
    await until(lambda: printed().endswith("workload/c\nworkload/b\nworkload/c\n"))
    assert bus.handed == {"inventory": 4}


async def test_each_receipt_and_identity_of_a_node_is_read_once(bus: CountingBus, watch: Watch, until: Any) -> None:
    def node(name: str) -> Record:
        one = Identity(kind=Kind.NODE, node=name, uid=f"node-{name}")
        return Record(one.key, encode(one))

    await bus.publish(INVENTORY, [node("n1")])
    printed = await watch(bus, "nodes", "-o", "name")
    for name in ("n2", "n3"):
        await until(lambda: "node/n1" in printed())
        await bus.publish(INVENTORY, [node(name)])
        await until(lambda: f"node/{name}" in printed())  # noqa: B023
    assert printed().endswith("node/n1\nnode/n2\nnode/n3\n")
    assert bus.handed == {"inventory": 3}


async def test_alerts_that_went_by_are_not_kept(watch: Watch, until: Any) -> None:
    bus = MemoryBus(MemorySettings(partitions=3))
    printed = await watch(bus, "alerts", "--limit", "10", "-o", "name")
    large = [alert(second, Resource="/" + "x" * 10_000) for second in range(1000)]
    await bus.publish(ALERTS, [alert(0)])
    await until(lambda: "id-0" in printed())
    tracemalloc.start()
    try:
        await bus.publish(ALERTS, large)
        await until(lambda: "id-999\n" in printed())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, f"{peak} bytes for ten alerts of 10 kB"


async def test_what_retention_took_is_listed_no_more(
    kafka: Any, kafka_prefix: str, watch: Watch, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bus import standing

    monkeypatch.setattr(standing, "LOOK_SECONDS", 0.2)
    await create_topics(kafka.bootstrap, kafka_prefix, 1)
    bus = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        await admin.start()
        await bus.publish(ALERTS, [alert(second) for second in (100, 101, 102)])
        printed = await watch(bus, "alerts", "-o", "name")
        await until(lambda: printed() == "alert/id-100\nalert/id-101\nalert/id-102\n")
        place = TopicPartition(ALERTS.named(kafka_prefix), 0)
        await admin.delete_records({place: RecordsToDelete(before_offset=2)})
        await until(lambda: printed() == "alert/id-100\nalert/id-101\nalert/id-102\nalert/id-102\n")
    finally:
        await admin.close()
        await bus.close()


async def test_a_table_that_begins_anew_is_read_again(watch: Watch, until: Any) -> None:
    """As where a followed topic was made anew: its readers are told once, and find the other one when they ask again."""
    bus = MemoryBus()
    await bus.publish(INVENTORY, [workload("a")])
    printed = await watch(bus, "workloads", "-o", "name")
    await until(lambda: printed() == "workload/a\n")
    bus.fail(Unavailable("expected a topic to go on where it was, it was made anew; read again"), call="take")
    await bus.publish(INVENTORY, [workload("b")])
    await until(lambda: printed() == "workload/a\nworkload/a\nworkload/b\n")


@pytest.mark.parametrize("what", ["alerts", "policies", "workloads", "nodes"])
async def test_a_bus_that_stays_away_ends_it(what: str, watch: Watch, until: Any) -> None:
    bus = MemoryBus()
    await bus.publish(POLICIES, [policy("p")])
    await bus.publish(ALERTS, [alert(100)])
    await bus.publish(
        INVENTORY, [workload("a"), Record(b"n1/node", encode(Identity(kind=Kind.NODE, node="n1", uid="u")))]
    )
    printed = await watch(bus, what)
    await until(lambda: printed())

    def ended() -> bool:
        try:
            printed()
        except Unavailable:
            return True
        return False

    bus.fail(Unavailable("nobody there"), call="take")
    bus.fail(Unavailable("nobody there"), call="subscribe")
    await until(ended)
