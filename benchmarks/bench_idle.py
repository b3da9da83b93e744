# SPDX-License-Identifier: Apache-2.0
"""What a whole `hauberk up` costs at rest and under a steady load without alerts: CPU, wake-ups, bytes written to disk, in all and
by topic.

The page, metrics, a file of alerts and the store are on; only a cgroup of its own is watched. Needs root, BPF, BCC, cgroup v2 and a C
compiler; says what is missing. Other people's cgroups and programs on the same machine are work of `up` too: `how` has the load.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from live import missing, running
from spent import company, compiled, ends, published, spent

RATES = (0, 10_000, 100_000)
TOPICS = ("events.raw", "telemetry", "summaries", "alerts")
"""What events may be written to; raw frames and telemetry only when somebody beside `up` reads them."""
SETTLE = 5.0
"""Seconds until what a start leaves to do is done."""


def run(scale: float) -> dict[str, dict[str, Any]]:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about two minutes."""
    if lacks := missing():
        print(f"bench_idle: {lacks}", file=sys.stderr)
        return {}
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        paced = compiled(Path(directory))
        beside = company()
        with running("up", sets=('postures.host_visibility=["none"]',)) as up:
            for rate in RATES if paced else RATES[:1]:
                time.sleep(SETTLE)
                seconds = max(1.0, 30 * scale)
                before = ends(up)
                one = spent(up, paced, rate, seconds)
                name = f"idle_{rate}" if rate else "idle"
                calls = f"{one.opens * 2 / one.seconds:,.0f} calls a second" if rate else "nothing happening"
                how = f"`hauberk up` over {one.seconds:.0f} s with {calls}; {beside}"
                n = max(1, one.opens)
                result |= {
                    f"{name}_cpu": _figure(one.percent, "% of a core", n, f"CPU of all threads of {how}"),
                    f"{name}_wakeups": _figure(one.wakeups / one.seconds, "/s", n, f"voluntary context switches of {how}"),
                    f"{name}_written": _figure(one.written / one.seconds / 1e6, "MB/s", n, f"bytes sent to the disk by {how}"),
                }  # fmt: skip
                if rate:
                    # What is counted a second or two later belongs to these events.
                    time.sleep(min(SETTLE, seconds))
                    wrote = published(up, before)
                    for topic in TOPICS:
                        result[f"{name}_written_{topic.replace('.', '_')}"] = _figure(
                            1000 * wrote.get(topic, 0) / n, "bytes per 1,000 events", n,
                            f"records that came to the log of `{topic}` (key, value, headers) with `hauberk up` over {one.seconds:.0f} s with {calls}",
                        )  # fmt: skip
    return result


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}
