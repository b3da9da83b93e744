# SPDX-License-Identifier: Apache-2.0
"""What it costs to carry out a plan of 500 containers with 200 rules each, and of one with 10,000, by the tables of the LSM hooks;
and the memory of the kernel's maps.

The tables are written into real maps as they are where the hooks ask them; hooks are not attached, so it runs on any kernel that the
programs load on. Every container has rules of its own: equal ones share a table and cost nothing. Needs root, BPF and cgroup v2.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parent))

import msgspec
from held import boxes, memory
from own_pins import own_pins

from enforcers.apply import Applier
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import cgroup2_mount
from enforcers.plan import Planner
from enforcers.registry import Usable
from kernel.loading import LoadSettings, load
from policy.parse import parse
from policy.ruleset import compile_ruleset
from schemas.enforcement import Plan, encode
from schemas.errors import HauberkError
from schemas.identity import Identity, Kind

Result = dict[str, dict[str, Any]]
NODE: Final = "bench"
CONTAINERS, RULES, MANY = 500, 200, 10_000
TABLES: Final = ("rules", "net_rules", "scopes")


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute. Fewer containers below, never fewer rules of one."""
    if os.geteuid() != 0 or not cgroup2_mount():
        print("bench_apply: needs root and cgroup v2", file=sys.stderr)
        return {}
    containers = max(3, round(CONTAINERS * min(1.0, scale)))
    settings = LoadSettings(
        occurrence_pages=256, definition_pages=256, new_visibility=("none",), rules=1 << 18, scopes=1 << 14
    )
    try:
        with own_pins() as pins:
            load(settings, pins)
            return _applied(pins, "apply", containers, RULES) | _applied(pins, "apply_one", 1, MANY) | _maps(pins)
    except HauberkError as error:
        print(f"bench_apply: {error}", file=sys.stderr)
        return {}


def _policy(number: int, rules: int) -> Any:
    paths = ", ".join(f"{{path: /srv/app-{number}/data/file-{at}}}" for at in range(rules // 2))
    programs = ", ".join(f"{{path: /srv/app-{number}/bin/tool-{at}}}" for at in range(rules - rules // 2))
    text = (
        f"apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {{name: p{number}, namespace: shop}}\n"
        f"spec: {{selector: {{matchLabels: {{app: a{number}}}}}, file: {{matchPaths: [{paths}]}}, process: {{matchPaths: [{programs}]}}, action: Block}}\n"
    )
    return parse(text, "bench").policies[0]


def _spent(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gave, seconds of the clock and of the processor, the kernel's share included."""
    began, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - began, time.process_time() - cpu


def _applied(pins: str, name: str, containers: int, rules: int) -> Result:
    """Policies to plan to maps for `containers`, each with a policy of its own of `rules` rules."""
    policies = [_policy(number, rules) for number in range(containers)]
    with boxes([str(number) for number in range(containers)]) as made:
        identities = [
            Identity(
                kind=Kind.CONTAINER, node=NODE, uid=f"uid-{number}", cgroups=(box.stat().st_ino,), cgroup_path=str(box).removeprefix(cgroup2_mount()),
                namespace="shop", container_name="box", labels={"app": f"a{number}"},
            )
            for number, box in made.items()
        ]  # fmt: skip
        ruleset, *compiled = _spent(lambda: compile_ruleset(policies))
        plan, *planned = _spent(lambda: Planner(ruleset).plan(NODE, identities, 1))
        applier = Applier(pins, NODE, grace=0.0, chosen=Usable((LsmEnforcer(pins),), (), ()))
        try:
            empty = memory(pins)
            receipt, *applied = _spent(lambda: applier.apply(plan))
            assert (receipt.scopes, receipt.rules, receipt.failed) == (containers, containers * rules, ()), receipt
            full = memory(pins)
            again: Plan = msgspec.structs.replace(plan, generation=2)
            before = applier.writes
            _, *unchanged = _spent(lambda: applier.apply(again))
            assert applier.writes == before
        finally:
            applier.clear()
            applier.close()
    n = containers * rules
    how = f"{containers} containers with {rules:,} rules each, no two alike"
    times = {
        "compile": (compiled, "documents to ruleset"),
        "plan": (planned, "ruleset to plan"),
        "push": (applied, "plan to maps: encode, hash, fill, switch"),
        "again": (unchanged, "the same plan again, no map writes"),
    }
    found = {
        f"{name}_{step}{suffix}": _figure(spent[at], "s", n, f"{what}; {how}; {clock}")
        for step, (spent, what) in times.items()
        for at, (suffix, clock) in enumerate((("", "the clock"), ("_cpu", "processor time of the process")))
    }
    used = sum(full[one] - empty[one] for one in TABLES)
    told = f"{', '.join(TABLES)} with it less without, as the kernel counts them (memlock): 0 where entries have their place from the start; {how}"
    found[f"{name}_written"] = _figure(used / 1e6, "MB", n, told)
    found[f"{name}_record"] = _figure(len(encode(plan)) / 1e6, "MB", n, f"the plan as a record of the bus; {how}")
    return found


def _maps(pins: str) -> Result:
    found = memory(pins)
    how = "as the kernel counts it, at the default sizes (262,144 path rules, 65,536 network rules, 16,384 scopes), small rings"
    return {
        "apply_maps": _figure(sum(found.values()) / 1e6, "MB", len(found), f"all pinned maps; {how}"),
        "apply_maps_rules": _figure(sum(found[one] for one in TABLES) / 1e6, "MB", len(TABLES), f"{', '.join(TABLES)}; {how}"),
    }  # fmt: skip


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 4), "unit": unit, "n": n, "how": how}


if __name__ == "__main__":
    for title, figure in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{title:28} {figure['value']:>10} {figure['unit']:4} n={figure['n']:<7} {figure['how']}")
