# SPDX-License-Identifier: Apache-2.0
"""Least privilege, against Kafka's StandardAuthorizer: each role does all its work with the grants that `hauberk topic acls`
lists for it, and with any one of them taken away it says which one that is. That none is for nothing: `test_kafka_used_grants`.

Accounts are SCRAM users over TLS, and for nodes a certificate.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kafka_jars
import pytest
from kafka_grants import Grants

from bus.contract import Record
from bus.kafka.acls import Grant
from bus.kafka.administration import Administration
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSasl, KafkaSettings, KafkaTls
from bus.kafka.topic_configs import TopicSettings, wanted
from bus.secret import Secret
from enforcers.planner import PlannerEngine
from hauberk.nodes import forget
from hauberk.topic_watch import topics_of
from schemas.errors import HauberkError, Unavailable
from schemas.identity import Identity, Kind
from schemas.identity import encode as encode_identity
from schemas.topics import BY_NAME, ENFORCEMENT_DESIRED, INVENTORY, TOPICS, Role, Topic

PREFIX = "acl."
USERS = {
    Role.PROCESSOR: "processor", Role.PLANNER: "planner", Role.SINK: "sink", Role.CLI: "cli", Role.ADMIN: "nobody",
    Role.CLUSTER: "cluster",
}  # fmt: skip
GROUPS = {Role.PROCESSOR: "processors", Role.PLANNER: "planners", Role.SINK: "sink.file", Role.CLUSTER: "cluster"}
SECONDS = 20.0


class Stand:
    """A broker that refuses what was not granted, the topics on it, and the lists as the command prints them."""

    def __init__(self, kafka: Any, directory: Path) -> None:
        self.kafka = kafka
        self.password = directory / "password"
        self.password.write_text(kafka_jars.PASSWORD)
        self.password.chmod(0o600)
        self.lists = {role: self._listed(role) for role in Role}

    def principal(self, role: Role) -> str:
        return "User:CN=node-1" if role is Role.NODE else f"User:{USERS[role]}"

    def _listed(self, role: Role) -> list[dict[str, Any]]:
        program = Path(sys.executable).parent / "hauberk"
        command = [
            str(program), "topic", "acls", "--role", role, "--principal", self.principal(role), "-o", "json",
            "--set", "bus.type=kafka", "--set", f"bus.prefix={PREFIX}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return list(json.loads(done.stdout))

    def settings(self, role: Role | None = None) -> KafkaSettings:
        """Of an account; None: the super user."""
        if role is None:
            return KafkaSettings(bootstrap=self.kafka.bootstrap, prefix=PREFIX, call_seconds=SECONDS)
        authority, certificate, key = self.kafka.tls("node-1")
        if role is Role.NODE:
            tls = KafkaTls(ca_file=authority, cert_file=certificate, key_file=key)
            return KafkaSettings(
                bootstrap=self.kafka.addresses("MTLS"),
                prefix=PREFIX,
                security_protocol="SSL",
                tls=tls,
                call_seconds=SECONDS,
            )
        sasl = KafkaSasl(username=USERS[role], password=Secret(file=str(self.password)))
        return KafkaSettings(
            bootstrap=self.kafka.addresses("SCRAM"), prefix=PREFIX, security_protocol="SASL_SSL", sasl=sasl,
            tls=KafkaTls(ca_file=authority), call_seconds=SECONDS,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stand(kafka_secure: Any, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    made = Stand(kafka_secure, tmp_path_factory.mktemp("acl"))

    async def prepare() -> None:
        administration = Administration(made.settings())
        await administration.create(wanted(PREFIX, TopicSettings(), 1))
        await administration.close()
        bus = await KafkaBus.open(made.settings())
        for topic in TOPICS:
            await eventually(lambda topic=topic: bus.publish(topic, [record(topic)]))
        # Groups that are there, so that who may look at them finds some.
        for group in GROUPS.values():
            async with bus.subscribe((BY_NAME["alerts"],), group, "earliest") as subscription:
                await subscription.commit()
        await bus.close()

    asyncio.run(prepare())
    return made


def record(topic: Topic) -> Record:
    """One that no reader of the topic stumbles over."""
    return Record(b"node-1/key", None if topic.compacted else b"value")


async def eventually(work: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """`work` until it does not fail: a topic or a grant is known to a broker a moment later."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await work()
            except Unavailable:
                await asyncio.sleep(0.05)


async def refused(work: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> str:
    """What `work` fails with, once it does."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await work()
            except HauberkError as error:
                return str(error)
            await asyncio.sleep(0.05)


class Work:
    """What an account does that a grant is for."""

    def __init__(self, stand: Stand, role: Role) -> None:
        self._stand = stand
        self._role = role
        self.settings = stand.settings(role)
        self._partitions = BY_NAME["alerts"].partitions

    async def __aenter__(self) -> Work:
        self.bus = await KafkaBus.open(self.settings)
        self.administration = Administration(self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bus.close()
        await self.administration.close()

    def of(self, entry: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
        """The work that needs `entry`."""
        name, kind = entry["resource"]["name"], entry["resource"]["type"]
        topic = next((one for one in TOPICS if one.named(PREFIX) == name), BY_NAME["dead"])
        match kind, entry["operation"]:
            case "topic", "Write":
                return lambda: self.bus.publish(topic, [record(topic)])
            case "topic", "Read":
                return lambda: self.read(topic)
            case "topic", "DescribeConfigs":
                return lambda: self.administration.states([topic.named(PREFIX)])
            case "topic", "AlterConfigs":
                return lambda: self.administration.alter({topic.named(PREFIX): {"retention.ms": "1000000"}})
            case "topic", "Create":
                return lambda: self.administration.create(list(wanted(f"{PREFIX}more.", TopicSettings(), 1))[:1])
            case "topic", "Alter":
                return self.grow
            case "group", "Read":
                return lambda: self.read(
                    BY_NAME["alerts" if self._role in (Role.SINK, Role.CLUSTER) else "inventory"], GROUPS[self._role]
                )
            case "group", "Describe":
                return lambda: self.bus.lag("processors")
        raise AssertionError(f"no work for {entry}")

    async def read(self, topic: Topic, group: str | None = None) -> None:
        async with self.bus.subscribe((topic,), group, "earliest") as subscription:
            async with asyncio.timeout(60):
                while not (taken := await subscription.take(1, 1.0)) and group is None:
                    pass
                while group is not None and not subscription.owned:
                    await subscription.take(1, 1.0)
            if taken:
                await subscription.commit(taken)

    async def grow(self) -> None:
        self._partitions += 1
        await self.administration.grow(BY_NAME["alerts"].named(PREFIX), self._partitions)


@pytest.mark.parametrize("role", Role)
async def test_a_role_works_with_its_grants_and_names_the_one_that_is_taken_away(stand: Stand, role: Role) -> None:
    entries = stand.lists[role]
    assert {entry["principal"] for entry in entries} == {stand.principal(role)}
    async with Grants(stand.kafka.bootstrap) as grants, Work(stand, role) as work:
        await grants.add(entries)
        for entry in entries:
            await eventually(work.of(entry))
        for entry in entries:
            await grants.remove(entry)
            resource = entry["resource"]
            grant = Grant(resource["type"], resource["name"], entry["operation"], resource["pattern"] == "prefixed")
            said = await refused(work.of(entry))
            missing = str(grant) if not grant.prefixed else f"{grant.operation} on {grant.resource} `{grant.name}"
            assert missing in said, said
            assert f"--role {role}" in said or "hauberk topic acls" in said, said
            assert "\n" not in said
            await grants.add([entry])
            await eventually(work.of(entry))


async def test_a_node_writes_only_what_a_node_writes(stand: Stand) -> None:
    """An account of a node that was taken over: plans, policies, telemetry and the progress of processors are not its to write."""
    async with Grants(stand.kafka.bootstrap) as grants, Work(stand, Role.NODE) as work:
        await grants.add(stand.lists[Role.NODE])
        await eventually(lambda: work.bus.publish(BY_NAME["events.raw"], [Record(b"node-1", b"frame")]))
        for topic in TOPICS:
            if Role.NODE in topic.writers:
                continue
            ends = await ends_of(stand, topic)
            said = await refused(lambda topic=topic: work.bus.publish(topic, [Record(b"node-1", b"forged")]))
            assert f"Write on topic `{topic.named(PREFIX)}`" in said
            assert await ends_of(stand, topic) == ends, "nothing of it was written"


async def test_how_topics_forget_is_told_to_who_may_ask(stand: Stand) -> None:
    """A role's list lets it not, so it starts and says nothing; `cli` may, and who has DescribeConfigs beside the list."""
    async with Grants(stand.kafka.bootstrap) as grants, Work(stand, Role.PLANNER) as work, Work(stand, Role.CLI) as cli:
        await grants.add(stand.lists[Role.PLANNER])
        await grants.add(stand.lists[Role.CLI])
        mine = topics_of(Role.PLANNER)
        await eventually(lambda: work.bus.latest(INVENTORY))
        assert "DescribeConfigs on topic `acl." in await refused(lambda: work.bus.otherwise_forgotten(mine))
        assert await eventually(lambda: cli.bus.otherwise_forgotten(TOPICS)) == {}


async def test_only_the_planner_writes_plans(stand: Stand) -> None:
    async with Grants(stand.kafka.bootstrap) as grants:
        for role in Role:
            await grants.add(stand.lists[role])
            async with Work(stand, role) as work:
                write = lambda work=work: work.bus.publish(ENFORCEMENT_DESIRED, [Record(b"node-1", b"plan")])  # noqa: E731
                if role is Role.PLANNER:
                    await eventually(write)
                else:
                    ends = await ends_of(stand, ENFORCEMENT_DESIRED)
                    assert f"Write on topic `{ENFORCEMENT_DESIRED.named(PREFIX)}`" in await refused(write)
                    assert await ends_of(stand, ENFORCEMENT_DESIRED) == ends


async def test_who_forgets_a_node_leaves_its_plan_to_the_planner(stand: Stand, until: Any) -> None:
    here = Identity(kind=Kind.NODE, node="left", uid="node-uid")
    async with (
        Grants(stand.kafka.bootstrap) as grants, Work(stand, Role.NODE) as node, Work(stand, Role.PLANNER) as planner,
        Work(stand, Role.ADMIN) as admin,
    ):  # fmt: skip
        for role in (Role.NODE, Role.PLANNER, Role.ADMIN):
            await grants.add(stand.lists[role])
        await eventually(lambda: node.bus.publish(INVENTORY, [Record(here.key, encode_identity(here))]))
        engine = PlannerEngine(planner.bus)
        running = asyncio.create_task(engine.run())

        async def planned() -> bool:
            return b"left" in await admin.bus.latest(ENFORCEMENT_DESIRED)

        await until(planned)
        # Its identity, and its plan unless the planner was quicker.
        assert await eventually(lambda: forget(admin.bus, "left")) in (1, 2)
        assert not await planned()
        engine.stop()
        await asyncio.wait_for(running, 60)


async def ends_of(stand: Stand, topic: Topic) -> dict[int, int]:
    bus = await KafkaBus.open(stand.settings())
    try:
        return await bus.end(topic)
    finally:
        await bus.close()
