# SPDX-License-Identifier: Apache-2.0
"""What the kernel programs add to the calls of others: getppid (nobody watches it), open and close, fork and exec.

Each figure is the difference of the fastest batches with and without the programs; `floor` is an empty program on the same
tracepoint, which no choice of ours can undercut. An exec takes long enough for the machine to change under it, so it is measured in
pairs, one run with the programs and one without, and the median of the differences is told. `overhead_program_*` is what the kernel itself counts as the run time of our
programs, less that of the empty one: it hardly notices who else uses the machine. Needs root, BPF, cgroup v2 and BCC; loads under a bpffs of its own and removes it.
Run: `python benchmarks/bench_overhead.py`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from own_pins import own_pins

from kernel import bpf
from kernel.catalogue import PROBES
from kernel.features import cgroup2_mount
from kernel.loading import LoadedPrograms, LoadSettings, load
from kernel.ring import Ring
from schemas.kernel import SCOPE, Config, Loss, ScopeFlag
from schemas.operations import Class

ALL = sum(1 << member for member in Class)
PATHS = {"open": "/etc/hosts", "open_long": "", "exec": shutil.which("true") or "/bin/true", "getppid": ""}
COUNTS = {"open": 20_000, "open_long": 20_000, "exec": 60, "getppid": 50_000}
PAIRS = 40
Row = dict[str, Any]

PYTHON_STORM = """
import os, sys, time
kind, count, path = sys.argv[1], int(sys.argv[2]), (sys.argv[3:] or [""])[0]
call = {"g": os.getppid, "o": lambda: os.close(os.open(path, os.O_RDONLY)), "e": lambda: os.spawnv(os.P_WAIT, path, [path])}[kind[0]]
size = 1 if kind[0] == "e" else 50
took = []
for _ in range(count // size):
    start = time.perf_counter_ns()
    for _ in range(size):
        call()
    took.append((time.perf_counter_ns() - start) / size)
took.sort()
print(took[len(took) // 100], took[len(took) // 2])
"""


def run(scale: float) -> dict[str, Row]:
    """All figures; `scale` 1.0 takes about a minute, 0.1 gives a first idea."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as directory, own_pins() as pins, own_cgroup() as cgroup:
        place = Path(directory)
        PATHS["open_long"] = str(place.joinpath(*["component"] * 16, "a-file-with-a-name-longer-than-forty-characters"))
        Path(PATHS["open_long"]).parent.mkdir(parents=True)
        Path(PATHS["open_long"]).touch()
        storm = build(place)
        plain = measure(storm, cgroup, scale)
        with empty_program() as empty:
            floor = measure(storm, cgroup, scale)
            counted = count([empty], storm, cgroup, scale)
        loaded = load(LoadSettings(new_visibility=("none",), calls_by="tracepoint"), pins)
        with draining(loaded), loaded.map("scopes") as scopes:
            for name, visibility in (("unwatched", 0), ("watched", ALL)):
                record = SCOPE.struct.pack(0, 0, ScopeFlag.CONTAINER, visibility)
                scopes.put(struct.pack("=Q", cgroup.stat().st_ino), record)
                add(rows, name, measure(storm, cgroup, scale), plain, scale)
            programs = [loaded.program(probe.name) for probe in PROBES]
            for kind, value in count(programs, storm, cgroup, scale).items():
                rows[f"overhead_program_{kind}"] = {
                    "value": round(value - (0 if kind == "exec" else counted[kind]), 1),
                    "unit": "ns",
                    "n": max(int(COUNTS[kind] * scale), 50),
                    "how": f"run time of all programs per watched {kind} as the kernel counts it, less an empty program's",
                }
            for program in programs:
                os.close(program)
            rows |= exec_pairs(loaded, storm, cgroup, scale)
        add(rows, "floor", floor, plain, scale)
        for name in ("watched", "unwatched"):
            one, empty_one = rows[f"overhead_{name}_open"], rows["overhead_floor_open"]
            rows[f"overhead_{name}_open_over_empty"] = {
                "value": round(one["value"] / max(1.0, empty_one["value"]), 2), "unit": "x", "n": one["n"],
                "how": f"what is added to an open and close over what an empty program adds ({empty_one['value']:.0f} ns); {one['how']}",
            }  # fmt: skip
        with loaded.map("losses") as losses:
            lost = losses.sum_u64(struct.pack("=I", Loss.OCCURRENCES_FULL))
        rows["overhead_lost"] = {
            "value": lost,
            "unit": "events",
            "n": 1,
            "how": "occurrences lost during the flood",
        }
    return rows


def add(rows: dict[str, Row], name: str, found: dict[str, float], plain: dict[str, float], scale: float) -> None:
    """Differences to `plain`, in ns."""
    for kind, value in found.items():
        count = max(int(COUNTS[kind] * scale), 50)
        how = f"fastest batch of {kind} minus that without programs ({plain[kind]:.0f} ns)"
        rows[f"overhead_{name}_{kind}"] = {"value": round(value - plain[kind], 1), "unit": "ns", "n": count, "how": how}


def measure(storm: list[str], cgroup: Path, scale: float) -> dict[str, float]:
    """ns per call of each kind but exec, the best of five runs inside `cgroup`."""
    out = {}
    for kind in PATHS.keys() - {"exec"}:
        runs = [call(storm, cgroup, kind, max(int(COUNTS[kind] * scale), 50), PATHS[kind]) for _ in range(5)]
        out[kind] = min(run[0] for run in runs)
    return out


def exec_pairs(loaded: LoadedPrograms, storm: list[str], cgroup: Path, scale: float) -> dict[str, Row]:
    """What a watched fork, exec and exit cost more than without the programs. Takes the links of `loaded` away."""
    pairs, added, plain = max(int(PAIRS * scale), 3), [], []
    for probe in PROBES:
        os.unlink(f"{loaded.pin_dir}/links/{probe.name}")
    for turn in range(pairs):
        took = {}
        for attach in (False, True) if turn % 2 else (True, False):
            with attached(loaded) if attach else nullcontext():
                took[attach] = call(storm, cgroup, "exec", COUNTS["exec"], PATHS["exec"])[0]
        added.append(took[True] - took[False])
        plain.append(took[False])
    value, whole = statistics.median(added), statistics.median(plain)
    how = f"median of {pairs} pairs of runs, with and without the programs; fastest of {COUNTS['exec']} in each"
    row = {"n": pairs * COUNTS["exec"], "how": how}
    return {
        "overhead_watched_exec": {"value": round(value, 1), "unit": "ns", **row},
        "overhead_watched_exec_part": {
            "value": round(100 * value / whole, 2),
            "unit": "%",
            "n": row["n"],
            "how": f"of fork, exec and exit ({whole / 1000:.0f} us)",
        },
    }


@contextmanager
def attached(loaded: LoadedPrograms) -> Iterator[None]:
    """All programs on their tracepoints for a while."""
    links = []
    try:
        for probe in PROBES:
            program = loaded.program(probe.name)
            links.append(bpf.raw_tracepoint_open(program, probe.tracepoint))
            os.close(program)
        yield
    finally:
        for link in links:
            os.close(link)


def count(programs: list[int], storm: list[str], cgroup: Path, scale: float) -> dict[str, float]:
    """ns that these programs (fds) ran per call of each kind, the least of five runs inside `cgroup`."""
    out = {}
    enabled = bpf.enable_stats()
    try:
        for kind, path in PATHS.items():
            calls = max(int(COUNTS[kind] * scale), 50)
            runs = []
            for _ in range(5):
                before = sum(bpf.program_time(program)[0] for program in programs)
                call(storm, cgroup, kind, calls, path)
                runs.append((sum(bpf.program_time(program)[0] for program in programs) - before) / calls)
            out[kind] = min(runs)
    finally:
        os.close(enabled)
    return out


def call(storm: list[str], cgroup: Path, kind: str, calls: int, path: str) -> list[float]:
    """[fastest, median] ns per call of one run inside `cgroup`."""

    def enter() -> None:
        (cgroup / "cgroup.procs").write_text("0")

    command = [*storm, kind, str(calls), path]
    done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def build(place: Path) -> list[str]:
    """Command of the load generator: compiled where there is a C compiler, Python where not."""
    source = Path(__file__).with_name("storm.c")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        subprocess.run([compiler, "-O2", "-o", str(place / "storm"), str(source)], check=True)
        return [str(place / "storm")]
    return [sys.executable, "-c", PYTHON_STORM]


@contextmanager
def own_cgroup() -> Iterator[Path]:
    """A cgroup for the load, removed afterwards."""
    mount = cgroup2_mount()
    if mount is None:
        raise SystemExit("expected a cgroup v2 mount, found none; mount -t cgroup2 none /sys/fs/cgroup/unified")
    path = Path(mount) / f"hauberk-bench-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextmanager
def empty_program() -> Iterator[int]:
    """An empty program on sys_exit, its fd: r0 = 0; exit."""
    program = bpf.program_load(17, struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0), name="bench_empty")
    link = bpf.raw_tracepoint_open(program, "sys_exit")
    try:
        yield program
    finally:
        os.close(link)
        os.close(program)


@contextmanager
def draining(loaded: LoadedPrograms) -> Iterator[None]:
    """Both rings emptied every 10 ms, as the agent does."""
    with loaded.map("config") as config:
        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
    stop = threading.Event()
    rings = [Ring.open(f"{loaded.pin_dir}/maps/{name}") for name in ("occurrences", "definitions")]

    def drain() -> None:
        takes: tuple[Callable[[int], object], ...] = (rings[0].take_table, rings[1].take_records)
        while not stop.is_set():
            for ring, take in zip(rings, takes, strict=True):
                take(1 << 22)
                ring.release()
            time.sleep(0.01)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for ring in rings:
            ring.close()


if __name__ == "__main__":
    for key, row in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{key:32} {row['value']:>10} {row['unit']:6} n={row['n']:<6} {row['how']}")
