# SPDX-License-Identifier: Apache-2.0
"""`make bench`: every bench_*.py beside this file, as a table with machine and date, and build/bench.json.

A benchmark file offers `run(scale: float) -> {name: {"value", "unit", "n", "how"}}`; `--scale 0.01` is the one-iteration form
that `make test` uses so that they cannot rot. `BUDGETS` are what the project holds itself to; a throughput's budget is of
`NAME_ratio`: CPU per event over what a plain reader in this language takes to copy a row and count its id, measured right before and
after, so that it says the same on a slow machine. Programs of others at the end of system calls are in every figure, and are said.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
BUDGETS = HERE / "budgets.json"


def load(path: Path) -> ModuleType:
    """The benchmark module at `path`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    # What benchmarks share lies beside them; PYTHONSAFEPATH keeps a script's own directory off the path.
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def machine() -> str:
    """Processor, cores, kernel, Python: what a figure is worth nothing without."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"


def ratios(found: dict[str, Any], plain: float, budgets: dict[str, Any]) -> dict[str, Any]:
    """Of each figure in events a second that has a budget as a ratio: times what a plain reader takes, `plain` seconds an event."""
    return {
        f"{name}_ratio": {
            "value": round(1 / (one["value"] * plain), 3), "unit": "x", "n": one["n"],
            "how": f"CPU an event over the {plain * 1e9:.0f} ns of a plain reader that copies a row and counts its id; {one['how']}",
        }
        for name, one in found.items()
        if f"{name}_ratio" in budgets and one["unit"].startswith(("events/s", "behaviours/s")) and one["value"] > 0
    }  # fmt: skip


def verdict(name: str, value: float, budgets: dict[str, Any]) -> str:
    """`ok`, or by how much the budget is missed; empty where there is none."""
    if name not in budgets:
        return ""
    bound, most = budgets[name]["bound"], budgets[name]["sense"] == "most"
    sign = "<=" if most else ">="
    if (value <= bound) if most else (value >= bound):
        return f"ok ({sign} {bound:g})"
    if bound == 0:
        return f"MISSED ({sign} 0)"
    return f"MISSED by {value / bound if most else bound / max(value, 1e-9):.2f}x ({sign} {bound:g})"


def main() -> int:
    """Run all or the named benchmarks; exit 1 when one of them failed to run."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run (bench_NAME.py), default all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size; 0.01 is one short iteration")
    parser.add_argument("--json", type=Path, default=HERE.parent / "build/bench.json", help="where the figures go")
    given = parser.parse_args()
    # What is measured keeps its byte code, as where it is installed: a start without it compiles 300 modules.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    budgets = json.loads(BUDGETS.read_text())
    paths = [path for path in sorted(HERE.glob("bench_*.py")) if not given.names or path.stem[6:] in given.names]
    results: dict[str, Any] = {}
    failed = False
    print(f"# {machine()}, {datetime.date.today()}, scale {given.scale:g}\n")
    spent = load(HERE / "spent.py")
    if others := spent.foreign():
        beside = f"{others} programs of others at the end of system calls, which this figure pays for too"
        print(f"! {beside}; take them down, or compare with figures taken beside them only\n", flush=True)
    for path in paths:
        started = time.monotonic()
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        plain = spent.plain_reader()
        try:
            found = load(path).run(given.scale)
        except Exception as error:  # noqa: BLE001 - one broken benchmark must not hide the others' figures
            print(f"{path.stem}: FAILED: {type(error).__name__}: {error}")
            failed = True
            continue
        found |= ratios(found, min(plain, spent.plain_reader()), budgets)
        for entry in found.values():
            entry["how"] += f"; {beside}" if others else ""
        results |= found
        for name, entry in found.items():
            value = entry["value"]
            shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
            print(
                f"{name:<44} {shown:>16} {entry['unit']:<14} n={entry['n']:<10} {verdict(name, value, budgets)}",
                flush=True,
            )
        print(f"{path.stem}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"_machine": {"value": 0, "unit": "", "n": 0, "how": f"{machine()}, {datetime.date.today()}"}, **results}
    given.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nfigures: {given.json}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
