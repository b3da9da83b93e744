# SPDX-License-Identifier: Apache-2.0
"""What the LSM hooks cost an open, an exec and a connect: with nothing, with the programs and no rules, with 10, 1,000 and 10,000
rules, directories and patterns, and under AppArmor alone.

Where this kernel asks such hooks, here, in nanoseconds. Elsewhere in a guest of `tests/vm`, which is emulated, so no time of it says
anything: its processor's clock goes on by one nanosecond with each instruction, and what is told is instructions. Those are the same
however busy this machine is. HAUBERK_BENCH_KERNEL chooses the series (6.1). Neighbours: `held` (measures), `bench_matcher`
(the matcher alone), `bench_apply` (what it costs to write the tables).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "tests/vm"))

import held
from own_pins import own_pins
from vmrig.debian import NoPackage
from vmrig.kernels import kernel
from vmrig.machine import CHECKOUT, Guest, GuestFailed
from vmrig.programs import precompile

from kernel.features import lsm_programs

HERE: Final = Path(__file__).parent
Result = dict[str, dict[str, Any]]
Stage = Callable[[str], dict[str, Any]]
"""What the stage of `held` with this name found."""
PINS: Final = "pins"
STAGE_SECONDS: Final = 5400


class Sizes(NamedTuple):
    """`sizes`: opens, execs and connects of a run. `counts`: rules; `apparmor`: of its profiles, which take long to compile."""

    sizes: tuple[int, int, int]
    rounds: int
    counts: tuple[int, ...]
    apparmor: tuple[int, ...]


FULL: Final = Sizes((1000, 60, 300), 9, (10, 1000, 10000), (10, 1000))
SHORT: Final = Sizes((200, 10, 50), 3, (10, 1000), (10,))
COUNTED_ROUNDS: Final = 3
"""Of a guest that counts instructions: rounds differ by interrupts alone."""


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; in a guest scale 1.0 takes four minutes of processor time, most of it to load the programs."""
    if os.geteuid() != 0 or shutil.which("cc") is None:
        print("bench_lsm: needs root and a C compiler", file=sys.stderr)
        return {}
    size = FULL if scale >= 0.5 else SHORT
    if lsm_programs().available:
        return _figures(_here(size), size, "ns", f"Linux {os.uname().release}")
    size = size._replace(rounds=COUNTED_ROUNDS)
    try:
        found = _guest(size)
    except (NoPackage, GuestFailed) as error:
        print(f"bench_lsm: {error}", file=sys.stderr)
        return {}
    return _figures(found, size, "instructions", f"Linux {found['release']} in an emulated guest")


def _all(stage: Stage, tables: Path, size: Sizes) -> dict[str, Any]:
    """The stages one after the other."""
    plain = stage("plain")
    started = stage("load")
    tables.write_bytes(held.tables(tuple(started["key"]), size.counts))
    found = stage("measure")
    return {**found, "ns": plain["ns"] | found["ns"], "verified": started["verified"], "seconds": started["seconds"]}


def _words(name: str, room: Path, place: str, pins: str, size: Sizes) -> list[str]:
    return [
        sys.executable, str(HERE / "held.py"), name, "--pins", pins, "--room", str(room), "--place", place, "--sizes", json.dumps(size.sizes),
        "--counts", json.dumps(size.apparmor), "--rounds", str(size.rounds),
    ]  # fmt: skip


def _build(room: Path) -> None:
    subprocess.run(["cc", "-O2", "-o", str(room / "held"), str(HERE / "held.c")], check=True)
    command = ["cc", "-O2", "-static", "-x", "c", "-o", str(room / "nothing"), "-"]
    subprocess.run(command, input="int main(void) { return 0; }", text=True, check=True)


def _here(size: Sizes) -> dict[str, Any]:
    """On this kernel."""
    with own_pins() as pins, tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        _build(room)

        def stage(name: str) -> dict[str, Any]:
            subprocess.run(_words(name, room, f"{room}/place", pins, size), check=True)
            found: dict[str, Any] = json.loads((room / f"{name}.json").read_text())
            return found

        return _all(stage, room / "tables", size)


def _guest(size: Sizes) -> dict[str, Any]:
    """In a guest. Raises NoPackage, GuestFailed."""
    series = os.environ.get("HAUBERK_BENCH_KERNEL", "6.1")
    wanted = kernel(series)
    precompile(wanted, (held.SETTINGS,))
    guest = Guest(wanted, template=False, counted=True)
    try:
        _build(guest.room)

        def stage(name: str) -> dict[str, Any]:
            began = time.monotonic()
            words = _words(name, guest.room, "/tmp/held", f"/sys/fs/bpf/{PINS}", size)
            status, said = guest.run(words, seconds=STAGE_SECONDS, PYTHONPATH=str(CHECKOUT))
            if status:
                raise GuestFailed(f"`held.py {name}` ended with {status} in {series}: {said[-3000:]}")
            print(f"bench_lsm: {series}, {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            found: dict[str, Any] = json.loads((guest.room / f"{name}.json").read_text())
            return found

        return {**_all(stage, guest.room / "tables", size), "release": wanted.release}
    finally:
        guest.off()


def _medians(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Call -> way -> median of the rounds."""
    return {
        call: {way: statistics.median(calls[call]) for way, calls in found["ns"].items() if call in calls}
        for call in held.CALLS
    }


def _figures(found: Mapping[str, Any], size: Sizes, unit: str, where: str) -> Result:
    made: Result = {}
    most, least = size.counts[-1], size.counts[0]
    for at, (call, ways) in enumerate(_medians(found).items()):
        calls, n = size.sizes[at], size.sizes[at] * size.rounds
        how = f"{_CALLED[call]}, median of {size.rounds} alternating rounds of {calls}; {where}"
        for way, value in ways.items():
            of = f"{_called(way)}; {how}"
            made[f"lsm_{call}_{way}"] = _figure(value, f"{unit}/call", n, of)
            if way != "plain":
                made[f"lsm_{call}_{way}_over_plain"] = _figure(value / ways["plain"], "x", n, of)
        for way, by_call in found["programs"].items():
            if call in by_call:
                took, runs, others, _ = by_call[call]
                told = f"of it in the hooks, {runs:.1f} runs of them, {others:.0f} {unit} in the sensor's programs; the kernel's own statistics, its counting included; median of 3 runs; {_called(way)}"
                made[f"lsm_{call}_{way}_hooks"] = _figure(took, f"{unit}/call", calls, f"{told}; {how}")
        for kind, asked in held.ASKED.items():
            if call not in asked:
                continue
            told = f"{most:,} {_WAYS.get(kind, kind)} against {least:,}; {how}"
            few, many = f"{kind}_{least}", f"{kind}_{most}"
            made[f"lsm_{call}_{kind}_ratio"] = _figure(ways[many] / ways[few], "x", n, told)
            hooks = [found["programs"][way][call][0] for way in (many, few)]
            made[f"lsm_{call}_{kind}_hooks_ratio"] = _figure(
                hooks[0] / hooks[1], "x", calls, f"the hooks alone; {told}"
            )
            if found["lookups"]:
                counted = [found["lookups"][way][call] - found["lookups"]["nothing"][call] for way in (many, few)]
                told = f"keys looked up in hashes and tries, {counted[0]:.2f} a call beyond those without rules; {told}"
                made[f"lsm_{call}_{kind}_lookups_ratio"] = _figure(counted[0] / counted[1], "x", calls, told)
    hooks = found["verified"]
    worst = max(hooks, key=lambda name: int(hooks[name]))
    told = f"instructions that the verifier went through for {len(hooks)} hooks, most for {worst}: {hooks[worst]:,}; {where}"
    made["lsm_verified"] = _figure(sum(hooks.values()), "instructions", len(hooks), told)
    told = f"all pinned maps with hooks, and tables of {sum(size.counts):,} rules of each kind in them; as the kernel counts it; {where}"
    made["lsm_maps"] = _figure(sum(found["maps"].values()) / 1e6, "MB", len(found["maps"]), told)
    return made


_CALLED: Final = {
    "open": "open and close", "exec": "posix_spawn of a static program, its exit and wait", "connect": "socket, connect, accept and two closes by TCP on loopback"
}  # fmt: skip
_WAYS: Final = {
    "plain": "no agent, before the load", "nothing": "programs and hooks attached, no rules for the cgroup, nothing watched",
    "apparmor": "paths in a profile of AppArmor, no agent, before the load", "rules": "paths and networks", "near": "networks beside the one that is connected to",
}  # fmt: skip


def _called(way: str) -> str:
    kind, _, count = way.partition("_")
    return f"{int(count):,} {_WAYS.get(kind, kind)}" if count else _WAYS[kind]


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}


if __name__ == "__main__":
    for title, figure in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{title:40} {figure['value']:>12} {figure['unit']:18} n={figure['n']:<6} {figure['how']}")
