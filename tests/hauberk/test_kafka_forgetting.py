# SPDX-License-Identifier: Apache-2.0
"""A role whose topics forget in another way than they should says so, in its log and in `/readyz`, until somebody has mended it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
from kafka_topics import create_topics

from bus.kafka.administration import Administration
from bus.kafka.settings import KafkaSettings
from bus.memory import MemoryBus
from hauberk import topic_watch
from hauberk.topic_watch import TopicWatch, topics_of
from schemas.errors import Unavailable
from schemas.topics import ALERTS, CLUSTER, INVENTORY, POLICIES, Role, Topic


def not_ready(running: Any) -> dict[str, str]:
    """What `/readyz` names."""
    url = re.search(r"metrics and health: (http://\S+)/metrics", running.said())
    if url is None:
        return {}
    try:
        with urllib.request.urlopen(f"{url[1]}/readyz", timeout=60):
            return {}
    except urllib.error.HTTPError as error:
        return dict(json.loads(error.read())["not_ready"])


@pytest.mark.fault(
    "topic of policies that deletes by age (`cleanup.policy=delete`)",
    "planner and processor name it in the log and in `/readyz`, and are ready once `hauberk topic alter` has mended it",
)
async def test_a_role_tells_of_a_topic_that_forgets_otherwise(
    hauberk: Any, kafka: Any, kafka_prefix: str, until: Any
) -> None:
    await create_topics(kafka.bootstrap, kafka_prefix, 2)
    bus = {"type": "kafka", "bootstrap": kafka.bootstrap, "prefix": kafka_prefix}
    there = {"HAUBERK__BUS": json.dumps(bus), "HAUBERK__METRICS__ENABLED": "true", "HAUBERK__METRICS__PORT": "0"}
    administration = Administration(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix))
    name = POLICIES.named(kafka_prefix)
    try:
        await administration.alter({name: {"cleanup.policy": "delete"}})

        async def seen() -> bool:
            state = (await administration.states([name]))[name]
            return state is not None and state.configs["cleanup.policy"] == "delete"

        await until(seen)
    finally:
        await administration.close()
    roles = [hauberk.start(role, HAUBERK_STATE=str(hauberk.home / role), **there) for role in ("processor", "planner")]
    sentence = f"topic `{name}`: expected cleanup.policy `compact`, got `delete`: its keys are deleted by age; `hauberk topic alter` sets it"
    for one in roles:
        await asyncio.to_thread(one.until, re.escape(sentence))
        assert sentence in one.said()
        await until(lambda: asyncio.to_thread(not_ready, one))  # noqa: B023
        assert sentence.endswith((await asyncio.to_thread(not_ready, one))[f"topic {name}"])
        assert one.said().count(sentence) == 1
    done = await asyncio.to_thread(hauberk, "topic", "alter", **there)
    assert f"{name}" in done.stdout, done.stderr
    for one in roles:
        await until(lambda: asyncio.to_thread(lambda: f"topic {name}" not in not_ready(one)))  # noqa: B023


class Asked(MemoryBus):
    """A bus that is asked how topics forget."""

    def __init__(self, *answers: dict[str, str] | Unavailable) -> None:
        super().__init__()
        self.answers = list(answers)

    async def otherwise_forgotten(self, topics: Sequence[Topic]) -> dict[str, str]:
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer


async def test_it_is_told_once_and_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    for seconds in ("AWAY_SECONDS", "WRONG_SECONDS", "WELL_SECONDS"):
        monkeypatch.setattr(topic_watch, seconds, 0.0)
    bad = {"h.policies.v1": "its keys are deleted by age"}
    bus = Asked(Unavailable("nobody there"), bad, Unavailable("nobody there"), bad)
    watch = TopicWatch(bus, Role.PLANNER)
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(watch.run())
        await until(lambda: not bus.answers)
        assert watch.checks() == {"topic h.policies.v1": "its keys are deleted by age"}
        running.cancel()
    assert [one.getMessage() for one in caplog.records] == ["topic `h.policies.v1`: its keys are deleted by age"]
    bus.answers = [bad, {}]
    running = asyncio.create_task(watch.run())
    await until(lambda: not bus.answers and not watch.checks())
    running.cancel()


async def test_a_bus_that_sees_to_it_itself_is_not_asked() -> None:
    await asyncio.wait_for(TopicWatch(MemoryBus(), Role.PROCESSOR).run(), 60)


def test_a_role_looks_at_what_it_reads_and_writes() -> None:
    assert {POLICIES, INVENTORY, CLUSTER, ALERTS} <= set(topics_of(Role.PLANNER))
    assert CLUSTER not in topics_of(Role.NODE)
