# SPDX-License-Identifier: Apache-2.0
"""The way out: alerts and telemetry to a file, summaries to the store, alerts to a syslog server.

Through the real path: records on the bus in memory, delivery, the component, a file on this machine's disk. CPU figures are
of this process on one thread; files are synced each batch as by default. Neighbours: sinks/file.py, sinks/store, sinks/syslog.py.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from bus.contract import Delivery, Record
from bus.memory import MemoryBus, MemorySettings
from schemas import expand, summary, telemetry
from schemas.alert import Alert, encode_alert
from schemas.behaviour import Behaviour
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind, Owner
from schemas.kernel import OCCURRENCE
from schemas.operations import Operation
from schemas.summary import Summary, SummaryEntry
from schemas.telemetry import Enriched, ProcessContext, TelemetryFrame
from schemas.topics import ALERTS, SUMMARIES, TELEMETRY, Topic
from schemas.verdict import Verdict
from sinks.delivery.consumer import SinkDelivery
from sinks.delivery.filters import Filter
from sinks.delivery.reader import ItemReader
from sinks.file import FileSettings, FileSink
from sinks.formats.exposition import Family, render
from sinks.sink import Sink
from sinks.store.queries import SqliteReader
from sinks.store.sink import StoreSettings, StoreSink
from sinks.store.sqlite import SqliteStore
from sinks.store.store import Query
from sinks.syslog import SyslogSettings, SyslogSink

Result = dict[str, dict[str, Any]]

_START = int(time.time()) // 60 * 60


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about twenty seconds."""
    result: Result = {}
    with tempfile.TemporaryDirectory() as directory:
        result |= asyncio.run(_alerts_to_file(directory, max(1000, int(200_000 * scale))))
        result |= asyncio.run(_alert_latency(directory, max(50, int(500 * scale))))
        result |= _read(max(1000, int(50_000 * scale)))
        result |= _expand(max(2, int(200 * scale)))
        result |= asyncio.run(_telemetry_to_file(directory, max(2, int(200 * scale))))
        result |= _store(directory, max(4, int(300 * scale)))
        result |= asyncio.run(_summaries_to_store(directory, max(4, int(300 * scale))))
        result |= asyncio.run(_alerts_to_syslog(max(1000, int(100_000 * scale))))
    result |= _scrape(max(100, int(1000 * scale)))
    return result


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3 if value < 10 else 0), "unit": unit, "n": n, "how": how}


def _identity() -> Identity:
    return Identity(
        kind=Kind.CONTAINER, node="node-1", uid="4771ac3e9074f1bf8b01038d0cf776960aa44b18edccc0f2b017e8465dedefcd",
        container_name="web", image="docker.io/library/nginx:1.27", namespace="shop", pod="web-8dc5d8d48-5s8pf",
        owner=Owner("Deployment", "web", "shop"), labels={"app": "web", "tier": "front"},
    )  # fmt: skip


def _alert(number: int) -> bytes:
    return encode_alert(
        Alert(
            Timestamp=_START, UpdatedTime="2025-12-16T05:37:19.127331Z", ClusterName="default", HostName="node-1",
            NamespaceName="shop", PodName="web-8dc5d8d48-5s8pf", Labels="app=web,tier=front", ContainerID="4771ac3e9074",
            ContainerName="web", ContainerImage="docker.io/library/nginx:1.27", HostPPID=190507, HostPID=191949, PPID=1,
            PID=113, UID=0, ParentProcessName="/bin/bash", ProcessName="/usr/bin/apt", PolicyName="block-pkg-mgmt",
            Severity="5", Tags="NIST,SI-4", ATags=["NIST", "SI-4"], Message="package manager", Type="MatchedPolicy",
            Source="/bin/bash", Operation="Process", Resource="/usr/bin/apt update", Data="lsm=SECURITY_BPRM_CHECK",
            EventData={"Lsm": "SECURITY_BPRM_CHECK"}, Enforcer="BPFLSM", Action="Block", Result="Permission denied",
            Cwd="/", TTY="pts0", EventID=f"node-1:boot:{number}",
        )
    )  # fmt: skip


def _frame(rows: int = 2000, behaviours: int = 60, processes: int = 12) -> TelemetryFrame:
    operations = (Operation.OPEN, Operation.OPEN, Operation.CONNECT, Operation.UNLINK)
    table = tuple(
        Enriched(
            behaviour=Behaviour(
                id=number + 1, operation=operations[number % 4], executable="/usr/sbin/nginx", parent="/usr/sbin/nginx",
                resource=f"/usr/share/nginx/html/{number}.html", syscall=257, syscall_name="openat", flags=0o2000000,
                family=2, socket_type=1, protocol=6, address="10.1.2.3", port=8000 + number,
            ),
            identity=0, verdict=Verdict(),
        )
        for number in range(behaviours)
    )  # fmt: skip
    contexts = tuple(
        ProcessContext(process=number, executable="/usr/sbin/nginx", arguments=("nginx", "-g", "daemon off;"), cwd="/")
        for number in range(processes)
    )
    row = b"".join(
        bytes(8)
        + OCCURRENCE.struct.pack(n % behaviours + 1, n * 997, n, n % processes, 4000 + n % processes, 1, 7, 1, 3, 4)
        for n in range(rows)
    )
    return TelemetryFrame(
        header=FrameHeader(node="node-1", boot="boot", run="run", number=0, clock_offset_ns=_START * 10**9, events=rows),
        identities=(_identity(),), behaviours=table, processes=contexts, rows=row,
    )  # fmt: skip


def _summary(frame: int, entries: int = 200, fresh: bool = False) -> Summary:
    first = _START * 10**9
    return Summary(
        node="node-1", run="run", first_frame=frame, last_frame=frame, bucket=_START + frame // 300 * 60,
        identity=_identity(),
        entries=tuple(
            SummaryEntry(
                behaviour=Behaviour(
                    operation=Operation.OPEN, executable="/usr/sbin/nginx", parent="/usr/sbin/nginx",
                    resource=f"/usr/share/nginx/html/{frame if fresh else 0}/{number}.html", syscall=257, syscall_name="openat",
                ),
                status="Allow", count=10, first=first, last=first + frame,
            )
            for number in range(entries)
        ),
    )  # fmt: skip


async def _drive(sink: Sink, topic: Topic, values: Sequence[bytes]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process) to take `values` from a bus and have them accepted and committed."""
    bus = MemoryBus(MemorySettings(max_bytes=4 << 30))
    await bus.publish(topic, [Record(b"k", value) for value in values])
    delivery = SinkDelivery(bus, sink)
    wall, cpu = time.perf_counter(), time.process_time()
    task = asyncio.create_task(delivery.run())
    await _until(lambda: delivery.stats.committed >= len(values))
    took = time.perf_counter() - wall, time.process_time() - cpu
    delivery.stop()
    await task
    assert delivery.stats.dead == 0
    return took


async def _until(condition: Callable[[], Any], step: float = 0.001) -> None:
    while not condition():  # noqa: ASYNC110 - counters have no event, on purpose
        await asyncio.sleep(step)


async def _alerts_to_file(directory: str, count: int) -> Result:
    values = [_alert(number) for number in range(count)]
    sink = FileSink(FileSettings(path=os.path.join(directory, "alerts.jsonl"), rotate_bytes=1 << 40))
    wall, cpu = await _drive(sink, ALERTS, values)
    how = "alerts of 1 KB from the bus through filter and redaction to a file, synced each batch"
    return {
        "alerts_to_file": _figure(count / wall, "alerts/s", count, how),
        "alerts_to_file_cpu": _figure(cpu / count * 1e6, "us/alert", count, f"{how}; CPU of the process"),
    }


async def _alert_latency(directory: str, count: int) -> Result:
    """From publish to the line in the file, one alert at a time."""
    path = os.path.join(directory, "latency.jsonl")
    bus = MemoryBus()
    delivery = SinkDelivery(bus, FileSink(FileSettings(path=path)))
    task = asyncio.create_task(delivery.run())
    await _until(lambda: delivery.stats.up)
    took = []
    for number in range(count):
        start = time.perf_counter()
        await bus.publish(ALERTS, [Record(b"k", _alert(number))])
        await _until(lambda number=number: delivery.stats.accepted > number, 0.0)
        took.append(time.perf_counter() - start)
    delivery.stop()
    await task
    took.sort()
    how = "publish on the memory bus to the line synced in the file, one at a time"
    return {
        "alert_to_file_p50": _figure(took[count // 2] * 1e3, "ms", count, how),
        "alert_to_file_p99": _figure(took[count * 99 // 100] * 1e3, "ms", count, how),
    }


def _read(count: int) -> Result:
    delivery = Delivery(ALERTS, 0, 0, Record(b"k", _alert(1)))
    reader = ItemReader(Filter(), as_json=True)
    start = time.perf_counter()
    for _ in range(count):
        reader.read(delivery)
    took = time.perf_counter() - start
    return {
        "alert_read": _figure(
            took / count * 1e6, "us/alert", count, "decode, filter and look for secrets, one alert of 1 KB"
        )
    }


def _expand(frames: int) -> Result:
    frame, rows = _frame(), 2000
    start = time.perf_counter()
    size = sum(len(line) for _ in range(frames) for line in expand.json_lines(frame))
    took = time.perf_counter() - start
    how = f"frames of {rows} rows, 60 behaviours; {size // (frames * rows)} bytes a line; expansion alone"
    return {"telemetry_expand": _figure(frames * rows / took, "events/s", frames * rows, how)}


async def _telemetry_to_file(directory: str, frames: int) -> Result:
    value = telemetry.encode(_frame())
    sink = FileSink(FileSettings(path=os.path.join(directory, "logs.jsonl"), content="logs", rotate_bytes=1 << 40))
    wall, cpu = await _drive(sink, TELEMETRY, [value] * frames)
    events = frames * 2000
    how = "frames of 2000 rows from the bus, decoded, redacted, expanded to KubeArmor JSON, written to a file"
    return {
        "telemetry_to_json_file": _figure(events / wall, "events/s", events, how),
        "telemetry_to_json_file_cpu": _figure(events / cpu, "events/s of CPU", events, f"{how}; CPU of the process"),
    }


def _store(directory: str, frames: int) -> Result:
    result: Result = {}
    for name, fresh in (("store_upserts", False), ("store_inserts", True)):
        store = SqliteStore(os.path.join(directory, f"{name}.db"))
        words = [_summary(frame, fresh=fresh) for frame in range(frames)]
        start = time.perf_counter()
        for at in range(0, frames, 10):
            store.apply(words[at : at + 10], [])
        took = time.perf_counter() - start
        store.close()
        what = "every behaviour new" if fresh else "known behaviours"
        how = f"{what}, 200 entries a summary, 10 summaries a transaction, synced"
        result[name] = _figure(frames * 200 / took, "entries/s", frames * 200, how)
    path = os.path.join(directory, "store_inserts.db")
    reader = SqliteReader(path)
    start = time.perf_counter()
    rows = reader.totals(Query(namespace="shop"))
    took = time.perf_counter() - start
    reader.close()
    result["store_query"] = _figure(took * 1e3, "ms", len(rows), f"totals of {len(rows)} behaviours by namespace")
    result["store_size"] = _figure(
        os.path.getsize(path) / len(rows), "bytes/behaviour", len(rows), "file size, all tables"
    )
    return result


async def _summaries_to_store(directory: str, frames: int) -> Result:
    values = [summary.encode(_summary(frame)) for frame in range(frames)]
    sink = StoreSink(StoreSettings(path=os.path.join(directory, "delivered.db")))
    wall, _ = await _drive(sink, SUMMARIES, values)
    how = "summaries of 200 entries from the bus, decoded and applied, synced"
    return {"summaries_to_store": _figure(frames * 200 / wall, "entries/s", frames * 200, how)}


async def _alerts_to_syslog(count: int) -> Result:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 20):
            pass
        writer.close()

    values = [_alert(number) for number in range(count)]
    result: Result = {}
    for payload in ("json", "cef"):
        server = await asyncio.start_server(swallow, "127.0.0.1", 0, limit=4 << 20)
        port = server.sockets[0].getsockname()[1]
        sink = SyslogSink(SyslogSettings(address=f"127.0.0.1:{port}", payload=payload))  # type: ignore[arg-type]
        wall, _ = await _drive(sink, ALERTS, values)
        server.close()
        await server.wait_closed()
        how = f"alerts from the bus as RFC 5424 with {payload.upper()}, TCP on loopback, reader in the same process"
        result[f"alerts_to_syslog_{payload}"] = _figure(count / wall, "alerts/s", count, how)
    return result


def _scrape(series: int) -> Result:
    samples = [((("namespace", "shop"), ("policy", f"policy-{number}")), number) for number in range(series)]
    family = Family(name="hauberk_alerts", kind="counter", help="Alerts.", samples=samples)
    start = time.perf_counter()
    for _ in range(10):
        render([family], openmetrics=False)
    took = (time.perf_counter() - start) / 10
    return {"metrics_render": _figure(took / series * 1e6, "us/series", series, "text exposition of one scrape")}
