# SPDX-License-Identifier: Apache-2.0
"""The scorecard of the learner: what its policies allow of runs that it has not seen, and what they stop, beside three baselines.

On `discovery/corpus.bin`: real workloads and attacks recorded by our own sensors (`discovery/record.py`). `hauberk` is the learner through
the real judge, postures at block. Training is on k runs, testing on the others, at k = 10 three times, so
that half of the runs are held out once. `python benchmarks/bench_discovery.py` prints the tables of docs/discovery.md.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

sys.path.append(str(Path(__file__).parent))
from discovery import baselines, corpus

from policy.learn.documents import count
from policy.learn.learner import LearnSettings, learn
from policy.learn.replay import TrainingReplay
from policy.learn.sightings import Sighting, paths, writes
from schemas.behaviour import Behaviour
from schemas.operations import Class
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore

TRAINED = (1, 2, 5, 10)
ROTATIONS = 3
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
    """Sums over workloads and splits."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.rules: list[int] = []

    def add(self, name: str, good: float, of: float) -> None:
        found = self.sums.setdefault(name, [0, 0])
        found[0] += good
        found[1] += of

    def share(self, name: str) -> float:
        good, of = self.sums.get(name, [0, 0])
        return good / of if of else 1.0


def kind(one: Behaviour) -> str:
    """`exec`, `write` or `read`; "" for sockets."""
    if one.cls is Class.NETWORK:
        return ""
    return "exec" if one.cls is Class.PROCESS else "write" if writes(one) else "read"


def score(method: Method, k: int, workloads: list[str], rotations: int) -> Score:
    """Everything of the scorecard for one method and one k."""
    every, made = corpus.runs(), Score()
    for workload in workloads:
        some = every[workload]
        main = _main(some)
        own = {(kind(one.behaviour), path) for run in some for one in run for path in paths(one.behaviour)}
        for turn in range(rotations):
            start = turn * (len(some) - k if k == TRAINED[-1] else 2) % len(some)
            order = some[start:] + some[:start]
            training = [one for run in order[:k] for one in run]
            allows, rules = method(training)
            made.rules.append(rules)
            made.add("replay", sum(allows(one.behaviour) for one in training), len(training))
            for run in order[k:]:
                denied = sum(one.count for one in run if not allows(one.behaviour))
                total = sum(one.count for one in run)
                made.add("events", total - denied, total)
                made.add("clean", not denied, 1)
        for name, behaviours in _of_others(workload, tuple(workloads), own).items():
            moved = [_moved(one, main, workload) for one in behaviours]
            made.add(f"others_{name}", sum(not allows(_by(one, main)) for one in behaviours), len(behaviours))
            made.add(
                f"near_{name}", sum(not allows(one) for one, there in moved if there), sum(there for _, there in moved)
            )
        for steps in _attacks(workload, own):
            stopped = [not allows(one) for one in steps]
            made.add("attacks", any(stopped), 1)
            made.add("attack_steps", sum(stopped), len(stopped))
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
    """Attacks in one of ten training runs, as one event in a hundred: which stay denied, which are told for review."""
    made, chance = Score(), random.Random(seed)
    for workload in workloads:
        some = corpus.runs()[workload]
        own = {(kind(one.behaviour), path) for run in some for one in run for path in paths(one.behaviour)}
        training = [one for run in some[:10] for one in run]
        victim = some[chance.randrange(10)]
        for steps in chance.sample(list(_attacks(workload, own)), 3):
            each = max(1, sum(one.count for one in training) // 100 // len(steps))
            at = victim[-1].last + 1
            injected = [
                Sighting(identity=victim[0].identity, behaviour=one, count=each, first=at, last=at) for one in steps
            ]
            (policy,) = learn([*training, *injected], LearnSettings(isolate=True))
            denied = list(TrainingReplay([policy.document]).denied(injected))
            made.add("denied", bool(denied), 1)
            made.add("told", any(item.resource in paths(one) for item in policy.apart for one in steps), 1)
    return made


def run(scale: float) -> dict[str, dict[str, Any]]:
    """The figures; at a small scale three workloads and one split."""
    names = sorted(corpus.runs())
    workloads = names if scale >= 1 else [names[0], names[len(names) // 2], names[-1]]
    rotations = ROTATIONS if scale >= 1 else 1
    found: dict[str, dict[str, Any]] = {}
    made = score(hauberk, 10, workloads, rotations)
    n = len(workloads)
    for name, unit in (
        ("replay", "training events allowed"), ("events", "held-out events allowed"), ("clean", "held-out runs without a denial"),
        ("others_read", "of other workloads' reads blocked"), ("others_write", "of other workloads' writes blocked"),
        ("others_exec", "of other workloads' programs blocked"), ("attacks", "attacks blocked"),
    ):  # fmt: skip
        found[f"discovery_{name}"] = _figure(
            100 * made.share(name), "%", int(made.sums.get(name, [0, n])[1]) or n, unit + ", k = 10"
        )
    found["discovery_rules"] = _figure(
        statistics.median(made.rules), "rules", len(made.rules), "median of a policy, k = 10"
    )
    poison = poisoned(workloads, 1)
    found["discovery_poison_told"] = _figure(
        100 * poison.share("told"), "%", int(poison.sums["told"][1]), "attacks in the training, told for review"
    )
    found["discovery_poison_denied"] = _figure(
        100 * poison.share("denied"), "%", int(poison.sums["denied"][1]), "attacks in the training, denied all the same"
    )
    found["discovery_same_in_any_order"] = _figure(
        100 * _any_order(workloads), "%", n, "policies equal after a shuffle"
    )
    found |= _speed(workloads, max(2_000, int(1_000_000 * scale)))
    return found


def _any_order(workloads: list[str]) -> float:
    same = 0
    for number, workload in enumerate(workloads):
        training = [one for some in corpus.runs()[workload][:10] for one in some]
        shuffled = training * 2
        random.Random(number).shuffle(shuffled)
        same += learn(training)[0].body == learn(shuffled)[0].body
    return same / len(workloads)


def _speed(workloads: list[str], most: int) -> dict[str, dict[str, Any]]:
    """`hauberk discover` itself over a store of `most` rows: start, reading, learning, replay and writing."""
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as room:
        rows, instances = _stored(Path(room), workloads, most)
        words = [
            sys.executable,
            "-m",
            "hauberk",
            "discover",
            "--since",
            "36500d",
            "--state",
            room,
            "--outdir",
            f"{room}/out",
        ]
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"expected `hauberk discover` to end with 0, got {child.returncode}")
    seconds = used.ru_utime + used.ru_stime
    how = f"CPU of `hauberk discover --outdir` over a store of {instances} instances of {len(workloads)} workloads"
    return {
        "discovery_speed": _figure(rows / seconds, "behaviours/s", rows, f"{seconds:.1f} s of {how}"),
        "discovery_million": _figure(seconds * 1e6 / rows, "s", rows, f"a million stored behaviours, as extrapolated from {rows:,}; {how}"),
        "discovery_memory": _figure(used.ru_maxrss / 1024, "MB", rows, "peak resident size of the same process"),
    }  # fmt: skip


def _stored(state: Path, workloads: list[str], most: int) -> tuple[int, int]:
    """(rows, instances) of a summary store made of the corpus, once more under other names until it has `most` rows."""
    store = SqliteStore(str(state / "summary.db"))
    rows = instances = 0
    while rows < most:
        for workload in workloads:
            batch = []
            for number, some in enumerate(corpus.runs()[workload]):
                instances += 1
                of = msgspec.structs.replace(corpus.identity(workload, number), uid=f"{workload}-{instances}")
                entries = tuple(
                    SummaryEntry(behaviour=one.behaviour, status=one.status, count=one.count, first=one.first, last=one.last) for one in some
                )  # fmt: skip
                rows += len(entries)
                batch.append(Summary(
                    node=of.node, run=f"r{instances}", first_frame=1, last_frame=1, bucket=some[0].first // 10**9 // 60 * 60, identity=of, entries=entries,
                ))  # fmt: skip
            store.apply(batch, [])
    store.close()
    return rows, instances


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n, "how": how}


def table(k: int, workloads: list[str], rotations: int) -> str:
    """A table in Markdown."""
    columns = (
        "replay",
        "events",
        "clean",
        "others_read",
        "others_write",
        "others_exec",
        "near_read",
        "near_write",
        "attacks",
        "attack_steps",
    )
    lines = [
        f"| k = {k} | {' | '.join(name.replace('_', ' ') for name in columns)} | rules |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, method in METHODS.items():
        made = score(method, k, workloads, rotations)
        cells = " | ".join(f"{100 * made.share(column):.2f}" for column in columns)
        lines.append(f"| {name} | {cells} | {statistics.median(made.rules):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    chosen = sys.argv[2:] or sorted(corpus.runs())
    for trained in [int(k) for k in sys.argv[1].split(",")] if len(sys.argv) > 1 else TRAINED:
        print(table(trained, chosen, ROTATIONS if trained == TRAINED[-1] else 1) + "\n", flush=True)
