# SPDX-License-Identifier: Apache-2.0
"""What judging costs: frames of repeated behaviours, frames in which every behaviour is new, telemetry to JSON.

One process, one core, frames made beforehand; the figures are of `process_time`, so a busy machine does not lower them.
`run(scale)`: scale 1.0 takes about fifteen seconds. Measured: `processors.decode` and `processors.judge` (judge_*),
`schemas.expand` (telemetry_json), `processors.quiet` (quiet_look), `processors.rows` (alert_flood), all of them with `processors.telemetry` (stage_*).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

from bus.contract import Delivery, Record
from bus.memory import MemoryBus
from policy.documents import from_json
from policy.ruleset import compile_ruleset
from processors.engine import Processor, ProcessorSettings
from processors.inventory import Inventory
from processors.judge import FrameJudge, JudgeSettings
from processors.names import NameSettings
from processors.quiet import QuietDirectories
from processors.telemetry import telemetry
from processors.throttle import ThrottleSettings
from schemas import expand
from schemas import frame as frames
from schemas import identity as identities
from schemas.frame import Frame, FrameHeader, definition
from schemas.identity import Identity, Kind, Owner
from schemas.kernel import BEHAVIOUR, OCCURRENCE, PROCESS, DefinitionKind
from schemas.operations import Access, Operation
from schemas.topics import EVENTS_RAW

_BASE = 1_765_863_405 * 1_000_000_000
_POLICY = b"""{"apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy",
"metadata": {"name": "web", "namespace": "demo"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "Block",
"process": {"matchPaths": [{"path": "/usr/bin/apt"}], "matchDirectories": [{"dir": "/sbin/", "recursive": true}]},
"file": {"matchDirectories": [{"dir": "/etc/ssl/", "recursive": true, "readOnly": true}],
"matchPatterns": [{"pattern": "/srv/*/secret/**"}]}, "network": {"matchProtocols": [{"protocol": "raw"}]}}}"""

_LOUD = b"""{"apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "all",
"namespace": "demo"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "Audit", "severity": 5,
"tags": ["a", "b"], "message": "m", "file": {"matchDirectories": [{"dir": "/", "recursive": true}]}}}"""


def _identity(cgroup: int) -> Identity:
    return Identity(
        kind=Kind.CONTAINER,
        node="bench",
        uid=f"{cgroup:064x}",
        cgroups=(cgroup,),
        container_name="web",
        image="docker.io/library/nginx:1.27",
        namespace="demo",
        pod=f"web-{cgroup}",
        owner=Owner("Deployment", "web", "demo"),
        labels={"app": "web", "tier": "front"},
        orchestrated=True,
    )


def _frame(number: int, rows: int, behaviours: int, first: int = 0) -> Frame:
    """`rows` opens by 20 processes of 8 containers, over `behaviours` distinct ones numbered from `first`."""
    strings = {1: b"/usr/sbin/nginx", 2: b"/bin/sh", 3: b"nginx\0-g\0daemon off;", 4: b"/"}
    tables = []
    for process in range(20):
        body = PROCESS.struct.pack(100 + process, 1, 2, 3, 4, 0, 0, 500 + process, 1, 1, 0, 0, 0, b"")
        tables.append(definition(DefinitionKind.PROCESS, 100 + process, body))
    for index in range(first, first + behaviours):
        path = 1_000_000 + index
        strings[path] = f"/srv/app/{index % 97}/static/{index}.css".encode()
        body = BEHAVIOUR.struct.pack(
            10 + index % 8, 1, 2, path, 0, 11, 12, Operation.OPEN, 257, Access.READ, 0, 0, 0o2000000, 0, 33, 33, 0, 0,
            0, 0, 0, 0, b"", 0,
        )  # fmt: skip
        tables.append(definition(DefinitionKind.BEHAVIOUR, _ident(index), body))
    tables += [definition(DefinitionKind.STRING, key, text) for key, text in strings.items()]
    pack, head = OCCURRENCE.struct.pack, struct.pack("=II", OCCURRENCE.size, 0)
    table = b"".join(
        head + pack(_ident(first + row % behaviours), row * 10_000, number * rows + row, 100 + row % 20, 500, 1, 7, 1, 3, 0xFFFFFF9C)
        for row in range(rows)
    )  # fmt: skip
    header = FrameHeader(node="bench", boot="b", run="r", number=number, clock_offset_ns=_BASE, events=rows)
    return Frame(header=header, occurrences=table, definitions=b"".join(tables))


def _ident(index: int) -> int:
    """Spread over 64 bits as the kernel's hash would be."""
    return (index * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF


def _inventory() -> Inventory:
    inventory = Inventory()
    for cgroup in range(10, 18):
        identity = _identity(cgroup)
        inventory.apply(identity.key, identities.encode(identity))
    return inventory


def _rate(work: Callable[[], int], seconds: float) -> tuple[float, int]:
    """(events per second of CPU, events) over about `seconds`."""
    total, spent = 0, 0.0
    while spent < seconds:
        start = time.process_time()
        total += work()
        spent += time.process_time() - start
    return total / spent, total


def run(scale: float) -> dict[str, dict[str, Any]]:
    """Figures by name: value, unit, n, how."""
    seconds = max(0.05, 2.0 * scale)
    ruleset = compile_ruleset([from_json(_POLICY)])
    found: dict[str, dict[str, Any]] = {}

    def note(name: str, rate: float, n: int, how: str) -> None:
        found[name] = {"value": round(rate), "unit": "events/s", "n": n, "how": how}

    judge = FrameJudge(JudgeSettings(), _inventory(), ruleset)
    hot = _frame(0, 32_768, 400)
    encoded = frames.encode(hot)
    judge.tally(hot)
    rate, n = _rate(lambda: len(judge.tally(frames.decode(encoded)).ids), seconds)
    note("judge_repeated", rate, n, "decode + count + look up; frames of 32,768 rows, 400 known behaviours")

    pieces = [_frame(number, 2048, 2048, number * 2048) for number in range(max(4, round(20 * scale)))]
    rates = []
    for _ in range(3):
        fresh = FrameJudge(JudgeSettings(), _inventory(), ruleset)
        start = time.process_time()
        for piece in pieces:
            fresh.tally(piece)
        rates.append(fresh.judged / (time.process_time() - start))
    how = "decode, enrich and evaluate; every behaviour new, 2,048 a frame, one policy of 5 rules; best of 3 rounds"
    note("judge_new", max(rates), fresh.judged, how)

    logged = telemetry(judge.tally(_frame(0, 16_384, 400)))
    assert logged is not None
    rate, n = _rate(lambda: sum(1 for _ in expand.json_lines(logged)), seconds)
    note(
        "telemetry_json",
        rate,
        n,
        "TelemetryFrame to one JSON object per event, KubeArmor fields; 400 behaviours, 20 processes",
    )

    rate, n = _rate(_stage(ruleset, 32_768, 400, told=1), seconds)
    note("alert_flood", rate, n, "as stage_flood, all rows in one told behaviour: throttled, counted, not walked")
    rate, n = _rate(_stage(ruleset, 2048, 400, told=400, throttle=0), seconds)
    note("alert_records", rate, n, "frame bytes to one alert record per row, throttle off")

    rates = []
    for _ in range(3):
        work = _all_new(ruleset, pieces)
        start = time.process_time()
        n = work()
        rates.append(n / (time.process_time() - start))
    how = "as judge_new, to telemetry and summary records; names beyond the budget of a minute are counted by directory"
    note("stage_new", max(rates), n, how)

    inventory = _inventory()
    entries = list(FrameJudge(JudgeSettings(), inventory, ruleset).tally(pieces[0]).entries.values())

    def look() -> int:
        QuietDirectories(inventory, lambda places: None).look("bench", entries)
        return len(entries)

    rate, n = _rate(look, seconds)
    note(
        "quiet_look",
        rate,
        n,
        "which directories' names nobody needs: 2,048 new files in 97 directories of 8 containers",
    )

    for name, rows, behaviours in (("stage_flood", 32_768, 400), ("stage_mixed", 4096, 400)):
        rate, n = _rate(_stage(ruleset, rows, behaviours), seconds)
        note(
            name,
            rate,
            n,
            f"frame bytes to telemetry and summary records, nothing published; {rows} rows, {behaviours} behaviours a frame",
        )
    return found


def _stage(ruleset: Any, rows: int, behaviours: int, told: int = 0, throttle: int = 10) -> Callable[[], int]:
    """One round through the stage. `told`: a policy makes every row an alert, and so many behaviours are used."""
    settings = ProcessorSettings(throttle=ThrottleSettings(max_alerts_per_second=throttle))
    processor = Processor(MemoryBus(), settings)
    for cgroup in range(10, 18):
        processor.inventory.apply(b"bench/%d" % cgroup, identities.encode(_identity(cgroup)))
    processor.judge.use(compile_ruleset([from_json(_LOUD)]) if told else ruleset)
    behaviours = told or behaviours
    pipeline = processor.pipeline
    encoded = [frames.encode(_frame(number, rows, behaviours)) for number in range(4)]
    deliveries = [Delivery(EVENTS_RAW, 0, number, Record(b"bench", data)) for number, data in enumerate(encoded)]

    def work() -> int:
        for delivery in deliveries:
            pipeline.read(delivery)
        pipeline.settle(closing=True)
        pipeline.discard()
        # Else those of the next round are frames that it has read.
        pipeline.released([(EVENTS_RAW.name, 0)])
        return rows * len(deliveries)

    work()
    return work


def _all_new(ruleset: Any, pieces: list[Frame]) -> Callable[[], int]:
    """Frames in which everything is new, once through a stage of their own."""
    processor = Processor(MemoryBus(), ProcessorSettings(names=NameSettings()))
    for cgroup in range(10, 18):
        processor.inventory.apply(b"bench/%d" % cgroup, identities.encode(_identity(cgroup)))
    processor.judge.use(ruleset)
    records = [Record(b"bench", frames.encode(piece)) for piece in pieces]

    def work() -> int:
        for number, record in enumerate(records):
            processor.pipeline.read(Delivery(EVENTS_RAW, 0, number, record))
        processor.pipeline.settle(closing=True)
        return sum(piece.header.events for piece in pieces)

    return work


if __name__ == "__main__":
    for name, figure in run(1.0).items():
        print(f"{name:16} {figure['value']:>12,} {figure['unit']}  n={figure['n']:,}  {figure['how']}")
