# SPDX-License-Identifier: Apache-2.0
"""A live flood: a generator opens and closes one file on every core as fast as it can, the agent drains beside it.

What counts: nothing lost, and the counts equal to the generator's own. Needs root, BPF, BCC, cgroup v2 and a C compiler;
says what is missing and returns nothing where one of them is. Only a cgroup of its own is watched.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from kernel.loading import LoadSettings
from schemas import frame as words
from schemas.errors import HauberkError
from schemas.frame import FOLDED
from schemas.kernel import BEHAVIOUR, SCOPE, DefinitionKind, Loss
from schemas.operations import Class
from sensors.node.rings import RingSettings
from sensors.node.sensor import Node, NodeSettings, open_node
from sensors.source import Batch

STORM = Path(__file__).parent / "flood.c"


class Counting:
    """A bus that counts ids and keeps nothing: the cheapest reader that can still compare."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.known: dict[int, bytes] = {}
        self.lost = self.undefined = self.frames = self.bytes = self.folded = 0

    async def publish(self, topic: Any, records: Any) -> None:
        """Count; definitions are looked at when an id is new."""
        for record in records:
            frame = words.decode(record.value)
            self.frames += 1
            self.bytes += len(record.value)
            self.undefined += frame.header.undefined
            if frame.header.lost:
                self.lost += frame.header.lost[Loss.OCCURRENCES_FULL]
            counts: Counter[int] = Counter(memoryview(frame.occurrences).cast("Q")[1::8].tolist())
            for row in FOLDED.iter_unpack(frame.folded):
                counts[row[0]] += row[1]
                self.folded += row[1]
            if counts.keys() - self.known.keys():
                self._learn(frame.definitions)
            self.counts.update(counts)

    def paths(self) -> Counter[bytes]:
        """Opens per path."""
        found: Counter[bytes] = Counter()
        for ident, count in self.counts.items():
            found[self.known.get(ident, b"")] += count
        return found

    def _learn(self, definitions: bytes) -> None:
        found = {(kind, ident): body for ident, kind, body in words.definitions(definitions)}
        for (kind, ident), body in found.items():
            if kind == DefinitionKind.BEHAVIOUR:
                self.known[ident] = found.get((DefinitionKind.STRING, BEHAVIOUR.struct.unpack(body)[3]), b"")


async def flood(
    node: Node, storm: str, procs: str, count: int, distinct: int, path: str
) -> tuple[Counting, Any, list[str], tuple[float, float]]:
    """Run the generator on all cores with the agent beside it."""
    bus = Counting()
    agent = node.agent(bus)  # type: ignore[arg-type]
    drain, spent = node.source.drain, [0.0]

    def timed() -> Batch:
        started = time.thread_time()
        batch = drain()
        spent[0] += time.thread_time() - started
        return batch

    node.source.drain = timed  # type: ignore[method-assign]
    before = time.process_time()
    task = asyncio.create_task(agent.run())
    threads = os.cpu_count() or 1
    child = await asyncio.create_subprocess_exec(
        storm, procs, str(count // threads), path, str(distinct), str(threads), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    agent.stop()
    await task
    if child.returncode:
        raise RuntimeError(f"expected the generator to end well, got exit code {child.returncode}")
    return bus, agent.stats, out.decode().split(), (spent[0], time.process_time() - before)


def backlog(node: Node, storm: str, procs: str, count: int, path: str) -> tuple[int, float]:
    """(events, CPU seconds): a ring filled while nobody reads, then taken, framed and encoded in one go."""
    node.source.observe()
    subprocess.run([storm, procs, str(count), path, "0"], check=True, capture_output=True)
    events, started = 0, time.thread_time()
    while batch := node.source.drain():
        for frame in batch.frames:
            words.encode(frame)
            events += frame.header.events
        node.source.release()
    return events, time.thread_time() - started


def run(scale: float) -> dict[str, dict[str, Any]]:
    """`scale` 1.0: 4 M opens a figure."""
    count = max(int(4_000_000 * scale), 2000)
    root = Path("/sys/fs/cgroup/unified")
    root = root if root.is_dir() else Path("/sys/fs/cgroup")
    cgroup = root / f"hauberk-bench-{os.getpid()}"
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as directory:
        storm = f"{directory}/storm"
        pins = Path(directory) / "pins"
        pins.mkdir()
        target = f"{directory}/file"
        Path(target).touch()
        try:
            subprocess.run(["cc", "-O2", "-o", storm, str(STORM), "-lpthread"], check=True)
            cgroup.mkdir()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench_flood needs a C compiler and a writable cgroup v2: {error}")
            return {}
        try:
            settings = NodeSettings(
                node="bench",
                pin_dir=f"{pins}/sensor",
                load=LoadSettings(host_visibility=("none",), new_visibility=("none",)),
                rings=RingSettings(state_dir=f"{directory}/state"),
            )
            for name, distinct in (("one_file", 0), ("thousand_files", 1000)):
                try:
                    node = open_node(settings)
                except HauberkError as error:
                    print(f"bench_flood needs root, BPF and BCC: {error}")
                    return {}
                try:
                    with node.loaded.map("scopes") as scopes:
                        value = SCOPE.struct.pack(0, 0, 0, 1 << Class.FILE)
                        scopes.put(struct.pack("=Q", cgroup.stat().st_ino), value)
                    path = target if not distinct else f"{directory}/missing"
                    bus, stats, said, cpu = asyncio.run(
                        flood(node, storm, f"{cgroup}/cgroup.procs", count, distinct, path)
                    )
                finally:
                    node.close()
                made, each = int(said[0]), float(said[1])
                arrived = sum(n for text, n in bus.paths().items() if text.decode().startswith(path))
                how = (
                    f"{made} opens on {os.cpu_count()} cores, {arrived} arrived ({bus.folded} of them folded), "
                    f"{bus.lost} lost, {bus.frames} frames, {bus.bytes >> 10} KiB, undefined {bus.undefined}"
                )
                found[f"flood_{name}_lost"] = _figure(made - arrived, "events", made, how)
                found[f"flood_{name}_offered"] = _figure(round(1e9 / each), "opens/s", made, how)
                found[f"flood_{name}_ring_to_frame"] = _figure(
                    round(made / max(cpu[0], 1e-9)),
                    "events/s",
                    made,
                    f"CPU time of {stats.drains} drains of the live ring",
                )
                found[f"flood_{name}_agent_cpu"] = _figure(
                    round(cpu[1] / max(made, 1) * 1e9),
                    "ns/event",
                    made,
                    f"agent and counting bus; {stats.drains} drains",
                )
            never = msgspec.structs.replace(settings.rings, fold="never")
            node = open_node(msgspec.structs.replace(settings, rings=never))
            try:
                with node.loaded.map("scopes") as scopes:
                    value = SCOPE.struct.pack(0, 0, 0, 1 << Class.FILE)
                    scopes.put(struct.pack("=Q", cgroup.stat().st_ino), value)
                # The ring holds 262,143 rows; one less than that leaves none behind.
                each = [backlog(node, storm, f"{cgroup}/cgroup.procs", min(count, 250_000), target) for _ in range(3)]
            finally:
                node.close()
            events, spent = min(each, key=lambda one: one[1] / max(one[0], 1))
            found["flood_backlog_ring_to_frame"] = _figure(
                round(events / max(spent, 1e-9)), "events/s", events,
                "live ring filled by opens while nobody reads, then framed and encoded; CPU time, best of 3",
            )  # fmt: skip
        finally:
            cgroup.rmdir()
    return found


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n, "how": how}


if __name__ == "__main__":
    for title, figure in run(0.25).items():
        print(f"{title:36} {figure['value']:>12,} {figure['unit']:10} n={figure['n']:,}  {figure['how']}")
