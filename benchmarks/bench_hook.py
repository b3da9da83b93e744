# SPDX-License-Identifier: Apache-2.0
"""From a container's first program to its rules, without the OCI hook and with it, and what the hook costs each start.

Containers of runc whose first program makes sockets until one is denied (`tests/attacks/first_act.c`), under a policy that denies them.
Needs root, BPF, runc, busybox and gcc, and says what is missing. Neighbours: tests/hauberk/test_start_hook.py (proves it).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from live import Live, missing, running
from spent import company

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests/runtimes"), str(ROOT / "tests/waiting")]

from container_runtimes import Oci, busybox_root, by_hand  # noqa: E402

Result = dict[str, dict[str, Any]]
CONTAINERS = 40
PLACE = "bench"


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute."""
    programs = [one for one in ("runc", "crun", "busybox", "gcc") if shutil.which(one) is None]
    if lacks := missing() or (f"needs {', '.join(programs)}" if programs else ""):
        print(f"bench_hook: {lacks}", file=sys.stderr)
        return {}
    count = max(3, round(CONTAINERS * scale))
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "root").mkdir()
        (home / "bin").mkdir()
        words = ["gcc", "-O1", "-static", str(ROOT / "tests/attacks/first_act.c"), "-o", str(home / "bin/first_act")]
        subprocess.run(words, check=True)
        with by_hand(home, busybox_root(home / "root")) as oci:
            runtime = json.dumps([{"type": "podman", "roots": [oci.root("runc")]}])
            sets = (
                'postures.host_visibility=["none"]', f"inventory.start_socket={home}/start.sock", f"inventory.runtimes={runtime}",
                f"inventory.container_namespace={PLACE}",
            )  # fmt: skip
            with running("up", sets=sets) as live:
                return _measured(live, oci, home, count)


def _measured(live: Live, oci: Oci, home: Path, count: int) -> Result:
    kinds = {kind: [f"{kind}{os.getpid()}-{number}" for number in range(count)] for kind in ("late", "held", "no")}
    _apply(live, home, [*kinds["late"], *kinds["held"]])
    hook = _hook(home)
    seconds: dict[str, list[float]] = {}
    said: dict[str, list[tuple[int, int, int]]] = {}
    for kind, names in kinds.items():
        seconds[kind], said[kind] = [], []
        for name in names:
            # Of those that no policy selects only the start counts.
            program = ["/bin/true"] if kind == "no" else ["/act/first_act"]
            began = time.monotonic()
            done = oci.output(name, program, hooks={} if kind == "late" else hook, mount=str(home / "bin"))
            seconds[kind].append(time.monotonic() - began)
            if kind != "no":
                acts, microseconds, why = map(int, done.stdout.split())
                said[kind].append((acts, microseconds, why))
    plain = []
    for number in range(count):
        began = time.monotonic()
        oci.output(f"plain{os.getpid()}-{number}", ["/bin/true"])
        plain.append(time.monotonic() - began)
    windows = sorted(one[1] / 1e3 for one in said["late"])
    last = windows[min(count - 1, int(count * 0.95))]
    free = sum(one[2] == 0 for one in said["late"])
    added = (statistics.median(seconds["no"]) - statistics.median(plain)) * 1e3
    beside = company()
    how = f"{count} containers of runc, from main() of their first program to the first denial; {beside}"
    ended = f", of which {free} ended before, after 1 s" if free else ""
    return {
        "hook_without_median": _figure(statistics.median(windows), "ms", count, f"without the hook: {how}{ended}"),
        "hook_without_p95": _figure(last, "ms", count, f"without the hook: {how}{ended}"),
        "hook_without_acts": _figure(statistics.median(one[0] for one in said["late"]), "acts", count, f"sockets made in it; {beside}"),
        "hook_acts_unheld": _figure(max(one[0] for one in said["held"]), "acts", count, f"the most, with the hook: {how}"),
        "hook_added": _figure(added, "ms", count, f"median of `runc run` with the hook, no policy, less that without; {beside}"),
        "hook_interpreter": _figure(_alone(count) * 1e3, "ms", count, f"the hook's program without work: interpreter, imports; {beside}"),
    }  # fmt: skip


def _apply(live: Live, home: Path, names: list[str]) -> None:
    labels = {"kubearmor.io/container.name": f"[{', '.join(names)}]"}
    (home / "policy.json").write_text(json.dumps({
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "bench", "namespace": PLACE},
        "spec": {"selector": {"matchLabels": labels}, "network": {"matchProtocols": [{"protocol": "udp"}]}, "action": "Block"},
    }))  # fmt: skip
    words = ["apply", "--state", str(live.state), "-f", str(home / "policy.json"), "--wait"]
    subprocess.run([sys.executable, "-m", "hauberk", *words], check=True, capture_output=True)


def _hook(home: Path) -> dict[str, Any]:
    words = ["hook", "--form", "spec", "--socket", f"{home}/start.sock", "--seconds", "30"]
    done = subprocess.run([sys.executable, "-m", "hauberk", *words], check=True, capture_output=True)
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def _alone(count: int) -> float:
    from sensors.containers import start_hook

    took = []
    for _ in range(count):
        began = time.monotonic()
        code = f"import sys; sys.argv = ['-']; exec(compile(open({start_hook.__file__!r}).read(), 'hook', 'exec'), {{'__name__': 'hook'}})"
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
        took.append(time.monotonic() - began)
    return statistics.median(took)


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0), indent=1))
