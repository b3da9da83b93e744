# SPDX-License-Identifier: Apache-2.0
"""CPU and disk of a whole `hauberk up` at steady rates of system calls without alerts, and what a plain reader of the same rows takes.

Half of the calls are opens of fifty files, the others their closes. `rates_ratio_*` is CPU per open over the CPU that
copying a row and counting its id takes here, so that it says the same on a slow and on a crowded machine. Needs root, BPF, BCC, cgroup v2
and a C compiler; says what is missing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from live import missing, running
from spent import company, compiled, plain_reader, spent

RATES = (25_000, 100_000, 200_000, 400_000)


def run(scale: float) -> dict[str, dict[str, Any]]:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute and a half."""
    if lacks := missing():
        print(f"bench_rates: {lacks}", file=sys.stderr)
        return {}
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        paced = compiled(Path(directory))
        if not paced:
            print("bench_rates: expected a C compiler, found none; install one", file=sys.stderr)
            return {}
        beside = company()
        with running("up", sets=('postures.host_visibility=["none"]',)) as up:
            time.sleep(3)
            for rate in RATES:
                plain = plain_reader()
                one = spent(up, paced, rate, max(1.0, 15 * scale))
                how = f"`hauberk up` at {one.opens * 2 / one.seconds:,.0f} calls a second for {one.seconds:.0f} s; {beside}"
                per = one.cpu / max(1, one.opens)
                result |= {
                    f"rates_cpu_{rate}": _figure(one.percent, "% of a core", one.opens, f"CPU of all threads of {how}"),
                    f"rates_ratio_{rate}": _figure(
                        per / plain, "x", one.opens, f"{per * 1e9:.0f} ns of CPU an open over {plain * 1e9:.0f} of a plain reader; {how}"
                    ),
                    f"rates_written_{rate}": _figure(one.written / one.seconds / 1e6, "MB/s", one.opens, f"bytes sent to the disk by {how}"),
                }  # fmt: skip
                # What is counted a second later belongs to this rate.
                time.sleep(3)
    return result


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": max(1, n), "how": how}
