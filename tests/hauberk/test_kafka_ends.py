# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while brokers are away or hang: a role ends within a second, waits for nobody, and says what comes again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kafka_cluster
import msgspec
import pytest
from kafka_topics import create_topics
from stopping import ends

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.alert import Alert
from schemas.enforcement import Plan, digest
from schemas.enforcement import encode as encode_plan
from schemas.identity import Identity, Kind, encode
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED, EVENTS_RAW, INVENTORY
from sensors.recordings.recording import BlockKind, RecordingReader

POLICY = str(Path(__file__).parents[2] / "examples/policies/host-audit-shadow.yaml")
NOBODY = "127.0.0.1:1"
OTHERS = ("processor", "planner", "sink")


@pytest.fixture
def start(hauberk: Any) -> Iterator[Callable[..., Any]]:
    """start(role, bootstrap, **bus): the role as a process; wait until it is `ready`."""
    from kernel.loading import unload

    hauberk.sinks = [{"type": "blackhole"}]
    hauberk.pins += "-ends"
    node = {"HAUBERK__INVENTORY__RUNTIMES": "[]", "HAUBERK__SENSOR__LOAD__HOST_VISIBILITY": "0", "HAUBERK__NODE": "n1"}

    def start(role: str, bootstrap: str, **bus: Any) -> Any:
        bus = {"type": "kafka", "bootstrap": bootstrap} | bus
        more = {"HAUBERK_STATE": str(hauberk.home / f"state-{role}"), "HAUBERK__BUS": json.dumps(bus)}
        return hauberk.start(role, **more, **(node if role == "node" else {}), HAUBERK__METRICS__ENABLED="true",
                             HAUBERK__METRICS__PORT=str(kafka_cluster.free_ports(1)[0]))  # fmt: skip

    yield start
    hauberk.close()
    if os.geteuid() == 0:
        unload(hauberk.pins)


@pytest.mark.fault(
    "Ctrl-C while the brokers are away (nobody there, an address that answers nothing, one that packets do not reach)",
    "ends within a second, apart from waiting for a core of a busy machine; what was not done comes again",
)
@pytest.mark.parametrize("where", ["nobody", "silent", "blackhole"])
@pytest.mark.parametrize("roles", [OTHERS, pytest.param(("node",), marks=pytest.mark.kernel)], ids=("others", "node"))
def test_a_stop_without_brokers(
    start: Callable[..., Any],
    silent: str,
    blackhole: str,
    roles: Sequence[str],
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if "node" in roles:
        request.getfixturevalue("live")
    # They start at the same time and end one after the other: a start costs a core, the end is what is measured.
    started = [start(role, {"nobody": NOBODY, "silent": silent, "blackhole": blackhole}[where]) for role in roles]
    for running in started:
        running.ready()
        if where == "nobody":
            running.until("nobody there")
    for running in started:
        ends(running, tmp_path)


@pytest.mark.fault(
    "Ctrl-C while the broker hangs (SIGSTOP), noticed or not yet",
    "each role ends within a second; what was not done comes again",
)
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
async def test_a_stop_while_the_broker_hangs(
    start: Callable[..., Any], kafka_clusters: Any, until: Any, tmp_path: Path
) -> None:
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "ends.", 2)
    short = {"prefix": "ends.", "away_seconds": 2.0, "call_seconds": 3.0, "publish_seconds": 3.0}
    for noticed in (False, True):
        try:
            running = [start(role, cluster.bootstrap, **short) for role in ("node", *OTHERS)]
            for one in running:
                await asyncio.to_thread(one.ready)
                await until(lambda: asyncio.to_thread(_ready, one))  # noqa: B023
            cluster.pause()
            for one in running:
                if noticed:
                    await asyncio.to_thread(one.until, "kafka: away")
            for one in running:
                await asyncio.to_thread(ends, one, tmp_path)
        finally:
            cluster.resume()


FOLLOWING = (
    ("logs", "--from", "earliest", "--json"), ("get", "policies", "-w"), ("get", "alerts", "-w"),
    ("topic", "tail", "alerts", "--from", "earliest"), ("apply", "-f", POLICY, "--wait", "300"),
)  # fmt: skip


@pytest.mark.fault(
    "Ctrl-C of a verb that follows (`logs`, `get -w`, `topic tail`, `apply --wait`) while the broker hangs (SIGSTOP), `apply` also "
    "when it has noticed",
    "ends within a second",
)
async def test_a_verb_that_follows_ends_while_the_broker_hangs(
    hauberk: Any, kafka_clusters: Any, until: Any, tmp_path: Path
) -> None:
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "ends.", 2)
    bus = await KafkaBus.open(KafkaSettings(bootstrap=cluster.bootstrap, prefix="ends."))
    alert: Any = Alert(Timestamp=1, UpdatedTime="2026-01-01T00:00:00.000000Z", EventID="n1:b:1", PolicyName="p")
    node = Identity(kind=Kind.NODE, node="n1", uid="node-n1")
    plan = Plan(node="n1", generation=1, digest=digest(()), scopes=())
    try:
        await bus.publish(ALERTS, [Record(b"n1", msgspec.json.encode(alert))])
        # `apply --wait` waits for a node that is there and says nothing.
        await bus.publish(INVENTORY, [Record(node.key, encode(node))])
        await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode_plan(plan))])
    finally:
        await bus.close()
    settings = {"type": "kafka", "bootstrap": cluster.bootstrap, "prefix": "ends."}
    there = {"HAUBERK__BUS": json.dumps(settings)}
    assert (await asyncio.to_thread(hauberk, "apply", "-f", POLICY, **there)).returncode == 0
    # Of those, `apply --wait` alone goes on when it has noticed.
    for noticed, verbs, more in (
        (False, FOLLOWING, {}),
        (True, FOLLOWING[-1:], {"away_seconds": 2.0, "call_seconds": 3.0}),
    ):
        there = {"HAUBERK__BUS": json.dumps(settings | more)}
        running = [hauberk.start(*words, **there) for words in verbs]
        for one in running:
            await until(lambda: one.told() or "waiting for n1" in one.said() or one.process.poll() is not None)  # noqa: B023
            assert one.process.poll() is None, one.said()
        cluster.pause()
        try:
            for one in running:
                if noticed:
                    await asyncio.to_thread(one.until, "cannot be followed")
                await asyncio.to_thread(ends, one, tmp_path, 130)
        finally:
            cluster.resume()


@pytest.mark.fault(
    "Ctrl-C of `record --attach` while the broker hangs (SIGSTOP), before and after its first record",
    "ends within a second; all that it has read is in the file, which is whole",
)
@pytest.mark.fault(
    "`record --attach` whose brokers are away",
    "ends with 3 and the reason; all that it has read is in the file, which is whole",
)
async def test_a_recording_ends_whole_while_the_broker_hangs(
    hauberk: Any, kafka_clusters: Any, until: Any, tmp_path: Path
) -> None:
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "ends.", 2)
    settings = {"type": "kafka", "bootstrap": cluster.bootstrap, "prefix": "ends."}
    there = {"HAUBERK__BUS": json.dumps(settings)}
    bus = await KafkaBus.open(KafkaSettings(bootstrap=cluster.bootstrap, prefix="ends."))
    node = Identity(kind=Kind.NODE, node="n1", uid="node-n1")
    large = [Record(b"n1", os.urandom(200_000)) for _ in range(2)]

    def file(name: str) -> Path:
        return tmp_path / f"{name}.hbrk"

    async def written(running: Any, name: str) -> bool:
        # More than a block, which is written at once; what comes behind it waits in memory.
        assert running.process.poll() is None, running.said()
        await bus.publish(EVENTS_RAW, [Record(b"n1", b"before"), *large, Record(b"n1", b"behind")])
        return file(name).stat().st_size > 100_000

    def whole(name: str) -> list[bytes | None]:
        with RecordingReader(str(file(name))) as reader:
            values = [entry.value for entry in reader if entry.kind is BlockKind.FRAMES]
            assert not reader.truncated
        return values

    def listens(running: Any) -> bool:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
        return bool(caught & 1 << signal.SIGTERM - 1)

    try:
        await bus.publish(INVENTORY, [Record(node.key, encode(node))])
        recording = hauberk.start("record", "--attach", str(file("read")), **there)
        await until(file("read").exists)
        await until(lambda: written(recording, "read"))
        cluster.pause()
        await asyncio.to_thread(ends, recording, tmp_path)
        values = whole("read")
        assert {b"before", large[0].value, large[1].value} <= set(values)
        assert f"{len(values)} frames, " in recording.said()

        # It has not come to read anything.
        hanging = hauberk.start("record", "--attach", str(file("hung")), **there)
        await until(lambda: listens(hanging))
        await asyncio.to_thread(ends, hanging, tmp_path)
        assert "the bus does not answer" in hanging.said()
        cluster.resume()

        soon = {"HAUBERK__BUS": json.dumps(settings | {"away_seconds": 2.0, "call_seconds": 3.0})}
        left = hauberk.start("record", "--attach", str(file("away")), **soon)
        await until(file("away").exists)
        await until(lambda: written(left, "away"))
        cluster.pause()
        assert await asyncio.to_thread(left.process.wait, 60) == 3, left.said()
        assert "expected an answer of the brokers" in left.said()
        assert b"before" in whole("away")
    finally:
        cluster.resume()
        await bus.close()


def _ready(running: Any) -> bool:
    url = (
        running.until(r"metrics and health: (http://\S+)/metrics")
        .partition("metrics and health: ")[2]
        .split("/metrics")[0]
    )
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
