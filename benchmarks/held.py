# SPDX-License-Identifier: Apache-2.0
"""What an open, an exec and a connect cost in a cgroup that the LSM hooks hold: the part that runs in the kernel that asks them.

In stages, so that what costs Python much is done outside of an emulated machine: `plain` (no agent, and under profiles of AppArmor
alone), `load`, then `measure` with the tables that `tables` made for the load's key. Each stage says what it found as JSON. Cgroups
and tables lie beside each other and are asked in turn. Neighbours: `bench_lsm` (who asks), `held.c` (the calls).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from enforcers import apparmor_profile
from enforcers.apparmor import AppArmorEnforcer
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import cgroup2_mount
from enforcers.encoding import Encoder
from enforcers.tables import KernelTables
from kernel import bpf
from kernel.catalogue import PROBES
from kernel.hooks import HOOKS
from kernel.loading import LoadSettings, existing, load, mount_bpffs
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.errors import HauberkError
from schemas.kernel import Config, ScopeFlag
from schemas.operations import Class
from schemas.verdict import Action, RuleRef

CALLS: Final = ("open", "exec", "connect")
SETTINGS: Final[dict[str, object]] = {
    "new_visibility": ["none"], "occurrence_pages": 256, "definition_pages": 256, "hooks": True
}  # fmt: skip
"""Nothing is watched: what is measured is enforcement. The same as `vmrig.programs.HOOKED`, so that they are compiled already."""
ASKED: Final = {
    "rules": CALLS, "directories": CALLS[:2], "patterns": CALLS[:2], "near": CALLS[2:],
}  # fmt: skip
"""Kinds of tables, and the calls that ask them."""
_PATHS: Final = {
    "rules": ("path", "/srv/data/{0}/file{0}"), "directories": ("directory_recursive", "/srv/data/{0}/"),
    "patterns": ("pattern", "/**/name{0:05d}"),
}  # fmt: skip
_NETWORKS: Final = {"rules": "10.{}.{}.0/24", "near": "127.{}.{}.0/24"}
_LOOKUPS: Final = ("__htab_map_lookup_elem", "htab_map_lookup_elem", "htab_lru_map_lookup_elem", "trie_lookup_elem")
"""Functions that look a key up in a hash or a trie; cells of an array are read without a call."""
_TRACING: Final = Path("/sys/kernel/tracing")
_MEMLOCK: Final = re.compile(r"^memlock:\s*(\d+)", re.MULTILINE)

Encoded = dict[str, tuple[int, int, dict[str, tuple[tuple[bytes, bytes], ...]], bytes]]
"""Way -> table, flags of the scope, entries by map, cells."""


def scope(kind: str, count: int) -> ScopePlan:
    """`count` Block rules each on files, programs and peers, as far as the kind has them; none matches what is measured."""
    match, text = _PATHS.get(kind, ("", ""))
    paths = tuple(
        PathRule(cls=cls, match=match, value=text.format(at), action=Action.BLOCK, ref=RuleRef("p", position=f"{cls}{at}"))
        for cls in (Class.FILE, Class.PROCESS) for at in range(count if match else 0)
    )  # fmt: skip
    # From the second /24 of a network on: 127.0.0.0/24 is where the calls go. Of any port, or the trie would part at the port already.
    peers = tuple(
        NetworkRule(protocol="tcp", cidr=_NETWORKS[kind].format(*divmod(at, 256)), action=Action.BLOCK, ref=RuleRef("n", kind="KubeArmorNetworkPolicy", position=str(at)))
        for at in range(1, count + 1 if kind in _NETWORKS else 0)
    )  # fmt: skip
    return ScopePlan(uid="u", cgroups=(7,), paths=paths, network=peers)


def tables(key: tuple[int, int], counts: Sequence[int]) -> bytes:
    """`Encoded` for each kind and count, under `key`."""
    encoder = Encoder((LsmEnforcer("/nowhere"),), key)
    made: Encoded = {}
    for kind in ASKED:
        for count in counts:
            one = encoder.encode(scope(kind, count))
            assert not list(one.refused), list(one.refused)[:1]
            made[f"{kind}_{count}"] = (one.table, int(one.flags), one.entries, one.cells)
    return msgspec.msgpack.encode(made)


class Calls:
    """The program of the calls in `place`, compiled in `tools`. `sizes`: how many opens, execs and connects a run has."""

    def __init__(self, tools: Path, place: Path, sizes: Sequence[int]) -> None:
        place.mkdir(exist_ok=True)
        for name in ("held", "nothing"):
            shutil.copy(tools / name, place / name)
        (place / "file").write_text("x")
        self._place, self._sizes = place, dict(zip(CALLS, sizes, strict=True))

    def __call__(self, box: Path, which: Sequence[str] = CALLS, profile: str = "-") -> dict[str, float]:
        """ns of each of the calls `which` in the cgroup, the median of the batches of one run."""
        sizes = [str(self._sizes[call] if call in which else 0) for call in CALLS]
        command = [
            f"{self._place}/held", f"{box}/cgroup.procs", profile, f"{self._place}/file", f"{self._place}/nothing", *sizes
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"held.py: `{' '.join(command)}` failed: {done.stderr.strip()}")
        found = dict(zip(CALLS, map(float, done.stdout.split()), strict=True))
        return {call: found[call] for call in which}

    def size(self, call: str) -> int:
        """How many of them are made in a run."""
        return self._sizes[call]


@contextlib.contextmanager
def boxes(names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """A cgroup for each name, removed afterwards."""
    mount = cgroup2_mount()
    made = {name: Path(f"{mount}/hauberk-bench-{os.getpid()}-{name}") for name in names}
    try:
        for one in made.values():
            one.mkdir()
        yield made
    finally:
        for one in made.values():
            with contextlib.suppress(OSError):
                one.rmdir()


def plain(calls: Calls, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Way -> call -> ns of each round: without an agent, and under AppArmor's profiles of the same rules."""
    profiles = {"plain": "-"}
    aa = AppArmorEnforcer()
    if not aa.unusable():
        for count in counts:
            name = f"hauberk-bench-{count}"
            try:
                aa.load(name, apparmor_profile.render(scope("rules", count)).text)
            except HauberkError as error:  # the parser has a minute
                print(f"held.py: {error}", file=sys.stderr)
                continue
            profiles[f"apparmor_{count}"] = name
    found: dict[str, dict[str, list[float]]] = {way: {call: [] for call in CALLS} for way in profiles}
    with boxes(["plain"]) as made:
        for number in range(rounds):
            for way in list(profiles)[:: -1 if number % 2 else 1]:
                for call, value in calls(made["plain"], profile=profiles[way]).items():
                    found[way][call].append(value)
    for name in set(profiles.values()) - {"-"}:
        subprocess.run(["apparmor_parser", "--remove"], input=f"profile {name} {{\n}}\n", text=True, check=False)
    return {"ns": found}


def start(pins: str) -> dict[str, Any]:
    """The programs with their hooks under `pins`: key, what the verifier went through for each hook, bytes of each map."""
    mount_bpffs(os.path.dirname(pins))
    made = load(msgspec.convert(SETTINGS | {"timeout": 3600.0}, LoadSettings), pins)
    if why := made.refused.get("lsm"):
        raise SystemExit(f"held.py: {why}")
    with made.map("config") as config:
        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
    verified = {}
    for name in _hooks(pins):
        fd = bpf.pinned(f"{pins}/programs/{name}")
        verified[name] = bpf.program_verified(fd)
        os.close(fd)
    return {"key": made.key, "verified": verified, "maps": memory(pins), "seconds": made.seconds}


def memory(pins: str) -> dict[str, int]:
    """Bytes of each pinned map as the kernel counts them."""
    found = {}
    for name in sorted(os.listdir(f"{pins}/maps")):
        fd = bpf.pinned(f"{pins}/maps/{name}")
        match = _MEMLOCK.search(Path(f"/proc/self/fdinfo/{fd}").read_text())
        found[name] = int(match[1]) if match else 0
        os.close(fd)
    return found


def measure(calls: Calls, pins: str, given: bytes, rounds: int) -> dict[str, Any]:
    """For each way: ns of its calls in each round, ns and runs of the hooks and of the other programs, look-ups."""
    made = msgspec.msgpack.decode(given, type=Encoded)
    ways = {"nothing": CALLS} | {way: ASKED[way.partition("_")[0]] for way in made}
    tables = KernelTables(pins, (LsmEnforcer(pins),), 0.0)
    ns: dict[str, dict[str, list[float]]] = {way: {call: [] for call in which} for way, which in ways.items()}
    with boxes(list(ways)) as box:
        try:
            for way, (table, flags, entries, cells) in made.items():
                tables.fill(table, entries, cells)
                tables.switch(box[way].stat().st_ino, table, ScopeFlag(flags))
            for number in range(rounds):
                for way in list(ways)[:: -1 if number % 2 else 1]:
                    for call, value in calls(box[way], ways[way]).items():
                        ns[way][call].append(value)
            return {
                "ns": ns, "programs": _programs(calls, pins, ways, box), "lookups": _lookups(calls, ways, box), "maps": memory(pins)
            }  # fmt: skip
        finally:
            for way in made:
                tables.release(box[way].stat().st_ino)
            tables.retire(set())
            tables.sweep(everything=True)
            tables.close()


def _hooks(pins: str) -> list[str]:
    return [name for hook in HOOKS if os.path.exists(f"{pins}/programs/{(name := f'lsm_{hook.name}')}")]


def _programs(calls: Calls, pins: str, ways: dict[str, Any], box: dict[str, Path]) -> dict[str, Any]:
    """Way -> call -> [ns and runs of the hooks, ns and runs of the sensor's programs] a call, by the kernel's statistics."""
    hooks = [bpf.pinned(f"{pins}/programs/{name}") for name in _hooks(pins)]
    rest = [bpf.pinned(f"{pins}/programs/{probe.name}") for probe in PROBES]
    stats = bpf.enable_stats()

    def counted(way: str, which: Sequence[str]) -> list[int]:
        before = [bpf.program_time(fd) for fd in (*hooks, *rest)]
        calls(box[way], which)
        after = [bpf.program_time(fd) for fd in (*hooks, *rest)]
        spent = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]
        parts = (spent[: len(hooks)], spent[len(hooks) :])
        return [sum(one[at] for one in part) for part in parts for at in (0, 1)]

    found: dict[str, dict[str, list[float]]] = {}
    try:
        for way, which in ways.items():
            found[way] = {}
            for call in which:
                # The start of the program itself is in both.
                rounds = [
                    [b - a for a, b in zip(counted(way, ()), counted(way, (call,)), strict=True)] for _ in range(3)
                ]
                found[way][call] = [statistics.median(one) / calls.size(call) for one in zip(*rounds, strict=True)]
    finally:
        for fd in (stats, *hooks, *rest):
            os.close(fd)
    return found


def _lookups(calls: Calls, ways: dict[str, Any], box: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Way -> call -> keys looked up in hashes and tries a call, by whatever program; nothing where the kernel takes no probes."""
    group = f"hauberk_bench_{os.getpid()}"
    probes = [f"{group}_{at}" for at, name in enumerate(_LOOKUPS) if _told(f"p:{group}/{group}_{at} {name}")]
    if not probes:
        return {}
    enabled = _TRACING / "events" / group / "enable"

    def counted(way: str, which: Sequence[str]) -> int:
        before = _hits(probes)
        calls(box[way], which)
        return _hits(probes) - before

    try:
        enabled.write_text("1")
        return {
            way: {call: (counted(way, (call,)) - counted(way, ())) / calls.size(call) for call in which}
            for way, which in ways.items()
        }
    finally:
        enabled.write_text("0")
        for probe in probes:
            _told(f"-:{group}/{probe}")


def _told(line: str) -> bool:
    """Whether the kernel took a line about its probes. Never truncated: the others are somebody's. And not by `open`, which seeks."""
    try:
        fd = os.open(_TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    except OSError:
        return False
    try:
        os.write(fd, f"{line}\n".encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _hits(probes: Sequence[str]) -> int:
    lines = [line.split() for line in (_TRACING / "kprobe_profile").read_text().splitlines()]
    return sum(int(words[1]) + int(words[2]) for words in lines if words[0] in probes)


def main() -> int:
    """One stage."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("stage", choices=("plain", "load", "measure"))
    asked.add_argument("--pins", required=True, help="in a bpffs, or in a directory that one is mounted at")
    asked.add_argument(
        "--room",
        type=Path,
        required=True,
        help="with the compiled programs and the tables; STAGE.json is written there",
    )
    asked.add_argument("--place", type=Path, required=True, help="a directory of files that are kept in memory")
    asked.add_argument("--sizes", type=json.loads, required=True, help="opens, execs and connects of a run")
    asked.add_argument("--counts", type=json.loads, required=True, help="rules of the profiles of AppArmor")
    asked.add_argument("--rounds", type=int, required=True)
    given = asked.parse_args()
    calls = Calls(given.room, given.place, given.sizes)
    try:
        if given.stage == "plain":
            found = plain(calls, given.counts, given.rounds)
        elif given.stage == "load":
            found = start(given.pins)
        else:
            assert existing(given.pins) is not None
            found = measure(calls, given.pins, (given.room / "tables").read_bytes(), given.rounds)
    except HauberkError as error:
        print(f"held.py: {given.stage}: {error}", file=sys.stderr)
        return 1
    (given.room / f"{given.stage}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
