# SPDX-License-Identifier: Apache-2.0
"""What benchmarks over Kafka share: a broker of their own, topics of a prefix, recorded frames as many nodes', roles as processes.

Frames are those of the example recording, their rows put together to 601 events each (a third of a second of a node with 2,000
events a second): 143 behaviours of 80 processes, all alike in every frame. Neighbours: bench_fleet, bench_shares, bench_recovery,
bench_kafka_alert; `run.py` puts this directory on the path.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/kafka"))

from kafka_cluster import Cluster, free_ports  # noqa: E402
from kafka_jars import NoKafka  # noqa: E402
from kafka_topics import create_topics  # noqa: E402

from bus.contract import PATIENT, Record  # noqa: E402
from bus.kafka.batches import partition_of  # noqa: E402
from bus.kafka.bus import KafkaBus  # noqa: E402
from bus.kafka.settings import KafkaSettings  # noqa: E402
from schemas import frame as frames  # noqa: E402
from schemas.errors import Temporary  # noqa: E402
from schemas.topics import EVENTS_RAW, INVENTORY, POLICIES, Topic  # noqa: E402
from sensors.recordings.replay import Replay, ReplaySettings  # noqa: E402

Result = dict[str, dict[str, Any]]
PARTITIONS: Final = 6
FRAME_NS: Final = 300_500_000
"""What a frame covers: 601 events of a node with 2,000 a second."""
POLICY: Final[dict[str, Any]] = {
    "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": "bench"},
    "spec": {"nodeSelector": {"matchLabels": {}}, "severity": 5, "action": "Audit",
             "file": {"matchPaths": [{"path": "/etc/shadow"}]}},
}  # fmt: skip
KEY: Final = b"KubeArmorHostPolicy//bench"
_ROLE: Final = "from hauberk.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 4), "unit": unit, "n": n, "how": how}


def quantile(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


@contextmanager
def broker(*, heap: str = "256m", secure: bool = False) -> Iterator[tuple[Cluster, Path]]:
    """(a running broker, a directory beside it). SystemExit where there is none to be had. `secure`: with all listeners of
    `kafka_cluster.LISTENERS`."""
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as directory:
        try:
            cluster = Cluster(Path(directory) / "kafka", heap=heap, secure=secure)
        except NoKafka as error:
            raise SystemExit(f"no Kafka: {error}") from error
        try:
            cluster.start()
            yield cluster, Path(directory)
        finally:
            cluster.close()


async def world(cluster: Cluster, **given: Any) -> KafkaBus:
    """A bus on topics of its own. Patient: a crowded machine is no outage."""
    prefix = f"b{uuid.uuid4().hex[:8]}."
    await create_topics(cluster.bootstrap, prefix, PARTITIONS)
    patient = {"publish_seconds": 120.0, "call_seconds": 120.0, "away_seconds": 120.0, "session_seconds": 60.0}
    return await KafkaBus.open(KafkaSettings(bootstrap=cluster.bootstrap, prefix=prefix, **{**patient, **given}))


def recorded(node: str) -> tuple[list[Record], frames.Frame]:
    """(identities, one frame of all rows) of the recording, as `node`'s."""
    path = str(ROOT / "examples/recordings/host.hbrk")
    source = Replay(ReplaySettings(path=path, speed=0, node=node), "bench")
    known: list[Record] = []
    parts: list[frames.Frame] = []
    while not source.finished:
        batch = source.drain()
        known += batch.inventory
        parts += batch.frames
    header = msgspec.structs.replace(parts[0].header, number=0, events=sum(one.header.events for one in parts), lost=())
    return known, frames.Frame(
        header=header, occurrences=b"".join(one.occurrences for one in parts),
        definitions=b"".join(one.definitions for one in parts), folded=b"".join(one.folded for one in parts),
    )  # fmt: skip


def numbered(whole: frames.Frame, number: int, node: str, *, patient: bool = False) -> Record:
    """`whole` as the frame of that number of `node`, and as much later: counts of one second are one summary, so frames that all
    were of the same second would be committed when no more come. `patient`: as a node sends what it has sent before."""
    header = msgspec.structs.replace(
        whole.header, number=number, node=node, clock_offset_ns=whole.header.clock_offset_ns + number * FRAME_NS
    )
    value = frames.encode(msgspec.structs.replace(whole, header=header))
    return Record(node.encode(), value, ((PATIENT, b""),) if patient else ())


def spread(count: int) -> list[str]:
    """Names of nodes, as many in each partition of `events.raw`, partitions in turn. `count`: a multiple of PARTITIONS."""
    found: dict[int, list[str]] = {number: [] for number in range(PARTITIONS)}
    number = 0
    while any(len(names) < count // PARTITIONS for names in found.values()):
        names = found[partition_of(f"n{number}".encode(), PARTITIONS)]
        if len(names) < count // PARTITIONS:
            names.append(f"n{number}")
        number += 1
    return [name for row in zip(*found.values(), strict=True) for name in row]


async def put(bus: KafkaBus, topic: Topic, records: list[Record]) -> None:
    """Publish, again when a topic that was just made has no leader yet."""
    while True:
        try:
            return await bus.publish(topic, records)
        except Temporary:
            await asyncio.sleep(0.1)


async def known(bus: KafkaBus, nodes: Sequence[str]) -> None:
    """The policy and the identities of `nodes`."""
    await put(bus, POLICIES, [Record(KEY, json.dumps(POLICY).encode())])
    for node in nodes:
        await put(bus, INVENTORY, recorded(node)[0])


async def judged(bus: KafkaBus) -> None:
    """Wait until the processors have committed all frames."""
    while (await bus.lag("processors")).get(EVENTS_RAW.name, 1):  # noqa: ASYNC110 - another group's offsets
        await asyncio.sleep(0.1)


class Role:
    """`hauberk VERB` as a process, with metrics on the loopback."""

    def __init__(
        self, verb: Sequence[str], settings: KafkaSettings, state: Path, *, cores: str = "", **more: str
    ) -> None:
        (self.port,) = free_ports(1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")} | {
            "HAUBERK_STATE": str(state), "HAUBERK__BUS": json.dumps(msgspec.to_builtins(settings)),
            "HAUBERK__METRICS__ENABLED": "true", "HAUBERK__METRICS__PORT": str(self.port), **more,
        }  # fmt: skip
        pinned = ["taskset", "-c", cores] if cores else []
        self.process = subprocess.Popen(
            [*pinned, sys.executable, "-c", _ROLE, *verb], env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu(self) -> float:
        """Seconds of processor time of all threads, to the nanosecond."""
        return (
            sum(int((one / "schedstat").read_text().split()[0]) for one in Path(f"/proc/{self.pid}/task").iterdir())
            / 1e9
        )

    def memory(self) -> float:
        """Resident bytes / 1e6."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def metric(self, name: str) -> float:
        """The sum of its series now; 0 when there is none, or no answer yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def end(self) -> None:
        """In good order; who takes longer than a minute is killed."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def processor(settings: KafkaSettings, directory: Path, **given: Any) -> Role:
    """One that throttles nothing."""
    state = directory / f"state-{uuid.uuid4().hex[:8]}"
    return Role(["processor"], settings, state, HAUBERK__PROCESSOR__THROTTLE__MAX_ALERTS_PER_SECOND="0", **given)


async def shared(roles: Sequence[Role]) -> None:
    """Wait until the partitions are shared out among `roles`, all of them."""
    deadline = time.monotonic() + 120
    while True:
        shares = [await asyncio.to_thread(one.metric, "hauberk_pump_partitions") for one in roles]
        if sum(shares) == PARTITIONS and (min(shares) > 0 or len(roles) > PARTITIONS):
            return
        if time.monotonic() > deadline or any(one.process.poll() is not None for one in roles):
            raise TimeoutError(f"expected {PARTITIONS} partitions among {len(roles)} processors, got {shares}")
        await asyncio.sleep(0.2)
