# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs at a tiny scale, each in a process of its own, and every budget is one of a figure that exists."""

import copy
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py"))
APART = {"cluster", "hook", "kafka_alert", "kafka_memory", "lsm", "recovery", "shares"}
"""Groups that form, processes that are killed, an API server, container runtimes, a booted kernel: half a minute each at any scale. `make bench` runs them; what those over
Kafka measured lies in sizing.json."""
KERNEL = {
    "apply",
    "enforce",
    "flood",
    "hook",
    "idle",
    "kafka_alert",
    "kafka_memory",
    "latency",
    "memory",
    "new",
    "overhead",
    "rates",
    "start",
}
NONE = ("_lost", "_missing", "_undefined", "_unheld")
"""Counts that are wanted to be 0."""
DIFFERENCES = ("overhead_", "hook_added", "new_paced_cpu", "new_flood_cpu", "enforce_send", "enforce_connect")
"""With and without: at this scale the noise may be larger than the difference, and of either sign."""

DUE = ("_written", "idle_cpu", "idle_wakeups")
"""Bytes on the disk, and the work of a node at rest: in a run of a second none may be due."""


def lacks() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not any(Path(mount, "cgroup.procs").exists() for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")):
        return "needs cgroup v2"
    return "" if Path("/sys/fs/bpf").is_dir() else "needs BPF"


@functools.cache
def sizing() -> Any:
    spec = importlib.util.spec_from_file_location("sizing", BENCHMARKS / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def figures(name: str) -> dict[str, dict[str, Any]]:
    """What `bench_NAME` says at scale 0.01."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "bench.json")
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / "run.py"), name, "--scale", "0.01", "--json", str(out)],
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, dict[str, Any]] = json.loads(out.read_text())
    machine = found.pop("_machine")
    assert "cores" in machine["how"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_runs_and_says_how(name: str) -> None:
    if name in APART and not os.environ.get("HAUBERK_TEST_BENCH"):
        pytest.skip(f"`make bench BENCH={name}` runs it, or HAUBERK_TEST_BENCH=1 this test")
    if name in KERNEL and (why := lacks()):
        pytest.skip(f"bench_{name} {why}")
    found = figures(name)
    assert found
    for title, figure in found.items():
        assert set(figure) == {"value", "unit", "n", "how"}, title
        assert figure["unit"], title
        assert figure["how"], title
        assert isinstance(figure["n"], int), title
        assert figure["n"] > 0, title
        assert isinstance(figure["value"], int | float), title
        assert math.isfinite(figure["value"]), title
        if not title.startswith(DIFFERENCES):
            assert figure["value"] > 0 or (
                figure["value"] == 0 and (title.endswith(NONE) or any(one in title for one in DUE))
            ), title


@pytest.mark.timeout(1200)
def test_every_budget_is_of_a_figure_that_is_measured() -> None:
    if why := lacks():
        pytest.skip(f"figures of the live kernel: {why}")
    asked = FILES if os.environ.get("HAUBERK_TEST_BENCH") else [name for name in FILES if name not in APART]
    measured = {title for name in asked for title in figures(name)} | sizing().taken().keys()
    budgets = json.loads((BENCHMARKS / "budgets.json").read_text())
    # A bench that runs apart names its figures after itself.
    apart = {title for title in budgets if title.startswith(tuple(f"{name}_" for name in set(FILES).difference(asked)))}
    assert budgets.keys() - apart <= measured, sorted(budgets.keys() - apart - measured)
    for title, budget in budgets.items():
        assert set(budget) == {"bound", "sense"}, title
        assert budget["sense"] in ("least", "most"), title


COUNTED = """
import os, struct, sys
sys.path[:0] = [sys.argv[1]]
import bench_overhead, spent
for _ in range(50):
    before = spent.foreign()
    with bench_overhead.empty_program():
        beside = spent.foreign()
    # Other tests attach and detach their own meanwhile.
    if beside == before + 1 and spent.foreign() == before:
        print("counted")
        break
"""


def test_programs_of_others_at_the_end_of_system_calls_are_counted() -> None:
    if why := lacks():
        pytest.skip(f"asks the kernel for its links: {why}")
    done = subprocess.run([sys.executable, "-c", COUNTED, str(BENCHMARKS)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "counted\n", done.stderr


def test_a_throughput_is_held_to_a_ratio_where_its_budget_is_one() -> None:
    code = "import json, sys; sys.path[:0] = [sys.argv[1]]; import run; print(json.dumps(run.ratios(json.loads(sys.argv[2]), 1e-7, {'a_ratio': 0, 'b_ratio': 0})))"
    figure = {"value": 5_000_000, "unit": "events/s", "n": 7, "how": "h"}
    given = {"a": figure, "b": {**figure, "unit": "ms"}, "c": figure}
    done = subprocess.run(
        [sys.executable, "-c", code, str(BENCHMARKS), json.dumps(given)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found.keys() == {"a_ratio"}
    assert (found["a_ratio"]["value"], found["a_ratio"]["unit"], found["a_ratio"]["n"]) == (2.0, "x", 7)


def test_sizes_follow_from_what_was_measured() -> None:
    """Twice the cost of an event is twice the processors, twice the bytes twice the wire; docs/scaling.md is compared by test_docs."""

    def cells(figures: dict[str, Any]) -> list[list[str]]:
        lines = sizing().tables(figures).splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("| nodes"))
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 : first + 6]]

    before = sizing().taken()
    after = copy.deepcopy(before)
    for name in ("kafka_processor_event_cpu", "kafka_wire_event"):
        after[name]["value"] *= 2
    rows = list(zip(cells(before), cells(after), strict=True))
    assert [one[0] for one, _ in rows] == ["10", "50", "200", "1,000"]
    old, new = (int(one[2].replace(",", "")) for one in rows[-1])
    assert abs(new - 2 * old) <= 1
    old_wire, new_wire = (float(one[3].split()[0].replace(",", "")) for one in rows[-1])
    assert new_wire == pytest.approx(2 * old_wire, rel=0.02)
    for one in before.values():
        assert set(one) == {"value", "unit", "n", "how"}
