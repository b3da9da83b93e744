# SPDX-License-Identifier: Apache-2.0
"""What one types works against Kafka and a store elsewhere, and says in one sentence what it lacks; one sink is a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka_roles import POLICY, POLICY_FILE, Roles, eventually, metric, played, roles_on

from bus.contract import Record
from bus.kafka.administration import Administration
from bus.kafka.settings import KafkaSettings
from schemas import expand, telemetry
from schemas.enforcement import Receipt, digest
from schemas.enforcement import encode as encode_receipt
from schemas.identity import decode as decode_identity
from schemas.operations import Backend
from schemas.topics import ALERTS, ENFORCEMENT_STATUS, EVENTS_RAW, INVENTORY, POLICIES, SUMMARIES, TELEMETRY, Topic

pytestmark = pytest.mark.timeout(400)

NOTHING = """apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: nothing
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: "*"}}
  file: {matchPaths: [{path: /nowhere}]}
  action: Audit
"""


@pytest.fixture
async def cluster(hauberk: Any, kafka: Any, kafka_prefix: str) -> AsyncIterator[Roles]:
    async with roles_on(kafka, kafka_prefix, hauberk) as made:
        yield made


async def _read(cluster: Roles, group: str, topic: str) -> None:
    """Wait until `group` has committed what is on `topic`."""
    async with asyncio.timeout(120):
        while (await cluster.bus.lag(group)).get(topic, 1):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


def _fetched(url: str) -> bytes:
    """What `url` answers; HTTPError when that is not a success."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


async def test_verbs_with_the_brokers_and_a_store(cluster: Roles) -> None:
    home = cluster.hauberk.home
    store, lines, other = home / "counts" / "summary.db", home / "alerts.jsonl", home / "other.jsonl"
    store.parent.mkdir()
    sinks = json.dumps(
        [
            {"type": "store", "name": "counts", "path": str(store)},
            {"type": "file", "name": "siem", "path": str(lines)},
            {"type": "file", "name": "other", "path": str(other)},
        ]
    )
    await cluster.judge()
    identities, records = played("n0")
    await cluster.put(INVENTORY, identities)
    await cluster.put(EVENTS_RAW, records)
    processor = cluster.start("processor")
    counts, siem = (cluster.start("sink", name, HAUBERK__SINKS=sinks) for name in ("counts", "siem"))
    for one in (processor, counts, siem):
        await asyncio.to_thread(one.ready)
    assert "hauberk sink siem: running" in siem.said()
    await cluster.judged()
    await _read(cluster, "sink.counts", SUMMARIES.name)
    await _read(cluster, "sink.siem", ALERTS.name)

    # One sink, as a process of its own.
    def up() -> bool:
        return metric(siem, 'hauberk_sink_up{sink="siem"}') == 1 and metric(siem, "hauberk_sink_accepted_total") > 0

    await eventually(up)
    assert await asyncio.to_thread(metric, siem, "hauberk_sink_partitions") == 6
    assert await asyncio.to_thread(metric, siem, "hauberk_kafka_rebalances_total") >= 1
    assert await asyncio.to_thread(metric, siem, "hauberk_kafka_away") == 0
    assert await asyncio.to_thread(metric, processor, "hauberk_kafka_records_total") > 100
    url = re.search(r"metrics and health: (http://\S+)/metrics", siem.said())
    assert url is not None
    assert b'"ready":true' in await asyncio.to_thread(_fetched, f"{url[1]}/readyz")
    assert siem.end(signal.SIGTERM) == 0, siem.said()
    told = await cluster.alerts()
    assert len(lines.read_text().splitlines()) == len(told) > 100, "what was on the topic is out"
    assert not other.exists(), "the other sink of the settings is another process's"
    assert "page" not in siem.said(), "the store is another process's too"

    # The store's own process serves the page.
    page = re.search(r"(?m)^  page       (http://127\.0\.0\.1:\d+/)$", counts.said())
    assert page is not None
    assert json.loads(await asyncio.to_thread(_fetched, f"{page[1]}api/survey"))["workloads"]
    there = {"HAUBERK__SINKS": sinks}
    assert "/etc/shadow" in await cluster.says("summary", "--host", "--agg", **there)
    backtest = await cluster.says("policy", "backtest", "-f", POLICY_FILE, **there)
    assert "audit-password-hashes" in backtest
    assert "/etc/shadow" in backtest
    nothing = home / "nothing.yaml"
    nothing.write_text(NOTHING)
    diff = await cluster.says("policy", "diff", str(nothing), POLICY_FILE, code=1, **there)
    assert "/etc/shadow" in diff
    assert "kind: KubeArmorPolicy" in await cluster.says("discover", **there)
    doctor = await cluster.says("doctor", HAUBERK_STATE=str(home), **there)
    assert re.search(r"(?m)^ok +brokers +`\S+` has the 12 topics", doctor), doctor
    assert re.search(r"(?m)^ok +summaries +`\S+` holds [1-9]\d* identities", doctor), doctor
    assert counts.end(signal.SIGTERM) == 0, counts.said()
    await _lists_what_is_there(cluster)
    assert processor.end(signal.SIGTERM) == 0, processor.said()


async def _lists_what_is_there(cluster: Roles) -> None:
    """Each verb that lists, against what the test reads from the brokers by itself."""
    receipt = Receipt(
        node="n0", generation=7, digest=digest(()), applied_ns=time.time_ns(), took_ms=1.5, backends=(Backend.CGROUP,),
        scopes=2, rules=3,
    )  # fmt: skip
    await cluster.put(ENFORCEMENT_STATUS, [Record(b"n0", encode_receipt(receipt))])
    for number, one in enumerate((await cluster.alerts())[::20]):
        # Of other nodes at the same times: they lie on other partitions.
        other = json.loads(one.record.value or b"") | {"EventID": f"other:{number}"}
        await cluster.put(ALERTS, [Record(b"n%d" % (number % 7), json.dumps(other).encode())])
    told = await cluster.alerts()
    alerts = [json.loads(one.record.value or b"") for one in told]
    ids = sorted(alert["EventID"] for alert in alerts)
    times = sorted(alert["UpdatedTime"] for alert in alerts)
    hits = sum(alert.get("Count", 1) for alert in alerts if alert["Type"] == "MatchedHostPolicy")
    assert len({one.partition for one in told}) > 2, "alerts lie on several partitions"
    assert hits > 100

    [policy] = json.loads(await cluster.says("get", "policies", "-o", "json"))
    assert policy["spec"] == POLICY["spec"]
    assert policy["status"]["hits"] == hits
    assert await cluster.says("get", "hsp", "-o", "name") == "hsp/everything\n"
    shown = json.loads(await cluster.says("get", "alerts", "-o", "json", "--limit", "100000"))
    assert sorted(alert["EventID"] for alert in shown) == ids
    assert [alert["UpdatedTime"] for alert in shown] == times
    shown = json.loads(await cluster.says("get", "alerts", "-o", "json", "--limit", "25"))
    assert [alert["UpdatedTime"] for alert in shown] == times[-25:]
    there = {identity.uid: identity for identity in map(decode_identity, await _values(cluster, INVENTORY))}
    workloads = json.loads(await cluster.says("get", "workloads", "-o", "json"))
    assert {one["uid"] for one in workloads} == there.keys()
    [node] = json.loads(await cluster.says("get", "nodes", "-o", "json"))
    assert (node["node"], node["receipt"]["generation"], node["receipt"]["rules"]) == ("n0", 7, 3)

    described = await cluster.says("describe", "policy", "everything")
    assert yaml.safe_load(described.split("\n\n")[0])["status"]["hits"] == hits
    latest = described.split("\nLatest alerts:\n")[1].splitlines()[1:]
    assert [line.split()[0] for line in latest] == [at[11:19] for at in times[-10:]]
    described = yaml.safe_load((await cluster.says("describe", "node", "n0")).split("\n\n")[0])
    assert (described["node"], described["receipt"]["generation"]) == ("n0", 7)
    one = next(alert for alert in alerts if ids.count(alert["EventID"]) == 1)
    described = yaml.safe_load(await cluster.says("describe", "alert", one["EventID"]))
    assert (described["EventID"], described["Resource"]) == (one["EventID"], one["Resource"])

    lines = (await cluster.says("logs", "--from", "earliest", "--no-follow", "--json")).splitlines()
    assert sorted(json.loads(line)["EventID"] for line in lines) == ids
    system = ("logs", "--log-filter", "system", "--from", "earliest", "--no-follow", "--json")
    rows = [log for value in await _values(cluster, TELEMETRY) for log in expand.logs(telemetry.decode(value))]
    assert len((await cluster.says(*system)).splitlines()) == len(rows)

    tail = await cluster.says("topic", "tail", "alerts", "--from", "earliest", "--until-quiet", "1")
    found = {(line["partition"], line["offset"]): line["value"] for line in map(json.loads, tail.splitlines())}
    assert found == {(one.partition, one.offset): alert for one, alert in zip(told, alerts, strict=True)}
    [line] = (await cluster.says("topic", "tail", "policies", "--from", "earliest", "--until-quiet", "1")).splitlines()
    assert json.loads(line)["value"] == POLICY


async def _values(cluster: Roles, topic: Topic) -> list[bytes]:
    """What is on a topic; the newest of each key where it is compacted."""
    if topic.compacted:
        return [record.value for record in (await cluster.bus.latest(topic)).values() if record.value is not None]
    found: list[bytes] = []
    async with cluster.bus.subscribe((topic,), None, "earliest") as reader:
        ends = await cluster.bus.end(topic)
        while any(reader.position[topic.name, number] < end for number, end in ends.items()):
            found += [one.record.value for one in await reader.take(1000, 1.0) if one.record.value is not None]
    return found


async def test_verbs_say_what_they_lack(cluster: Roles) -> None:
    await cluster.judge()
    assert "everything" in await cluster.says("completion", "--words", "describe", "policy", "")
    # The store is another machine's.
    for verb in (
        ("summary", "--host"), ("policy", "backtest", "-f", POLICY_FILE), ("policy", "diff", POLICY_FILE, POLICY_FILE),
        ("discover",),
    ):  # fmt: skip
        lacking = await cluster.says(*verb, code=2)
        assert "expected a summary store at" in lacking
        assert "whose `hauberk sink` has a `store`" in lacking
        assert len(lacking.splitlines()) == 1
    lacking = await cluster.says("sink", "sime", code=2, HAUBERK__SINKS='[{"type": "blackhole", "name": "siem"}]')
    assert "expected the name of a sink of the settings (siem), got `sime`; did you mean `siem`?" in lacking
    assert len(lacking.splitlines()) == 1


@pytest.mark.parametrize(
    ("topic", "what", "found", "expected", "code"),
    [
        (POLICIES, "cleanup.policy", "delete", "compact", 1),
        (INVENTORY, "message.timestamp.type", "CreateTime", "LogAppendTime", 0),
    ],
    ids=["cleanup", "time"],
)
async def test_doctor_tells_of_a_topic_with_a_wrong_config(
    hauberk: Any, kafka: Any, kafka_prefix: str, topic: Topic, what: str, found: str, expected: str, code: int
) -> None:
    bus = {"type": "kafka", "bootstrap": kafka.bootstrap, "prefix": kafka_prefix}
    there = {"HAUBERK__BUS": json.dumps(bus), "HAUBERK__SINKS": '[{"type": "blackhole"}]'}
    assert (await asyncio.to_thread(hauberk, "topic", "create", **there)).returncode == 0
    well = await asyncio.to_thread(hauberk, "doctor", **there)
    assert re.search(r"(?m)^ok +brokers ", well.stdout), well.stdout
    assert not re.search(r"(?m)^\w+ +topics ", well.stdout), well.stdout
    administration = Administration(KafkaSettings(bootstrap=kafka.bootstrap, prefix=kafka_prefix))
    try:
        await administration.alter({topic.named(kafka_prefix): {what: found}})
    finally:
        await administration.close()

    def told() -> str:
        done = hauberk("doctor", **there)
        return str(done.stdout) if done.returncode == (code or well.returncode) and " topics " in done.stdout else ""

    await eventually(told)
    [line] = [line for line in (await asyncio.to_thread(told)).splitlines() if " topics " in line]
    assert line.startswith("bad" if code else "warn")
    assert f"`{topic.named(kafka_prefix)}` has {what} `{found}`, expected `{expected}`" in line
    assert "run `hauberk topic alter`" in line


async def test_without_brokers_each_verb_says_so_once(cluster: Roles) -> None:
    nobody = json.dumps({"type": "kafka", "bootstrap": "127.0.0.1:1", "call_seconds": 3.0, "publish_seconds": 3.0})
    there = {"HAUBERK__BUS": nobody}
    for verb in (
        ("get", "policies"), ("logs", "--no-follow"), ("topic", "create"), ("apply", "-f", POLICY_FILE),
    ):  # fmt: skip
        said = await cluster.says(*verb, code=3, **there)
        assert "expected a broker of Kafka, got none: 127.0.0.1:1: nobody there" in said
        assert len(said.splitlines()) == 1, (verb, said)
    assert await cluster.says("completion", "--words", "describe", "policy", "", **there) == "\n"
    doctor = await cluster.says("doctor", code=1, HAUBERK_STATE=str(Path(cluster.hauberk.home)), **there)
    assert len(re.findall(r"(?m)^bad +brokers +expected a broker of Kafka, got none", doctor)) == 1, doctor
