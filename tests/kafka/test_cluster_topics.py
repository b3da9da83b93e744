# SPDX-License-Identifier: Apache-2.0
"""`hauberk topic create|check|alter` against a real broker: what is missing is made, what differs is shown and set one by one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.contract import Record
from bus.kafka.administration import Administration
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.kafka.topic_configs import TopicSettings, wanted
from schemas.topics import ALERTS, ENFORCEMENT_STATUS, EVENTS_RAW, INVENTORY, POLICIES, TOPICS

Verb = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def topic(kafka: Any, kafka_prefix: str) -> Verb:
    """topic("check", "--set", ...): (exit code, JSON rows, standard error) of the command."""

    def run(*words: str) -> tuple[int, Any, str]:
        verb, *options = words
        command = [
            str(Path(sys.executable).parent / "hauberk"), "topic", verb, "-o", "json", "--set", "bus.type=kafka",
            "--set", f"bus.bootstrap={kafka.bootstrap}", "--set", f"bus.prefix={kafka_prefix}", *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return (
            done.returncode,
            json.loads(done.stdout.partition("\n]")[0] + "\n]") if "{" in done.stdout else [],
            done.stderr,
        )

    return run


@pytest.fixture
async def administration(kafka: Any, kafka_prefix: str) -> Any:
    made = Administration(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix))
    yield made
    await made.close()


def told(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(row["what"], row["state"]) for row in rows}


async def test_topics_are_made_and_what_drifts_is_set(
    topic: Verb, kafka_prefix: str, administration: Administration, until: Any
) -> None:
    code, rows, _ = topic("check")
    assert (code, told(rows)) == (1, {("topic", "missing: `topic create`")})
    assert {row["topic"] for row in rows} == {one.named(kafka_prefix) for one in TOPICS}

    code, rows, said = topic("create")
    assert (code, told(rows)) == (0, {("topic", "done")}), said
    assert topic("create")[:2] == (0, [])
    assert topic("check")[:2] == (0, [])
    raw = EVENTS_RAW.named(kafka_prefix)
    [state] = (await administration.states([raw])).values()
    assert state is not None
    assert (state.partitions, state.replication) == (6, 1)
    assert state.configs["retention.ms"] == str(6 * 3_600_000)

    # Somebody's hand: one that is ours to set back, and one that is no business of ours.
    alerts, policies = ALERTS.named(kafka_prefix), POLICIES.named(kafka_prefix)
    await administration.alter({
        alerts: {"retention.ms": "5000", "compression.type": "zstd"}, policies: {"cleanup.policy": "delete"},
    })  # fmt: skip

    async def differs() -> bool:
        states = await administration.states([alerts, policies])
        return (
            states[alerts].configs["retention.ms"] == "5000" and states[policies].configs["cleanup.policy"] == "delete"
        )

    await until(differs)
    code, rows, _ = topic("check")
    assert code == 1
    assert {(row["topic"], row["what"], row["wanted"], row["found"]) for row in rows} == {
        (alerts, "retention.ms", str(168 * 3_600_000), "5000"), (policies, "cleanup.policy", "compact", "delete"),
    }  # fmt: skip
    assert topic("create")[0] == 1, "it makes, and alters nothing"
    code, rows, _ = topic("alter")
    assert (code, told(rows)) == (0, {("retention.ms", "done"), ("cleanup.policy", "done")})
    states = await administration.states([alerts, policies])
    assert states[alerts].configs["compression.type"] == "zstd", "nothing else was set back"
    assert states[alerts].configs["cleanup.policy"] == "delete"
    assert states[policies].configs["cleanup.policy"] == "compact"
    assert states[policies].configs["min.cleanable.dirty.ratio"] == "0.1"


async def test_topics_of_before_get_the_times_of_the_log(
    topic: Verb, kafka: Any, kafka_prefix: str, administration: Administration
) -> None:
    """Made by a version that did not ask for it; one is missing."""
    own = {"message.timestamp.type": "CreateTime"}
    old = [one for one in TOPICS if one is not ALERTS]
    made = [msgspec.structs.replace(one, configs=one.configs | own) for one in wanted(kafka_prefix, TopicSettings(), 1)]
    await administration.create([one for one in made if one.topic in old])
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=90.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)
    try:
        await bus.publish(INVENTORY, [Record(b"n/before", b"1", (), 1_600_000_000_000)])
        code, rows, _ = topic("check")
        differing = {(row["topic"], row["found"], row["state"]) for row in rows if row["what"] != "topic"}
        assert code == 1
        assert differing == {
            (one.named(kafka_prefix), "CreateTime", "differs: `topic alter`") for one in (INVENTORY, ENFORCEMENT_STATUS)
        }
        code, rows, said = topic("create", "--alter")
        assert (code, told(rows)) == (0, {("topic", "done"), ("message.timestamp.type", "done")}), said
        assert topic("check")[:2] == (0, [])
        await bus.publish(INVENTORY, [Record(b"n/behind", b"1", (), 1_600_000_000_000)])
        times = {key: record.timestamp_ms for key, record in (await bus.latest(INVENTORY)).items()}
        assert times[b"n/before"] == 1_600_000_000_000, "what lies there stays as it is"
        assert abs(time.time() * 1000 - times[b"n/behind"]) < 60_000
    finally:
        await bus.close()


async def test_partitions_grow_only_where_no_order_is_lost(
    topic: Verb, kafka_prefix: str, administration: Administration, until: Any
) -> None:
    await administration.create(wanted(kafka_prefix, TopicSettings(), 1))
    raw, alerts = EVENTS_RAW.named(kafka_prefix), ALERTS.named(kafka_prefix)

    async def made() -> bool:
        return None not in (await administration.states([one.named(kafka_prefix) for one in TOPICS])).values()

    await until(made)
    more = ("--set", 'bus.topics.partitions_of={"events.raw": 12, "alerts": 12}')
    code, rows, _ = topic("alter", *more)
    assert code == 1, "something still differs"
    by_topic = {row["topic"]: row for row in rows}
    assert by_topic[alerts]["state"] == "done"
    assert by_topic[raw]["state"] == "refused"
    assert 'set bus.topics.partitions_of."events.raw" to 6' in by_topic[raw]["why"]
    states = await administration.states([raw, alerts])
    assert (states[raw].partitions, states[alerts].partitions) == (6, 12)


async def test_the_list_shows_what_is_kept_and_who_is_behind(
    topic: Verb, kafka: Any, kafka_prefix: str, administration: Administration
) -> None:
    code, _, said = topic("list")
    assert code == 3
    assert "it is not there; make it with `hauberk topic create`" in said
    await administration.create(wanted(kafka_prefix, TopicSettings(), 1))
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix, publish_seconds=90.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)
    try:
        await bus.publish(ALERTS, [Record(b"%d" % number, b"v") for number in range(10)])
        async with bus.subscribe((ALERTS,), "sink.file", "earliest") as subscription:
            taken: list[Any] = []
            async with asyncio.timeout(60):
                while len(taken) < 10:
                    taken += await subscription.take(10, 1.0)
            await subscription.commit([one for one in taken if one.partition == taken[0].partition])
            first = sum(one.partition == taken[0].partition for one in taken)
    finally:
        await bus.close()
    code, rows, said = topic("list")
    assert code == 0, said
    by_name = {row["name"]: row for row in rows}
    assert by_name["alerts"]["records"] == 10
    assert by_name["alerts"]["lag"] == {"sink.file": 10 - first}
    assert by_name["alerts"]["channel"] == f"{kafka_prefix}alerts.v1"
    assert by_name["policies"]["records"] == 0


def test_more_copies_than_brokers(topic: Verb) -> None:
    code, _, said = topic("create", "--set", "bus.topics.replication=3")
    assert code == 3
    assert "expected brokers for 3 copies" in said
    assert "set `bus.topics.replication` to at most that" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--set", "bus.prefix="), ("`bus.prefix`",)),
        (("--set", "bus.topics.partitions_of={\"events\": 3}"), ("expected names of topics", "`events`")),
        (("--set", "bus.bootstrap=nowhere"), ("expected host:port", "`nowhere`")),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(topic: Verb, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    code, _, said = topic("check", *words)
    assert code == 2
    assert said.count("\n") == 1
    for part in parts:
        assert part in said


def test_another_bus_has_no_topics_to_make(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "hauberk"), "topic", "create", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "expected `bus.type` kafka, got `embedded`, which makes its topics itself" in done.stderr
