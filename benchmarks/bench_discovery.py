# SPDX-License-Identifier: Apache-2.0
"""The scorecard of the learner: what its policies allow of runs that it has not seen, and what they stop, beside three baselines.

On `discovery/corpus.bin`: real workloads and attacks recorded by our own sensors (`discovery/record.py`). `hauberk` is the learner through
the real judge, postures at block. Training is on k runs, testing on all others, over three splits; a figure is held to its worst
split, so that no lucky one decides. `python benchmarks/bench_discovery.py [K,... [WORKLOAD ...]]` prints the tables of docs/discovery.md.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

sys.path.append(str(Path(__file__).parent))
from discovery import baselines, corpus, large, lifelike

from policy.learn.documents import count
from policy.learn.learner import LearnSettings, learn
from policy.learn.replay import TrainingReplay
from policy.learn.sightings import Sighting, paths, writes
from schemas.behaviour import Behaviour
from schemas.operations import Class

TRAINED = (1, 2, 5, 10)
SPLITS = 3
_ORDINARY = ("/usr/lib/", "/lib/", "/proc/", "/dev/", "/sys/", "/usr/share/locale/", "/etc/ld.so")
Method = Callable[[list[Sighting]], baselines.Learnt]


def hauberk(training: list[Sighting]) -> baselines.Learnt:
    """Ours, as `discover --isolate` does it."""
    (policy,) = learn(training, LearnSettings(isolate=True))
    replay = TrainingReplay([policy.document])
    judge = replay.scope(training[0].identity).judge
    return (lambda one: judge(one).action.value == "Allow"), count(policy.body)


def _plain(method: Callable[[Iterable[Behaviour]], baselines.Learnt]) -> Method:
    return lambda training: method(one.behaviour for one in training)


METHODS: dict[str, Method] = {
    "hauberk": hauberk,
    "exact": _plain(baselines.exact),
    "engine_2023": _plain(baselines.engine_2023),
    "trie_50": _plain(baselines.trie_50),
}


class Score:
    """Sums over workloads, one for each split."""

    def __init__(self) -> None:
        self.sums: dict[str, list[list[float]]] = {}
        self.rules: list[int] = []

    def add(self, split: int, name: str, good: float, of: float) -> None:
        found = self.sums.setdefault(name, [[0, 0] for _ in range(SPLITS)])[split]
        found[0] += good
        found[1] += of

    def shares(self, name: str) -> list[float]:
        """Of each split in which anything was asked."""
        return [good / of for good, of in self.sums.get(name, ()) if of]

    def share(self, name: str) -> float:
        """Over all splits; 1 when nothing was asked."""
        good, of = (sum(each) for each in zip(*self.sums.get(name, [(0, 0)]), strict=True))
        return good / of if of else 1.0

    def worst(self, name: str) -> float:
        """Of the split that does worst; 1 when nothing was asked."""
        return min(self.shares(name), default=1.0)

    def asked(self, name: str) -> int:
        """How often, over all splits."""
        return int(sum(of for _, of in self.sums.get(name, ())))


def kind(one: Behaviour) -> str:
    """`exec`, `write` or `read`; "" for sockets."""
    if one.cls is Class.NETWORK:
        return ""
    return "exec" if one.cls is Class.PROCESS else "write" if writes(one) else "read"


def splits(some: list[list[Sighting]], k: int) -> list[tuple[list[list[Sighting]], list[list[Sighting]]]]:
    """(training, held out) three times: what is held out (at k = 10) or trained on (below 6) is disjoint."""
    step = len(some) - k if 2 * k > len(some) else len(some) // SPLITS
    orders = [some[start:] + some[:start] for start in range(0, SPLITS * step, step)]
    return [(order[:k], order[k:]) for order in orders]


def score(method: Method, k: int, workloads: list[str], turns: int = SPLITS) -> Score:
    """Everything of the scorecard for one method and one k, over the first `turns` splits."""
    every, made = corpus.runs(), Score()
    for workload in workloads:
        some = every[workload]
        main = _main(some)
        own = {(kind(one.behaviour), path) for run in some for one in run for path in paths(one.behaviour)}
        others = _of_others(workload, tuple(workloads), own)
        attacks = list(_attacks(workload, own))
        for turn, (trained, held_out) in enumerate(splits(some, k)[:turns]):
            training = [one for run in trained for one in run]
            allows, rules = method(training)
            made.rules.append(rules)
            made.add(turn, "replay", sum(allows(one.behaviour) for one in training), len(training))
            for run in held_out:
                denied = sum(one.count for one in run if not allows(one.behaviour))
                total = sum(one.count for one in run)
                made.add(turn, "events", total - denied, total)
                made.add(turn, "clean", not denied, 1)
            for name, behaviours in others.items():
                near = [one for one, there in (_moved(one, main, workload) for one in behaviours) if there]
                made.add(turn, f"others_{name}", sum(not allows(_by(one, main)) for one in behaviours), len(behaviours))
                made.add(turn, f"near_{name}", sum(not allows(one) for one in near), len(near))
            for steps in attacks:
                stopped = [not allows(one) for one in steps]
                made.add(turn, "attacks", any(stopped), 1)
                made.add(turn, "attack_steps", sum(stopped), len(stopped))
    return made


def _main(some: list[list[Sighting]]) -> str:
    """The program that does most."""
    counts: dict[str, int] = {}
    for run in some:
        for one in run:
            counts[one.behaviour.executable] = counts.get(one.behaviour.executable, 0) + one.count
    return max(sorted(counts), key=lambda name: counts[name])


def _by(one: Behaviour, main: str) -> Behaviour:
    return msgspec.structs.replace(one, executable=main, parent=main, script="")


def _of_others(workload: str, workloads: tuple[str, ...], own: set[tuple[str, str]]) -> dict[str, list[Behaviour]]:
    """What other workloads did with something that this one never did so: one behaviour for each kind and path."""
    found: dict[tuple[str, str], Behaviour] = {}
    for other in workloads:
        if other != workload:
            for run in corpus.runs()[other]:
                for one in run:
                    place = (kind(one.behaviour), one.behaviour.resource)
                    if place[0] and place not in own and not place[1].startswith(_ORDINARY):
                        found.setdefault(place, one.behaviour)
    sorted_out: dict[str, list[Behaviour]] = {"read": [], "write": [], "exec": []}
    for (name, _), one in found.items():
        sorted_out[name].append(one)
    return sorted_out


def _moved(one: Behaviour, main: str, workload: str) -> tuple[Behaviour, bool]:
    """The same in this workload's own data directory: the near miss."""
    if not one.resource.startswith("/srv/") or one.cls is Class.PROCESS:
        return one, False
    place = "/".join(["/srv", workload, *one.resource.split("/")[3:]])
    return msgspec.structs.replace(_by(one, main), resource=place, resource2=place if one.resource2 else ""), True


def _attacks(workload: str, own: set[tuple[str, str]]) -> Iterable[list[Behaviour]]:
    """The steps of each attack that this workload never does itself; attacks of which none is left do not count."""
    for behaviours in corpus.attacks().values():
        steps = [
            msgspec.structs.replace(one, resource=one.resource.replace("/srv/attack/", f"/srv/{workload}/")) for one in behaviours
            if not all((kind(one), path) in own for path in paths(one))
        ]  # fmt: skip
        if steps:
            yield steps


def poisoned(workloads: list[str], seed: int) -> Score:
    """Attacks in one of ten training runs, as one event in a hundred: which are told for review, and stay denied as what they are."""
    made, chance = Score(), random.Random(seed)
    for workload in workloads:
        some = corpus.runs()[workload]
        own = {(kind(one.behaviour), path) for run in some for one in run for path in paths(one.behaviour)}
        every = list(_attacks(workload, own))
        for turn, (runs, _) in enumerate(splits(some, 10)):
            training = [one for run in runs for one in run]
            victim = runs[chance.randrange(10)]
            clean = TrainingReplay([learn(training, LearnSettings(isolate=True))[0].document])
            for steps in chance.sample(every, min(3, len(every))):
                each = max(1, sum(one.count for one in training) // 100 // len(steps))
                at = victim[-1].last + 1
                injected = [
                    Sighting(identity=victim[0].identity, behaviour=one, count=each, first=at, last=at) for one in steps
                ]
                if not any(clean.denied(injected)):
                    continue  # what the policy allows without having been shown it cannot be poison
                (policy,) = learn([*training, *injected], LearnSettings(isolate=True))
                denied = list(TrainingReplay([policy.document]).denied(injected))
                told = any(item.resource in paths(one) for item in policy.apart for one in steps)
                made.add(turn, "denied", bool(denied), 1)
                made.add(turn, "told", told, 1)
                made.add(turn, "both", told and bool(denied), 1)
    return made


GATES = (
    ("replay", "training events allowed"), ("events", "held-out events allowed"), ("clean", "held-out runs without a denial"),
    ("others_read", "of other workloads' reads blocked"), ("others_write", "of other workloads' writes blocked"),
    ("others_exec", "of other workloads' programs blocked"), ("attacks", "attacks blocked"),
)  # fmt: skip


def run(scale: float) -> dict[str, dict[str, Any]]:
    """The figures, each of its worst split; at a small scale three workloads and one split."""
    names = sorted(corpus.runs())
    workloads = names if scale >= 1 else [names[0], names[len(names) // 2], names[-1]]
    found: dict[str, dict[str, Any]] = {}
    made = score(hauberk, 10, workloads, SPLITS if scale >= 1 else 1)
    n = len(workloads)
    for name, what in GATES:
        found[f"discovery_{name}"] = _figure(
            100 * made.worst(name),
            "%",
            made.asked(name) or n,
            f"{what}, k = 10, worst of {len(made.shares(name))} splits",
        )
    found["discovery_rules"] = _figure(
        statistics.median(made.rules), "rules", len(made.rules), "median of a policy, k = 10"
    )
    poison = poisoned(workloads, 1)
    for name, what in (("told", "told for review"), ("denied", "denied all the same")):
        found[f"discovery_poison_{name}"] = _figure(
            100 * poison.share(name), "%", poison.asked(name), f"attacks in the training, {what}"
        )
    found["discovery_same_in_any_order"] = _figure(
        100 * _any_order(workloads), "%", n, "policies equal after a shuffle"
    )
    found |= _speed(max(2_000, int(1_000_000 * scale)))
    return found


def _any_order(workloads: list[str]) -> float:
    same = 0
    for number, workload in enumerate(workloads):
        training = [one for some in corpus.runs()[workload][:10] for one in some]
        shuffled = training * 2
        random.Random(number).shuffle(shuffled)
        same += learn(training)[0].body == learn(shuffled)[0].body
    return same / len(workloads)


def _speed(most: int) -> dict[str, dict[str, Any]]:
    """`hauberk discover` itself over a store of `most` behaviours of which no two are the same, and over one of as many rows as instances of
    real workloads fill it: start, reading, learning, replay and writing. `n` says how many, a million at scale 1."""
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as room:
        rows, workloads = large.store(Path(room, "summary.db"), most, int(time.time()) - 24 * 3600)
        seconds, cpu, peak = _discovered(room)
    how = f"of `hauberk discover --outdir` over {most:,} behaviours that all differ ({rows:,} stored rows, {workloads} workloads)"
    found = {
        "discovery_speed": _figure(most / cpu, "behaviours/s", most, f"CPU {how}"),
        "discovery_seconds": _figure(seconds, "s", most, f"wall, {cpu:.1f} s of CPU, {how}"),
        "discovery_memory": _figure(peak / 1e6, "MB", most, f"the most that its processes held together {how}"),
    }
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as room:
        rows, distinct, instances = lifelike.store(Path(room, "summary.db"), most, int(time.time()) - 28 * 86400)
        seconds, cpu, peak = _discovered(room)
    how = f"of the same over {rows:,} stored rows of {instances:,} instances of the recorded workloads ({distinct:,} behaviours differ)"
    return found | {
        "discovery_lifelike_seconds": _figure(seconds, "s", rows, f"wall, {cpu:.1f} s of CPU, {how}"),
        "discovery_lifelike_memory": _figure(
            peak / 1e6, "MB", rows, f"the most that its processes held together {how}"
        ),
    }


def _discovered(room: str) -> tuple[float, float, int]:
    """(seconds by the clock, seconds of CPU, bytes) of one run over the store in `room`."""
    words = [sys.executable, "-m", "hauberk", "discover", "--state", room, "--outdir", f"{room}/out"]
    began = time.monotonic()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, used = _watched(child)
    seconds = time.monotonic() - began
    if child.returncode:
        raise RuntimeError(f"expected `hauberk discover` to end with 0, got {child.returncode}")
    return seconds, used.ru_utime + used.ru_stime, peak


LOOKS = 0.5
"""Seconds between two looks at the memory of processes: each takes milliseconds of a processor, and stops their allocations meanwhile."""


def _watched(child: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage]:
    """(the most bytes that `child` and its children held together, looked at until it ends, and never less than the largest of them alone;
    what they used). `ru_maxrss` is not asked: it begins with what this process held when it made the child."""
    peak, due = 0, time.monotonic()
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return peak, used
        if time.monotonic() >= due:
            family = [child.pid, *_children(child.pid)]
            # Pages that processes share count once.
            together = sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in family)
            peak = max(peak, 1024 * together, *(1024 * _kilobytes(pid, "status", "VmHWM:") for pid in family))
            due = time.monotonic() + LOOKS
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n, "how": how}


COLUMNS = (
    "replay", "events", "clean", "others_read", "others_write", "others_exec", "near_read", "near_write", "attacks", "attack_steps",
)  # fmt: skip


def table(k: int, workloads: list[str]) -> str:
    """A table in Markdown: of each figure the worst split, and behind it the mean where that is another."""
    lines = [
        f"| k = {k} | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} | rules |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, method in METHODS.items():
        made = score(method, k, workloads)
        cells = " | ".join(_cell(made, column) for column in COLUMNS)
        lines.append(f"| {name.replace('_', ' ')} | {cells} | {statistics.median(made.rules):.0f} |")
    return "\n".join(lines)


def _cell(made: Score, column: str) -> str:
    worst, mean = (f"{100 * value:.2f}".replace("100.00", "100") for value in (made.worst(column), made.share(column)))
    return worst if worst == mean else f"{worst} ({mean})"


if __name__ == "__main__":
    chosen = sys.argv[2:] or sorted(corpus.runs())
    for trained in [int(k) for k in sys.argv[1].split(",")] if len(sys.argv) > 1 else TRAINED:
        print(table(trained, chosen) + "\n", flush=True)
    poison = poisoned(chosen, 1)
    print(
        ", ".join(
            f"{name} {100 * poison.share(name):.1f} % of {poison.asked(name)}" for name in ("told", "denied", "both")
        )
    )
