# SPDX-License-Identifier: Apache-2.0
"""No grant is for nothing: the broker's authorizer writes down by which grant it allowed what roles and verbs asked for, and what is
left of their lists is named here with its reason. The node's list: `test_kafka_secure`; that a lacking one is missed: `tests/kafka/test_acls.py`."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import kafka_jars
import pytest
from kafka_grants import AUDIT, Grants, UsedGrant, granted, used
from kafka_roles import POLICY_FILE, eventually, played
from kafka_topics import create_topics

from bus.contract import Record
from bus.kafka.administration import Administration
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.claim import NodeClaim
from schemas.claim import encode as encode_claim
from schemas.enforcement import Receipt, digest
from schemas.enforcement import encode as encode_receipt
from schemas.errors import Temporary
from schemas.topics import (
    ALERTS,
    CLUSTER,
    DEAD,
    ENFORCEMENT_DESIRED,
    ENFORCEMENT_STATUS,
    EVENTS_RAW,
    INVENTORY,
    NODES,
    POLICIES,
    PROGRESS,
    SUMMARIES,
    TELEMETRY,
    Topic,
)

pytestmark = pytest.mark.timeout(400)

PREFIX = "used."
USERS = {
    "processor": "processor",
    "planner": "planner",
    "sink": "sink",
    "cli": "cli",
    "admin": "nobody",
    "cluster": "cluster",
}
HERE = ("processor", "planner", "sink", "cli", "admin")
RARE = {
    (
        "User:planner",
        "topic",
        "used.alerts.v1",
        "Write",
    ): "a stage of it that fails, its disk that is full (hauberk/supervision.py, disk.py)",
    ("User:sink", "topic", "used.alerts.v1", "Write"): "the same",
    ("User:cluster", "topic", "used.alerts.v1", "Write"): "the same",
}
"""What this run does not come to, and when a role does."""


class Accounts:
    """Each role's and verb's account on a broker that refuses, and its list."""

    def __init__(self, kafka: Any, hauberk: Any) -> None:
        self.kafka, self.hauberk = kafka, hauberk
        self.password = hauberk.home / "password"
        self.password.write_text(kafka_jars.PASSWORD)
        self.password.chmod(0o600)

    def there(self, role: str, **more: Any) -> dict[str, str]:
        bus = {
            "type": "kafka", "prefix": PREFIX, "bootstrap": self.kafka.addresses("SCRAM"), "security_protocol": "SASL_SSL",
            "sasl": {"username": USERS[role], "password": {"file": str(self.password)}},
            "tls": {"ca_file": self.kafka.tls("x")[0]}, "publish_seconds": 60.0, "call_seconds": 60.0,
            "topics": more,
        }  # fmt: skip
        state = {"HAUBERK_STATE": str(self.hauberk.home / f"state-{role}")}
        return {"HAUBERK__BUS": json.dumps(bus), "HAUBERK__PAGE__PORT": "0"} | state

    def grants(self, role: str) -> list[dict[str, Any]]:
        principal = f"User:{USERS[role]}"
        done = self.hauberk("topic", "acls", "--role", role, "--principal", principal, "-o", "json", **self.there(role))
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    async def says(self, role: str, *words: str, code: int = 0, **more: Any) -> str:
        done = await asyncio.to_thread(lambda: self.hauberk(*words, seconds=180, **self.there(role, **more)))
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return str(done.stdout)


async def test_every_grant_of_a_list_is_used(hauberk: Any, kafka_clusters: Any, until: Any, tmp_path: Path) -> None:
    kafka = kafka_clusters(secure=True, options=(AUDIT,))
    await asyncio.to_thread(kafka.start)
    accounts = Accounts(kafka, hauberk)
    hauberk.sinks = [
        {"type": "file", "name": "lines", "path": str(tmp_path / "lines.jsonl"), "content": "both"},
        {"type": "prometheus", "port": 0},
        {"type": "store", "path": str(tmp_path / "store" / "summary.db")},
    ]
    (tmp_path / "store").mkdir()
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=PREFIX, publish_seconds=60.0, call_seconds=60.0)
    bus = await KafkaBus.open(settings)

    async def put(topic: Topic, *records: Record) -> None:
        async def written() -> bool:
            try:
                await bus.publish(topic, records)
            except Temporary:
                return False
            return True

        await until(written)

    async def there(topic: Topic, least: int = 1) -> bool:
        return sum((await bus.end(topic)).values()) >= least

    async def read(group: str, topic: Topic) -> bool:
        return not (await bus.lag(group)).get(topic.name, 1)

    lists = {role: await asyncio.to_thread(accounts.grants, role) for role in HERE}
    async with Grants(kafka.bootstrap) as grants:
        for entries in lists.values():
            await grants.add(entries)
        # The administrator makes the topics, and sets right what is otherwise.
        await accounts.says("admin", "topic", "create", partitions_of={"alerts": 3})
        administration = Administration(settings)
        await administration.alter({ALERTS.named(PREFIX): {"retention.ms": "1000000"}})
        await administration.close()
        await accounts.says("admin", "topic", "alter")
        for topic in (CLUSTER, ENFORCEMENT_DESIRED):
            # Of a topic where nothing lies nobody reads.
            await put(topic, Record(b"gone", None))

        running = {
            role: await asyncio.to_thread(hauberk.start, role, **accounts.there(role))
            for role in ("processor", "planner", "sink")
        }
        for one in running.values():
            await asyncio.to_thread(one.ready)
        await accounts.says("cli", "apply", "-f", POLICY_FILE)
        identities, frames = played("n0")
        await put(INVENTORY, *identities)
        await put(EVENTS_RAW, *frames, Record(b"n0", b"no frame"))
        await put(ALERTS, Record(b"n0", b"no alert"))
        receipt = Receipt(
            node="n0", generation=1, digest=digest(()), applied_ns=time.time_ns(), took_ms=1.0, backends=(), scopes=0,
            rules=0,
        )  # fmt: skip
        await put(ENFORCEMENT_STATUS, Record(b"n0", encode_receipt(receipt)))
        claim = NodeClaim(node="n0", run="r", host="h", boot="b", started_ns=1)
        await put(NODES, Record(b"n0", encode_claim(claim)))
        for topic in (TELEMETRY, SUMMARIES, PROGRESS, ENFORCEMENT_DESIRED):
            await until(lambda: there(topic))  # noqa: B023
        await until(lambda: read("processors", EVENTS_RAW))
        await until(lambda: read("sink.lines", TELEMETRY))
        # One of the processor, and of each sink that reads alerts one.
        await until(lambda: there(DEAD, 2))
        page = re.search(r"(?m)^\S* *page +(http://127\.0\.0\.1:\d+/)$", running["sink"].said())
        assert page is not None, running["sink"].said()

        def learnt() -> bool:
            with urllib.request.urlopen(f"{page[1]}api/learnt", timeout=60) as answer:
                return not json.loads(answer.read())["learning"]

        await eventually(learnt)

        for words in (("topic", "list"), ("topic", "groups"), ("topic", "check"), ("get", "alerts"), ("get", "nodes")):
            await accounts.says("cli", *words)
        await accounts.says("admin", "delete", "node", "n0", "--force")
        for role, one in running.items():
            assert one.end(signal.SIGTERM) == 0, (role, one.said())
            assert "grant" not in one.said(), (role, one.said())
    await bus.close()
    wanted = {granted(entry) for entries in lists.values() for entry in entries}
    assert wanted - _used(kafka) == {one for one in RARE if one[0] != "User:cluster"}


@pytest.mark.kubernetes
async def test_every_grant_of_the_watch_of_a_cluster_is_used(
    hauberk: Any, kafka_clusters: Any, api_server: Any, until: Any
) -> None:
    kafka = kafka_clusters(secure=True, options=(AUDIT,))
    await asyncio.to_thread(kafka.start)
    await create_topics(kafka.bootstrap, PREFIX, 1)
    accounts = Accounts(kafka, hauberk)
    policy = {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "used", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "network": {"matchProtocols": [{"protocol": "udp"}]}, "action": "Block"},
    }  # fmt: skip
    bus = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=PREFIX))
    entries = await asyncio.to_thread(accounts.grants, "cluster")
    async with Grants(kafka.bootstrap) as grants:
        await grants.add(entries)
        try:
            await asyncio.to_thread(api_server.apply, policy)
            watching = hauberk.start(
                "cluster", **accounts.there("cluster"), HAUBERK__CLUSTER__LEASE__ENABLED="false",
                HAUBERK__CLUSTER__SERVER__KUBECONFIG=str(api_server.kubeconfig()), HAUBERK__CLUSTER_STATUS__HITS_SECONDS="1",
            )  # fmt: skip

            async def at_work() -> bool:
                written = [sum((await bus.end(topic)).values()) for topic in (CLUSTER, POLICIES)]
                return all(written) and "cluster" in await bus.groups()

            await until(at_work)
            assert watching.end(signal.SIGTERM) == 0, watching.said()
            assert "grant" not in watching.said(), watching.said()
        finally:
            await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "used", "-n", "default", "--ignore-not-found")
            await bus.close()
    assert {granted(entry) for entry in entries} - _used(kafka) == {one for one in RARE if one[0] == "User:cluster"}


def _used(kafka: Any) -> set[UsedGrant]:
    return used((kafka.nodes[1].directory / "log").read_text(errors="replace"))
