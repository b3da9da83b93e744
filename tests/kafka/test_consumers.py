# SPDX-License-Identifier: Apache-2.0
"""The programs of `examples/consumers`, which know nothing of Hauberk, read a real broker: each event as we tell it ourselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka_jars
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bus.contract import Record
from bus.memory import MemoryBus
from policy.documents import key, to_json
from policy.parse import parse
from processors.engine import Processor
from schemas import telemetry
from schemas.alert import HEADERS
from schemas.expand import logs
from schemas.frame import decode
from schemas.operations import Operation, class_of
from schemas.topics import ALERTS, EVENTS_RAW, POLICIES, TELEMETRY
from sensors.node.agent import Agent
from sensors.recordings.replay import Replay, ReplaySettings

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSUMERS = EXAMPLES / "consumers"
POLICY = EXAMPLES / "policies/host-audit-shadow.yaml"


async def judged() -> dict[str, list[Record]]:
    """Alerts and telemetry of the recording that the examples come with."""
    bus = MemoryBus()
    policies = parse(POLICY.read_bytes(), "p").policies
    await bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in policies])
    await Agent(
        Replay(ReplaySettings(path=str(EXAMPLES / "recordings/host.hbrk"), speed=0, rebase=False), "run"), bus
    ).run()
    sent = sum(decode(record.value or b"").header.events for record in bus.records(EVENTS_RAW))
    processor = Processor(bus)
    running = asyncio.create_task(processor.run())
    async with asyncio.timeout(120):
        while processor.stats().events < sent or processor.stats().open_frames:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.02)
    processor.stop()
    await running
    return {topic.name: list(bus.records(topic)) for topic in (ALERTS, TELEMETRY)}


async def publish(bootstrap: str, prefix: str, records: dict[str, list[Record]]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(topic.named(prefix), 2, 1) for topic in (ALERTS, TELEMETRY)])
        assert not any(code for _, code, _ in answer.topic_errors), answer
    finally:
        await admin.close()
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type="zstd", max_request_size=4 << 20
    ) as producer:
        for topic in (ALERTS, TELEMETRY):
            for one in records[topic.name]:
                await producer.send_and_wait(topic.named(prefix), one.value, key=one.key, headers=list(one.headers))


class Stand:
    """A broker with what a processor wrote, and the consumers run against it."""

    def __init__(self, kafka: Any, prefix: str, records: dict[str, list[Record]]) -> None:
        self.kafka = kafka
        self.prefix = prefix
        self.records = records

    def read(self, command: list[str], where: Path) -> tuple[list[Any], str]:
        """(lines, standard error) of a consumer that ends by itself."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(command, cwd=where, env=plain, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def stand(kafka: Any) -> Stand:
    """Telemetry ends with a record of a version to come, as a processor of tomorrow would write it."""
    records = asyncio.run(judged())
    [*frames, last] = records["telemetry"]
    tomorrow = msgspec.msgpack.decode(last.value or b"")
    tomorrow[0][0] = 2
    records["telemetry"] = [*frames, last, Record(last.key, msgspec.msgpack.encode([*tomorrow, "new"]))]
    prefix = "consumers."
    asyncio.run(publish(kafka.bootstrap, prefix, records))
    return Stand(kafka, prefix, records)


def python(stand: Stand, topic: str, tmp_path: Path) -> tuple[list[Any], str]:
    command = [
        sys.executable, str(CONSUMERS / "python/consumer.py"), topic, "--bootstrap", stand.kafka.bootstrap, "--prefix", stand.prefix,
        "--group", f"python-{topic}", "--records", str(len(stand.records[topic])),
    ]  # fmt: skip
    return stand.read(command, tmp_path)


def java(stand: Stand, topic: str, tmp_path: Path) -> tuple[list[Any], str]:
    if shutil.which("javac") is None:
        pytest.skip("no `javac` on PATH (Debian's package default-jdk-headless)")
    properties = tmp_path / "client.properties"
    properties.write_text(f"prefix={stand.prefix}\ngroup.id=java-{topic}\nrecords={len(stand.records[topic])}\n")
    command = [
        "java",
        "-XX:TieredStopAtLevel=1",
        f"-Djava.io.tmpdir={tmp_path}",
        "-cp",
        f"{jars()}/*",
        str(CONSUMERS / "java/Consumer.java"),
    ]
    return stand.read([*command, topic, stand.kafka.bootstrap, str(properties)], tmp_path)


def test_the_page_says_what_is_run_here() -> None:
    page = (CONSUMERS / "README.md").read_text()
    for line in (
        "python python/consumer.py --bootstrap kafka:9092 alerts", "mvn -q dependency:copy-dependencies -DoutputDirectory=jars",
        "java -cp 'jars/*' Consumer.java telemetry kafka:9092",
    ):  # fmt: skip
        assert line in page


def jars() -> Path:
    """What the page tells a reader to fetch, fetched once for each `pom.xml`."""
    pom = CONSUMERS / "java/pom.xml"
    place = kafka_jars.home().parent / f"consumer-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if not place.is_dir():
        fresh = place.with_name(f"{place.name}.{os.getpid()}")
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fresh}"]
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240, check=False
        )
        if done.returncode:
            pytest.skip(f"Maven cannot fetch what the consumer needs: {done.stdout[-300:]}")
        try:
            fresh.rename(place)
        except OSError:  # another worker was quicker
            shutil.rmtree(fresh)
    return place


BOTH = pytest.mark.parametrize("consumer", [python, java])


@BOTH
def test_alerts_are_cloud_events(stand: Stand, consumer: Callable[..., Any], tmp_path: Path) -> None:
    lines, _ = consumer(stand, "alerts", tmp_path)
    assert len(lines) == len(stand.records["alerts"]) > 0
    by_id = {line["event"]["id"]: line for line in lines}
    assert len(by_id) == len(lines)
    for record in stand.records["alerts"]:
        headers = {name: value.decode() for name, value in record.headers}
        assert set(headers) == set(HEADERS)
        line = by_id[headers["ce_id"]]
        assert line["event"] == {name[3:]: value for name, value in headers.items() if name.startswith("ce_")}
        assert line["alert"] == msgspec.json.decode(record.value or b"")
        assert line["alert"]["EventID"] == headers["ce_id"]


@BOTH
def test_telemetry_is_expanded(stand: Stand, consumer: Callable[..., Any], tmp_path: Path) -> None:
    lines, said = consumer(stand, "telemetry", tmp_path)
    ours = {}
    for record in stand.records["telemetry"][:-1]:
        frame = telemetry.decode(record.value or b"")
        ours |= {log.EventID: log for log in logs(frame)}
    assert len(ours) > 100
    assert {line["id"] for line in lines} == set(ours)
    assert len(lines) == len(ours)
    for line in lines:
        log = ours[line["id"]]
        assert line["time"] // 1_000_000_000 == log.Timestamp
        assert line["node"] == log.HostName
        assert line["count"] == log.Count
        assert line["container"] == log.ContainerName
        if line["count"] == 1:
            assert line["pid"] == log.HostPID
        assert class_of(Operation[line["operation"]]).label == log.Operation
        if line["operation"] == "OPEN":
            assert line["resource"] == log.Resource
            assert line["executable"] == log.ProcessName
        if line["operation"] == "EXEC" and line["arguments"]:
            assert " ".join(line["arguments"][1:]) in log.Resource
    assert {line["operation"] for line in lines} >= {"EXEC", "OPEN"}
    # The record of tomorrow is said and passed over; nothing hangs and nothing before it is lost.
    assert "expected a frame of version 1 at most, got 2; get a newer consumer" in said


def test_both_know_every_operation() -> None:
    sys.path.insert(0, str(CONSUMERS / "python"))
    try:
        import consumer
    finally:
        sys.path.pop(0)
    assert {one.value: one.name for one in Operation} == consumer.OPERATIONS
    source = (CONSUMERS / "java/Consumer.java").read_text()
    for one in Operation:
        assert f'Map.entry({one.value}, "{one.name}")' in source
    assert source.count("Map.entry(") == len(Operation)
