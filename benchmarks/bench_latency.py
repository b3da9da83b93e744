# SPDX-License-Identifier: Apache-2.0
"""How long it takes, on a real `hauberk up` over this kernel: an open() to its alert in a file; a policy to the kernel's map.

Needs root, BPF, BCC and cgroup v2; says what is missing and leaves those figures out. Acts on a cgroup of its own. Open and
reader are two processes with one clock (CLOCK_REALTIME); the reader sleeps in inotify and counts a line when it could read it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from alerting import ANSWER_SECONDS, Tail, policy, publish
from live import PINS, Live, missing, running

from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from kernel.maps import Map
from schemas.topics import POLICIES

Result = dict[str, dict[str, Any]]
THROTTLE_OFF: Final = "processor.throttle.max_alerts_per_second=0"

# Opens one watched file at random distances, so that no timer of the pipeline is met in step; prints the time of each call.
OPENER = """
import os, random, sys, time
directory, count, fresh, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fresh", int(sys.argv[4])
random.seed(seed)
sys.stdin.readline()
for number in range(count):
    time.sleep(random.uniform(0.02, 0.06))
    path = f"{directory}/{number if fresh else 0}"
    at = time.clock_gettime_ns(time.CLOCK_REALTIME)
    os.close(os.open(path, os.O_RDONLY))
    print(at, path, flush=True)
"""


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute."""
    result = _help(max(3, int(25 * scale)))
    if lacks := missing():
        print(f"bench_latency: {lacks}", file=sys.stderr)
        return result
    # The host is left out: what others do on a shared machine would stand in the queue too.
    with running("up", sets=(THROTTLE_OFF, 'postures.host_visibility=["none"]')) as up:
        watched = str(up.state.parent / "watched")
        count = max(8, int(400 * scale))
        for name in ("probe", "same", "fresh"):
            os.makedirs(f"{watched}/{name}")
            for number in range(count):
                Path(watched, name, str(number)).touch()
        asyncio.run(
            publish(
                up,
                [policy("watch", f"file: {{matchDirectories: [{{dir: {watched}/, recursive: true}}]}}, action: Audit")],
            )
        )
        reader = Tail(up.alerts)
        _first_alert(up, reader, watched)
        for name, mode in (("syscall_to_alert", "same"), ("new_behaviour_to_alert", "fresh")):
            took = _alerts(up, reader, f"{watched}/{mode}", count, mode)
            what = "a behaviour judged before" if mode == "same" else "a behaviour nobody has seen yet"
            how = f"{what}: before open() in a watched cgroup to its line readable in the alerts file; every 20-60 ms"
            result |= _quantiles(name, took, how)
        reader.close()
        took = asyncio.run(_policies(up, max(8, int(200 * scale))))
        how = "published by a bus client in another process to the cgroup's new rule table in the kernel's map"
        result |= _quantiles("policy_to_kernel_up", took, how)
    return result


def _first_alert(up: Live, reader: Tail, watched: str) -> None:
    """The policy is in force once an open is told."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        child = up.box.popen(OPENER, f"{watched}/probe", "1", "same", "0", stdin=subprocess.PIPE)
        child.communicate("\n")
        if any(line.Resource.startswith(watched) for _, line in reader.lines(1.0)):
            return
    raise TimeoutError(f"expected a first alert within {ANSWER_SECONDS:g} s, got none")


def _alerts(up: Live, reader: Tail, watched: str, count: int, mode: str) -> list[float]:
    """Milliseconds of each open. Alerts of one path come in order; each path's are matched in that order."""
    child = up.box.popen(OPENER, watched, str(count), mode, str(count), stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    came: dict[str, list[int]] = {}
    left, deadline = count, time.monotonic() + ANSWER_SECONDS + count * 0.1
    while left and time.monotonic() < deadline:
        for at, line in reader.lines(0.5):
            if line.Resource.startswith(watched + "/"):
                came.setdefault(line.Resource, []).append(at)
                left -= 1
    out, _ = child.communicate()
    made: dict[str, list[int]] = {}
    for line in out.splitlines():
        at, path = line.split(" ", 1)
        made.setdefault(path, []).append(int(at))
    if {path: len(times) for path, times in made.items()} != {path: len(times) for path, times in came.items()}:
        raise ValueError(f"expected an alert for each of {count} opens, {left} did not come")
    return [(b - a) / 1e6 for path, opened in made.items() for a, b in zip(opened, came[path], strict=True)]


async def _policies(up: Live, count: int) -> list[float]:
    """Milliseconds from publish to another table in the scope of the cgroup."""
    took = []
    scope = struct.pack("=Q", up.box.id)
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(up.state / "bus")))
    with Map.open(f"{PINS}/maps/scopes") as scopes:
        table = (scopes.get(scope) or b"")[:8]
        for number in range(-3, count):
            record = policy("hold", f"process: {{matchPaths: [{{path: /opt/tool-{number}}}]}}, action: Block")
            started = time.perf_counter()
            await bus.publish(POLICIES, [record])
            while (now := (scopes.get(scope) or b"")[:8]) == table:
                if time.perf_counter() - started > ANSWER_SECONDS:
                    raise TimeoutError(f"expected another rule table within {ANSWER_SECONDS:g} s, the old one stayed")
                await asyncio.sleep(0.0005)
            took.append((time.perf_counter() - started) * 1000)
            table = now
            # As people do it: one at a time, not in step with any timer.
            await asyncio.sleep(0.01 + number % 7 * 0.007)
    await bus.close()
    # The first ones load what a node that has run for a minute has loaded.
    return took[3:]


def _help(count: int) -> Result:
    command = shutil.which("hauberk", path=os.path.dirname(sys.executable))
    arguments = [command, "--help"] if command else [sys.executable, "-m", "hauberk", "--help"]
    took = []
    for _ in range(count + 1):
        started = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - started) * 1000)
    # The first one filled the page cache.
    took = sorted(took[1:])
    how = "fork to exit, files in the page cache"
    return {
        "help_p50": _figure(statistics.median(took), "ms", count, how),
        "help_best": _figure(took[0], "ms", count, f"{how}; the fastest, what an idle machine shows"),
    }


def _quantiles(name: str, took: list[float], how: str) -> Result:
    took = sorted(took)
    load = f"{how}; load average {os.getloadavg()[0]:.1f}"
    return {
        f"{name}_{label}": _figure(took[min(len(took) - 1, int(len(took) * share))], "ms", len(took), load)
        for label, share in (("p50", 0.5), ("p99", 0.99))
    }


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}
