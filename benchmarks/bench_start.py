# SPDX-License-Identifier: Apache-2.0
"""What a start costs: compiling and loading (the first), loading what was compiled before (each later one), all of `hauberk up`.

`start_load_*` is `kernel.loading.load` with a cache directory of its own, pins removed in between; CPU is of the child that loads, most of
it the kernel's verifier. `start_up_*` is from the command to READY with the machine's own cache. Needs root, BPF and BCC, and says what is missing.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

from live import PINS, missing, running
from spent import company

from kernel.loading import LoadSettings, load, unload

WHOLE = 0.5
"""Scale from which the first start, which compiles for ten seconds and more, is measured too."""


def run(scale: float) -> dict[str, dict[str, Any]]:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute."""
    if lacks := missing():
        print(f"bench_start: {lacks}", file=sys.stderr)
        return {}
    result: dict[str, dict[str, Any]] = {}
    rounds = max(1, round(5 * scale))
    beside = company()
    with tempfile.TemporaryDirectory() as own:
        # A short run makes no first start of its own: it takes what this machine has kept.
        place = {"cache": own} if scale >= WHOLE else {}
        first, cpu = _load(place)
        if scale >= WHOLE:
            result["start_load_first"] = _figure(first, "s", 1, f"headers, compile, verify, attach; {beside}")
            result["start_load_first_cpu"] = _figure(cpu, "s", 1, f"CPU of the child that compiles and loads; {beside}")
        each = [_load(place) for _ in range(rounds)]
        how = f"kept programs read, verified, attached and pinned; median of {rounds}; {beside}"
        result["start_load"] = _figure(statistics.median(one for one, _ in each), "s", rounds, how)
        result["start_load_cpu"] = _figure(
            statistics.median(one for _, one in each), "s", rounds, f"CPU of the child: {how}"
        )
    began = time.monotonic()
    with running("up", sets=('postures.host_visibility=["none"]',)):
        took = time.monotonic() - began
    result["start_up"] = _figure(
        took, "s", 1, f"`hauberk up` from the command to READY, programs kept, pins not; {company()}"
    )
    return result


def _load(place: dict[str, str]) -> tuple[float, float]:
    """(seconds, CPU seconds of the child) of one load."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    pins = f"{PINS}-start-{os.getpid()}"
    try:
        load(LoadSettings(new_visibility=("none",)), pins, fresh=True, **place)
        took = time.monotonic() - began
    finally:
        unload(pins)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}
