# SPDX-License-Identifier: Apache-2.0
"""The small form of the scorecard (`make bench BENCH=discovery` is the whole of it): the gates hold on some of the recorded workloads, and
methods that deserve it fail them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench_discovery  # noqa: E402

WORKLOADS = ["curl", "nginx", "pyweb", "redis", "sqlite"]
GATES = {
    name: json.loads((BENCHMARKS / "budgets.json").read_text())[f"discovery_{name}"]["bound"] / 100
    for name, _ in bench_discovery.GATES
}


def missed(method: Any, workloads: list[str] = WORKLOADS, turns: int = 2) -> set[str]:
    made = bench_discovery.score(method, 10, workloads, turns)
    assert made.asked("replay") > 1000
    assert made.asked("attacks") > 100
    assert all(made.asked(name) for name in GATES)
    return {name for name, bound in GATES.items() if made.worst(name) < bound}


def test_every_gate_holds_in_every_split() -> None:
    assert len(GATES) == 7
    assert missed(bench_discovery.hauberk) == set()


@pytest.mark.parametrize(
    ("method", "fails"),
    [
        (lambda training: ((lambda one: True), 1), {"others_read", "others_write", "others_exec", "attacks"}),
        (lambda training: ((lambda one: False), 1), {"replay", "events", "clean"}),
        (bench_discovery.METHODS["exact"], {"events", "clean"}),
        (bench_discovery.METHODS["engine_2023"], {"replay", "events", "clean", "attacks"}),
    ],
    ids=["everything", "nothing", "exact", "engine of 2023"],
)
def test_who_deserves_it_fails(method: Any, fails: set[str]) -> None:
    assert missed(method, turns=1) >= fails


def test_attacks_in_the_training_are_told_and_stay_denied() -> None:
    made = bench_discovery.poisoned(WORKLOADS[:2], 1)
    assert made.asked("both") >= 9
    assert made.share("denied") == 1
    assert made.share("told") == 1


def test_splits_hold_out_others_each_time() -> None:
    runs = [[number] for number in range(12)]
    for k in bench_discovery.TRAINED:
        found = bench_discovery.splits(runs, k)
        assert len(found) == bench_discovery.SPLITS
        for trained, held_out in found:
            assert len(trained) == k
            assert sorted(trained + held_out) == runs
        assert len({str(sorted(trained)) for trained, _ in found}) == 3
    held = [one for _, held_out in bench_discovery.splits(runs, 10) for one in held_out]
    assert len(held) == len({str(one) for one in held}) == 6
