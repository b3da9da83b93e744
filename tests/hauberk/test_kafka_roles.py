# SPDX-License-Identifier: Apache-2.0
"""Roles as processes of their own over a real Kafka, each with a state directory of its own: nothing is lost when one is killed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kafka_roles import PARTITIONS, Roles, eventually, metric, once, played, roles_on

from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY

pytestmark = pytest.mark.timeout(400)


async def _reference(node: str) -> list[str]:
    """Ids of the alerts of one node, as one processor in this process makes them."""
    bus = await once(node)
    return [json.loads(one.value or b"")["EventID"] for one in bus.records(ALERTS)]


@pytest.fixture
async def cluster(hauberk: Any, kafka: Any, kafka_prefix: str) -> AsyncIterator[Roles]:
    async with roles_on(kafka, kafka_prefix, hauberk) as made:
        yield made


@pytest.mark.fault(
    "one of two processors killed (-9) under load",
    "the other takes over: no alert lost, no false `EventsLost`, order per node kept, repeats have the id of the first",
)
async def test_a_processor_that_is_killed_loses_nothing_and_orders_stay(cluster: Roles) -> None:
    await cluster.judge()
    wanted = await _reference("n0")
    assert len(wanted) > 100
    names = [f"n{index}" for index in range(24)]
    first, second = cluster.start("processor"), cluster.start("processor")
    for one in (first, second):
        await asyncio.to_thread(one.ready)
    await eventually(lambda: all(metric(one, "hauberk_pump_partitions") == PARTITIONS / 2 for one in (first, second)))
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
    await eventually(lambda: metric(second, "hauberk_pump_partitions") == PARTITIONS)
    await cluster.judged()
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


async def test_three_processors_have_even_shares_and_a_leaver_hands_over(cluster: Roles) -> None:
    running = [cluster.start("processor") for _ in range(3)]
    for one in running:
        await asyncio.to_thread(one.ready)
    await eventually(lambda: [metric(one, "hauberk_pump_partitions") for one in running] == [2, 2, 2])
    assert metric(running[0], "hauberk_pump_rebalances_total") >= 1
    assert running[0].end(signal.SIGTERM) == 0, running[0].said()
    await eventually(lambda: [metric(one, "hauberk_pump_partitions") for one in running[1:]] == [3, 3])
    for one in running[1:]:
        assert one.end(signal.SIGTERM) == 0, one.said()


@pytest.mark.fault(
    "active planner killed (-9)", "the one that stands by takes over and plans for what came meanwhile and later"
)
async def test_of_two_planners_one_plans_and_the_other_takes_over(cluster: Roles) -> None:
    first, second = cluster.start("planner"), cluster.start("planner")
    for one in (first, second):
        await asyncio.to_thread(one.ready)

    def active() -> list[float]:
        return [metric(one, "hauberk_planner_active") for one in (first, second)]

    await eventually(lambda: sorted(active()) == [0, 1])
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
    await eventually(lambda: metric(other, "hauberk_planner_active") == 1)
    await cluster.put(INVENTORY, played("n1")[0])
    before = await plans()
    async with asyncio.timeout(60):
        while await plans() == before:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert other.end(signal.SIGTERM) == 0, other.said()


async def test_the_page_of_a_sink_shows_what_came_over_the_brokers(cluster: Roles) -> None:
    """A store sink with its page, alone in its state directory: activity, alerts, policies and what was learnt."""
    await cluster.judge()
    identities, records = played("n0")
    await cluster.put(INVENTORY, identities)
    await cluster.put(EVENTS_RAW, records)
    processor = cluster.start("processor")
    place = cluster.hauberk.home / "store"
    place.mkdir()
    store = [{"type": "store", "path": str(place / "summary.db")}]
    sink = cluster.start("sink", "store", HAUBERK__SINKS=json.dumps(store), HAUBERK__PAGE__PORT="0")
    for one in (processor, sink):
        await asyncio.to_thread(one.ready)
    found = re.search(r"(?m)^\S* *page +(http://127\.0\.0\.1:\d+/)$", sink.said())
    assert found is not None, sink.said()

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"{found[1]}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    await cluster.judged()
    await eventually(lambda: any(one["name"] == "everything" for one in get("api/survey")["policies"]))
    assert get("api/survey")["workloads"]
    learnt: dict[str, Any] = {}

    def known() -> bool:
        # What is learnt first may be of a store that has only begun to read: a workload without a rule.
        learnt.update(get("api/learnt"))
        return bool(learnt["lines"]) and learnt["lines"][0]["rules"] > 0 and not learnt["learning"]

    await eventually(known, 180)
    assert learnt["why"] == ""
    sheet = get(f"api/learnt?policy={learnt['lines'][0]['policy']}")
    assert sheet["yaml"].startswith("# "), "to copy"
    assert sink.end(signal.SIGTERM) == 0, sink.said()
    assert processor.end(signal.SIGTERM) == 0, processor.said()
