# SPDX-License-Identifier: Apache-2.0
"""What the kernel's matcher costs per path, with 10, 1,000 and 10,000 rules: it is to be flat.

The code of the LSM hooks, run on request (tests/fuzz/matcher.py), so that it needs no kernel that asks such hooks. Time is the kernel's
own of the program's runs (BPF_STATS_RUN_TIME). The tables lie beside each other and are asked in turn; the least of many rounds counts, so
that a busy machine does not show. A path is hashed and asked about; it is climbed before, which is not in these figures.
`run(scale)`: scale 1.0 takes about a minute, half of it to make the machine of 10,000 patterns.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests/fuzz"))

from matcher import Matcher, compile_matcher, questions

from kernel import bpf
from schemas.behaviour import Behaviour
from schemas.enforcement import PathRule, ScopePlan
from schemas.errors import HauberkError
from schemas.operations import Access, Class
from schemas.verdict import Action, RuleRef

KINDS = {
    "paths": ("path", "/srv/data/{0}/file{0}"), "directories": ("directory_recursive", "/srv/data/{0}/"),
    "patterns": ("pattern", "/**/name{0:05d}"),
}  # fmt: skip
COUNTS = (10, 1000, 10000)
PATH = "/srv/data/12345678/releases/current/lib/module.so"


def _scope(kind: str, count: int) -> ScopePlan:
    match, value = KINDS[kind]
    rules = (
        PathRule(cls=Class.FILE, match=match, value=value.format(at), action=Action.BLOCK, ref=RuleRef("p", position=str(at)))
        for at in range(count)
    )  # fmt: skip
    return ScopePlan(uid="u", cgroups=(7,), paths=tuple(rules))


def _least(matcher: Matcher, tables: list[int], rounds: int) -> list[float]:
    """ns of a run under each of `tables`."""
    asked = [next(questions(table, Behaviour(resource=PATH, access=Access.READ))) for table in tables]
    least = [float("inf")] * len(tables)
    for _ in range(rounds):
        for at, question in enumerate(asked):
            before = bpf.program_time(matcher.program)
            for _ in range(200):
                matcher.ask(question)
            after = bpf.program_time(matcher.program)
            least[at] = min(least[at], (after[0] - before[0]) / (after[1] - before[1]))
    return least


def run(scale: float) -> dict[str, Any]:
    """ns per path and the ratio of the largest table to the smallest, for each kind of rule."""
    if os.geteuid() != 0:
        return {}
    try:
        matcher = Matcher(compile_matcher())
    except HauberkError as error:
        print(f"bench_matcher: not run: {error}", file=sys.stderr)
        return {}
    counts = COUNTS if scale >= 0.5 else COUNTS[:2]
    rounds = max(3, int(150 * scale))
    found: dict[str, Any] = {}
    stats = bpf.enable_stats()
    try:
        for kind in KINDS:
            matcher.clear()
            for number, count in enumerate(counts, 1):
                matcher.fill(number, _scope(kind, count))
            least = _least(matcher, list(range(1, len(counts) + 1)), rounds)
            how = f"{PATH} under {counts[-1]} {kind}, the least of {rounds} rounds of 200"
            found[f"matcher_{kind}"] = {"value": round(least[-1]), "unit": "ns/path", "n": rounds * 200, "how": how}
            found[f"matcher_{kind}_ratio"] = {
                "value": round(least[-1] / least[0], 3), "unit": "x", "n": rounds * 200,
                "how": f"the same against {counts[0]} {kind}",
            }  # fmt: skip
    finally:
        os.close(stats)
        matcher.close()
    return found


if __name__ == "__main__":
    for name, figure in run(1.0).items():
        print(f"{name:28} {figure['value']:>10} {figure['unit']}  {figure['how']}")
