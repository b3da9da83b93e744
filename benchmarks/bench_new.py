# SPDX-License-Identifier: Apache-2.0
"""Everything is new: a container opens files that nobody has opened before, as a build or a backup does, on a real `hauberk up`.

What counts: processor time of `up` for each open, until every one of them is counted in the store; opens that are counted
nowhere; events without a definition; how late the alert of an audited open beside it comes at most; memory afterwards.
Needs root, BPF, BCC and cgroup v2. Acts on a cgroup of its own.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from alerting import ANSWER_SECONDS, Tail, policy, publish
from live import Live, missing, running

from schemas.behaviour import Behaviour
from schemas.operations import Access, Operation

Result = dict[str, dict[str, Any]]
RATE: Final = 20_000
"""New names a second of the paced run, more than the budget of names gives a container."""
_FILES: Final = 100_000
_LATE: Final = 40.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")

# Opens every file of a directory once, paced by hundredths of a second (rate 0: as fast as it can).
OPENER = """
import os, sys, time
directory, count, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
started = time.monotonic()
for number in range(count):
    os.close(os.open(f"{directory}/{number}", os.O_RDONLY))
    if rate and number % (rate // 100 or 1) == 0:
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
print(time.monotonic() - started)
"""

# The audited open beside it: one file, 20 times a second, until stdin ends; prints when each call began.
CANARY = """
import os, select, sys, time
while not select.select([sys.stdin], [], [], 0.05)[0]:
    at = time.clock_gettime_ns(time.CLOCK_REALTIME)
    os.close(os.open(sys.argv[1], os.O_RDONLY))
    print(at, flush=True)
"""


class CountedOpens(msgspec.Struct):
    """Opens of the storm in the store: by name, by class alone, and in all."""

    named: int = 0
    unnamed: int = 0

    @property
    def total(self) -> int:
        return self.named + self.unnamed


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute."""
    if lacks := missing():
        print(f"bench_new: {lacks}", file=sys.stderr)
        return {}
    count = max(500, int(_FILES * scale))
    result: Result = {}
    off = ("processor.throttle.max_alerts_per_second=0", 'postures.host_visibility=["none"]')
    with running("up", sets=off) as up:
        watched = up.state.parent / "watched"
        watched.mkdir()
        (watched / "audited").touch()
        rule = policy("watch", f"file: {{matchPaths: [{{path: {watched}/audited}}]}}, action: Audit")
        asyncio.run(publish(up, [rule]))
        reader = Tail(up.alerts)
        _first_alert(up, reader, watched / "audited")
        for name, rate in (("paced", RATE), ("flood", 0)):
            files = up.state.parent / name
            files.mkdir()
            for number in range(count):
                os.close(os.open(f"{files}/{number}", os.O_CREAT | os.O_WRONLY, 0o600))
            result |= _storm(up, reader, watched / "audited", files, count, rate, name)
        time.sleep(min(5.0, 60 * scale))
        rss = up.memory()["Rss"]
        result["new_rss"] = _figure(rss, "MB", 2 * count, "VmRSS of `hauberk up` 5 s after both storms were counted")
        reader.close()
    return result


def _storm(up: Live, reader: Tail, audited: Path, files: Path, count: int, rate: int, name: str) -> Result:
    idle = _idle(up)
    total, unnamed = _total(up), _counts(up, str(files)).unnamed
    reader.lines(0.0)
    began, cpu = time.monotonic(), _cpu(up)
    canary = up.box.popen(CANARY, str(audited), stdin=subprocess.PIPE)
    storm = up.box.popen(OPENER, str(files), str(count), str(rate), stdin=subprocess.DEVNULL)
    came: list[int] = []
    lost: dict[str, int] = {}
    found, ended, deadline = CountedOpens(), 0.0, began + _LATE + count / RATE
    while found.total < count and time.monotonic() < deadline:
        _hear(reader, audited, came, lost, 0.25)
        if storm.poll() is not None and canary.stdin is not None and not canary.stdin.closed:
            ended = time.monotonic()
            canary.stdin.close()
        # The short question first: decoding thousands of rows holds up the reader of alerts.
        if ended and (_total(up) - total >= count or time.monotonic() > deadline - 1):
            found = _counts(up, str(files))
            found.unnamed -= unnamed
    waited, spent = time.monotonic() - ended, _cpu(up) - cpu
    took = float(storm.communicate()[0])
    assert canary.stdout is not None
    made = [int(line) for line in canary.stdout.read().split()]
    canary.wait()
    while len(came) < len(made) and time.monotonic() < deadline:
        _hear(reader, audited, came, lost, 0.25)
    late = max((b - a) / 1e6 for a, b in zip(made, came, strict=False)) if came else _LATE * 1000
    own = max(0.0, spent - idle * (ended + waited - began))
    how = (
        f"{count} new files in {took:.1f} s, counted {waited:.1f} s later: {found.named} by name, {found.unnamed} by class; "
        f"told as lost: {lost or 'nothing'}; load average {os.getloadavg()[0]:.1f}"
    )
    return {
        f"new_{name}_cpu": _figure(own / count * 1e6, "us/open", count, f"CPU of `up` without what it takes idle; {how}"),
        f"new_{name}_missing": _figure(max(0, count - found.total), "events", count, f"opens counted nowhere; {how}"),
        f"new_{name}_undefined": _figure(lost.get("undefined", 0), "events", count, f"events without a definition; {how}"),
        f"new_{name}_alert_latest": _figure(
            late, "ms", len(made), f"an audited open beside it, 20 a second; {len(made) - len(came)} of them not told; {how}"
        ),
    }  # fmt: skip


def _hear(reader: Tail, audited: Path, came: list[int], lost: dict[str, int], wait: float) -> None:
    for at, line in reader.lines(wait):
        if line.Operation == "EventsLost":
            for what, many in (line.EventData or {}).items():
                lost[what] = lost.get(what, 0) + int(many)
        elif line.Resource == str(audited):
            came.append(at)


def _first_alert(up: Live, reader: Tail, audited: Path) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        child = up.box.popen(CANARY, str(audited), stdin=subprocess.PIPE)
        assert child.stdout is not None
        # It says when it has opened: on a crowded machine an interpreter may take a second to begin.
        child.stdout.readline()
        child.communicate("")
        if any(line.Resource == str(audited) for _, line in reader.lines(1.0)):
            while reader.lines(0.5):
                continue
            return
    raise TimeoutError(f"expected a first alert within {ANSWER_SECONDS:g} s, got none")


def _store(up: Live) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{up.state.parent}/summary.db?mode=ro", uri=True, timeout=10)


_OPENS: Final = """FROM minute JOIN behaviour ON behaviour.id = minute.behaviour JOIN identity ON identity.id = minute.identity
WHERE operation = ? AND identity.uid LIKE 'workload-bench-%'"""
"""Of the watched cgroup alone: a machine may have other containers, which open files too."""


def _total(up: Live) -> int:
    """Opens of the watched cgroup in the store."""
    db = _store(up)
    try:
        (total,) = db.execute(f"SELECT coalesce(sum(count), 0) {_OPENS}", (int(Operation.OPEN),)).fetchone()
    finally:
        db.close()
    return int(total)


def _counts(up: Live, files: str) -> CountedOpens:
    """Opens below `files` by name, and all of the watched cgroup without one."""
    decode = msgspec.msgpack.Decoder(Behaviour).decode
    found = CountedOpens()
    db = _store(up)
    try:
        for body, many in db.execute(f"SELECT behaviour.body, count {_OPENS}", (int(Operation.OPEN),)):
            behaviour = decode(body)
            if behaviour.access & Access.UNTOLD:
                found.unnamed += many
            elif behaviour.resource.startswith(f"{files}/"):
                found.named += many
    finally:
        db.close()
    return found


def _cpu(up: Live) -> float:
    fields = Path(f"/proc/{up.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _idle(up: Live) -> float:
    began, cpu = time.monotonic(), _cpu(up)
    time.sleep(1.0)
    return (_cpu(up) - cpu) / (time.monotonic() - began)


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}
