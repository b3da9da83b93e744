# SPDX-License-Identifier: Apache-2.0
"""Whether a node is there is told by the brokers' clock, not by its own: topics as `hauberk topic create` makes them, nodes whose clocks
are two hours off, and the verbs that ask."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bus.contract import Record
from bus.kafka.administration import Administration
from bus.kafka.batches import TIME_HEADER
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.kafka.topic_configs import TopicSettings, wanted
from hauberk.nodes import STALE_SECONDS, last_heard
from hauberk.rollout import in_force
from hauberk.verbs.apply import publish
from hauberk.verbs.delete import drop
from hauberk.verbs.get import nodes
from policy.parse import parse
from schemas.enforcement import Plan, Receipt, digest, encode
from schemas.identity import Identity, Kind
from schemas.identity import encode as encode_identity
from schemas.policy_set_mark import PolicySetMark
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, EVENTS_RAW, INVENTORY, POLICIES, Topic

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web-rules, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, process: {matchPaths: [{path: /usr/bin/curl}]}, action: Block}
"""
NAME = "KubeArmorPolicy/shop/web-rules"
HOURS = 2 * 3600
CLOCKS = pytest.mark.parametrize("off", [-HOURS, HOURS], ids=["behind", "ahead"])
TELLS = 60.0
"""Seconds that a busy machine may take between a publication and the question about it."""


@pytest.fixture
async def bus(kafka: Any, kafka_prefix: str) -> AsyncIterator[KafkaBus]:
    settings = KafkaSettings(
        bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=30.0, call_seconds=30.0, away_seconds=30.0
    )
    administration = Administration(settings)
    try:
        await administration.create(wanted(kafka_prefix, TopicSettings(), 1))
    finally:
        await administration.close()
    made = await KafkaBus.open(settings)
    yield made
    await made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """clock(seconds): what stamps records is the clock of a node that is so far ahead."""

    def clock(seconds: int) -> None:
        told = SimpleNamespace(time_ns=lambda: time.time_ns() + seconds * 10**9, monotonic=time.monotonic)
        monkeypatch.setattr("bus.kafka.producer.time", told)

    return clock


def receipt(node: str, generation: int = 1) -> Record:
    value = Receipt(
        node=node, generation=generation, digest=digest(()), applied_ns=0, took_ms=1.0, backends=(), scopes=0, rules=0, refused=()
    )  # fmt: skip
    return Record(node.encode(), encode(value))


def says(node: str) -> dict[Topic, Record]:
    """What a node's agent publishes to say that it is there."""
    who = Identity(kind=Kind.NODE, node=node, uid=f"node-{node}")
    return {INVENTORY: Record(who.key, encode_identity(who)), ENFORCEMENT_STATUS: receipt(node, generation=0)}


async def put(bus: KafkaBus, records: dict[Topic, Record], stamp_ms: int = 0) -> None:
    for topic, one in records.items():
        await bus.publish(topic, [Record(one.key, one.value, one.headers, stamp_ms)])


@pytest.mark.fault(
    "clock of a node two hours behind or ahead, and whether it is there",
    "it was heard of when the brokers took what it said: a living node is waited for and not dropped, one that is gone is away after 120 s",
)
@CLOCKS
@pytest.mark.parametrize("topic", [INVENTORY, ENFORCEMENT_STATUS], ids=lambda topic: topic.name)
async def test_a_node_was_heard_of_when_the_brokers_took_it(
    bus: KafkaBus, clock: Callable[[int], None], off: int, topic: Topic
) -> None:
    # Stamped by a spool, while the brokers were away, and by whoever publishes.
    await put(bus, {topic: says("spooled")[topic]}, stamp_ms=int((time.time() + off) * 1000))
    clock(off)
    await put(bus, {topic: says("direct")[topic]})
    heard = await last_heard(bus)
    assert set(heard) == {"spooled", "direct"}
    for node, at in heard.items():
        assert abs(time.time() - at) < TELLS, node


async def test_a_time_that_a_node_writes_into_a_header_is_not_taken(
    bus: KafkaBus, clock: Callable[[int], None]
) -> None:
    clock(HOURS)
    # The brokers refuse that time; from then on records travel with their times in a header.
    await bus.publish(EVENTS_RAW, [Record(b"skewed", b"frame")])
    assert bus.stats.timeless == 1
    await put(bus, says("skewed"))
    forged = ((TIME_HEADER, b"%d" % int((time.time() + HOURS) * 1000)),)
    await bus.publish(ENFORCEMENT_STATUS, [Record(b"forged", receipt("forged").value, forged)])
    for at in (await last_heard(bus)).values():
        assert abs(time.time() - at) < TELLS
    record = (await bus.latest(ENFORCEMENT_STATUS))[b"skewed"]
    assert record.headers == ()


async def test_a_living_node_whose_clock_is_behind_is_not_dropped(
    bus: KafkaBus, clock: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    clock(-HOURS)
    await put(bus, says("n1"))
    assert await drop(bus, ["n1"], force=False) == 1
    assert "expected `n1` to be away" in capsys.readouterr().err
    assert len(await bus.latest(INVENTORY)) == 1
    listed = await nodes(bus, argparse.Namespace(names=[]))
    ago = dict(zip(listed.columns, listed.rows[0], strict=False))["HEARD"]
    assert ago.endswith("s"), ago


async def test_the_wait_is_for_a_node_whose_clock_is_behind(
    bus: KafkaBus,
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    until: Any,
) -> None:
    monkeypatch.setattr("hauberk.rollout._PATIENCE", 0.0)
    await publish(bus, parse(POLICY.encode(), "t").policies)
    made = PolicySetMark()
    for name, record in (await bus.latest(POLICIES)).items():
        made.take(name.decode(), record.value)
    plan = Plan(node="n1", generation=1, digest=digest(()), scopes=(), policy_set=made.text, linked_set=made.text)
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(plan))])
    clock(-HOURS)
    await put(bus, says("n1"))
    waiting = asyncio.create_task(in_force(bus, [NAME], 120))
    said = ""

    def named() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "waiting for n1\n" in said

    try:
        await until(named)
        assert not waiting.done(), said
        await put(bus, {ENFORCEMENT_STATUS: receipt("n1")})
        assert await asyncio.wait_for(waiting, 120) == 0
    finally:
        waiting.cancel()
    assert "n1: generation 1 in force" in capsys.readouterr().out


async def test_a_node_that_is_gone_is_not_there_for_as_long_as_its_clock_was_ahead(
    bus: KafkaBus, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(HOURS)
    await put(bus, says("n1"))
    later = time.time() + STALE_SECONDS + TELLS
    monkeypatch.setattr("time.time", lambda: later)
    assert await drop(bus, ["n1"], force=False) == 0
    assert await bus.latest(INVENTORY) == {}
