# SPDX-License-Identifier: Apache-2.0
"""`make soak`: `hauberk up` under floods for minutes, its rules probed all the while; what must not happen is counted.

A container is held by rules that deny a connection and kill an exec and an open. Every 10 ms one of the three is tried, in
turn (`prober.c`); a try that is not stopped is a *miss*. Beside it run, one after the other and again: a flood of new names, of execs and
of repeated opens by another container; cgroups nested 1,100 deep and 2,000 side by side in the held one; 1,500 idle connections
to the page and the metrics; policies that come and go. Memory and descriptors of `up` are read once a second.

The result is a JSON object and the exit status: 1 when a rule was missed, a stage failed, descriptors or memory grew, or `up` did not end
clean. Memory may move by `SLACK_MB` from the first third (everything has happened once) to the last. Neighbours: `live`, `prober.c`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kernel.features import cgroup2_mount
from kernel.loading import unload
from sinks.listener import BACKLOG, CONNECTIONS

NAME: Final = f"hauberk-soak-{os.getpid()}"
PERIOD_MS: Final = 10
NICE: Final = -15
"""Of the prober: it measures whether rules hold, not when a crowded machine gets round to it. Needs root, as all of this."""
SLACK_MB: Final = 10.0
SLACK_FDS: Final = 16
PORTS_FDS: Final = 2 * (CONNECTIONS + BACKLOG + 16)
"""Most that the two ports may take for a moment; the page has places for 16 browsers more."""
POLICY: Final = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  severity: 9
  process: {{matchPaths: [{{path: {home}/blocked}}]}}
  file: {{matchPaths: [{{path: {home}/{secret}}}]}}
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Block
"""
PROBER: Final = Path(__file__).parent / "prober.c"
ENTERED: Final = """
import os, sys
os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""
NAMES: Final = """
import os, sys, time
end, number = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    number += 1
    try: os.open("/tmp/none/%d-%d" % (os.getpid(), number), os.O_RDONLY)
    except OSError: pass
"""
OPENS: Final = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    os.close(os.open("/dev/null", os.O_RDONLY))
"""
EXECS: Final = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    pid = os.fork()
    if not pid:
        os.execv("/bin/true", ["true", str(time.monotonic())])
    os.waitpid(pid, 0)
"""
IDLE: Final = """
import socket, sys, time
held, end = [], time.monotonic() + float(sys.argv[1])
for number in range(1500):
    one = socket.socket()
    try:
        one.connect(("127.0.0.1", int(sys.argv[2 + number % 2])))
        one.send(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nX: ")
    except OSError: pass
    held.append(one)
time.sleep(max(0.0, end - time.monotonic()))
"""


class Soak:
    """One run: `up`, the probes, the floods, the figures."""

    def __init__(self, home: Path, seconds: float) -> None:
        self.home, self.seconds = home, seconds
        mount = cgroup2_mount()
        assert mount is not None, "no cgroup v2 mount; mount -t cgroup2 none /sys/fs/cgroup/unified"
        self.cgroups = {name: Path(f"{mount}/{NAME}-{name}") for name in ("held", "flood")}
        self.pins = f"/sys/fs/bpf/{NAME}"
        self.memory: list[float] = []
        self.descriptors: list[int] = []
        self.floods: dict[str, int] = {}
        self.policies = 0
        self.missed: list[dict[str, Any]] = []
        workloads = [
            {"name": name, "cgroup": f"/{path.name}", "labels": {"app": name}} for name, path in self.cgroups.items()
        ]
        settings = {
            "postures": {"host_visibility": ["none"]}, "node": "soak", "sensor": {"pin_dir": self.pins},
            "inventory": {"runtimes": [], "workloads": workloads}, "page": {"port": 0},
            "sinks": [{"type": "file", "path": f"{home}/alerts.jsonl"}, {"type": "prometheus", "port": 0},
                      {"type": "store", "path": f"{home}/summary.db"}],
        }  # fmt: skip
        (home / "settings.json").write_text(json.dumps(settings))
        (home / "secret").write_text("secret")
        shutil.copy("/bin/true", home / "blocked")
        subprocess.run(["cc", "-O2", "-o", home / "prober", PROBER], check=True)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")}
        self.environment = plain | {"HAUBERK_STATE": f"{home}/state", "HAUBERK_CONFIG": f"{home}/settings.json"}
        self.up: subprocess.Popen[bytes] | None = None
        self.prober: subprocess.Popen[str] | None = None

    def said(self) -> str:
        """Standard error of `up` so far."""
        return (self.home / "up.err").read_text()

    def start(self) -> None:
        """`up`, with the rules in force."""
        for path in self.cgroups.values():
            path.mkdir()
        self._policy("held", "held", "secret")
        with (self.home / "up.err").open("w") as err:
            self.up = subprocess.Popen(
                [sys.executable, "-m", "hauberk", "up", "-q", "-f", f"{self.home}/held.yaml"],
                env=self.environment, stdout=err, stderr=err, stdin=subprocess.DEVNULL, cwd=self.home,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while not re.search(r"(?m)^  bus  ", self.said()):
            assert self.up.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        self._apply("held")

    def _policy(self, name: str, app: str, secret: str) -> None:
        (self.home / f"{name}.yaml").write_text(POLICY.format(name=name, app=app, home=self.home, secret=secret))

    def _apply(self, name: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "hauberk", "apply", "-f", f"{self.home}/{name}.yaml", "--wait", "60"],
            env=self.environment, capture_output=True, text=True, check=False, cwd=self.home,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}{self.said()}"
        self.policies += 1

    def inside(self, name: str, program: str, *words: str, **options: Any) -> subprocess.Popen[str]:
        """A Python program in one of the cgroups."""
        # Floods give way: what is measured is whether rules hold, not how much one machine can bear.
        polite = "import os\nos.nice(10)\n" if name == "flood" else ""
        enter = f"{polite}open({str(self.cgroups[name] / 'cgroup.procs')!r}, 'w').write('0')\n"
        return subprocess.Popen([sys.executable, "-S", "-c", enter + program, *words], text=True, **options)

    def probe(self) -> subprocess.Popen[str]:
        """The prober, in the held container until SIGTERM; what it says is on its standard output."""
        words = [f"{self.home}/prober", f"{self.home}/blocked", f"{self.home}/secret", str(PERIOD_MS)]
        self.prober = self.inside("held", ENTERED, str(NICE), *words, stdout=subprocess.PIPE)
        return self.prober

    def flood(self, seconds: float) -> None:
        """One after the other, until the time is over."""
        ports = [re.search(rf"(?m)^  {what} +http://127.0.0.1:(\d+)", self.said()) for what in ("page", "metrics")]
        numbers = [port[1] for port in ports if port is not None]
        ways: list[tuple[str, Callable[[float], None]]] = [
            ("new names", lambda each: self._run("flood", NAMES, each)),
            ("repeated opens", lambda each: self._run("flood", OPENS, each)),
            ("execs", lambda each: self._run("flood", EXECS, each)),
            ("nested cgroups", lambda each: self._nested(1100, each)),
            ("flat cgroups", lambda each: self._flat(2000, each)),
            ("idle connections", lambda each: self._idle(each, numbers)),
            ("policies", self._policies),
        ]
        end, at = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            name, way = ways[at % len(ways)]
            way(min(10.0, left))
            self.floods[name] = self.floods.get(name, 0) + 1
            at += 1

    def _run(self, name: str, program: str, seconds: float) -> None:
        self.inside(name, program, str(seconds)).wait()

    def _idle(self, seconds: float, ports: list[str]) -> None:
        subprocess.run([sys.executable, "-S", "-c", IDLE, str(seconds), *ports], check=False)

    def _policies(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._policy("other", "flood", f"secret-{time.monotonic_ns()}")
            self._apply("other")

    def _nested(self, depth: int, seconds: float) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY
        fds = [os.open(self.cgroups["held"], flags)]
        try:
            for _ in range(depth):
                os.mkdir("a", dir_fd=fds[-1])
                fds.append(os.open("a", flags, dir_fd=fds[-1]))
            self._policies(min(seconds, 3.0))
        finally:
            while len(fds) > 1:
                os.close(fds.pop())
                os.rmdir("a", dir_fd=fds[-1])
            os.close(fds.pop())

    def _flat(self, many: int, seconds: float) -> None:
        made = [self.cgroups["held"] / f"n{number}" for number in range(many)]
        try:
            for path in made:
                path.mkdir()
            self._policies(min(seconds, 3.0))
        finally:
            for path in made:
                if path.exists():
                    path.rmdir()

    def watch(self, over: threading.Event) -> None:
        """Memory (MB resident) and descriptors of `up`, once a second."""
        assert self.up is not None
        while not over.wait(1.0):
            try:
                status = Path(f"/proc/{self.up.pid}/status").read_text()
                self.descriptors.append(len(os.listdir(f"/proc/{self.up.pid}/fd")))
            except OSError:
                return
            if found := re.search(r"VmRSS:\s+(\d+)", status):
                self.memory.append(int(found[1]) / 1024)

    def close(self) -> None:
        """Take down what is left, however the run ended."""
        if self.prober is not None and self.prober.poll() is None:
            self.prober.kill()
            self.prober.wait()
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGINT)
            try:
                self.up.wait(60)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait()
        if os.path.isdir(self.pins):
            unload(self.pins)
        for path in self.cgroups.values():
            deadline = time.monotonic() + 30
            while path.exists() and time.monotonic() < deadline:
                try:
                    path.rmdir()
                except OSError:
                    time.sleep(0.1)


def metric(port: int, pattern: str) -> float:
    """Sum of the samples that match."""
    with socket.create_connection(("127.0.0.1", port), 30) as one:
        one.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        text = b"".join(iter(lambda: one.recv(65536), b"")).decode()
    return sum(float(value) for value in re.findall(rf"(?m)^{pattern}(?:{{[^}}]*}})? (\S+)$", text))


def run(seconds: float) -> dict[str, Any]:
    """Soak for `seconds`: figures, and `problems`, which is empty when all is well."""
    with tempfile.TemporaryDirectory(prefix="hauberk-soak-") as made:
        soak, over = Soak(Path(os.path.realpath(made)), seconds), threading.Event()
        os.chmod(made, 0o711)
        try:
            soak.start()
            assert soak.up is not None
            probe = soak.probe()
            watching = threading.Thread(target=soak.watch, args=(over,))
            watching.start()
            started = time.monotonic()
            soak.flood(seconds)
            took = time.monotonic() - started
            probe.send_signal(signal.SIGTERM)
            said = [json.loads(line) for line in probe.communicate(timeout=60)[0].splitlines()]
            over.set()
            watching.join()
            port = int(re.findall(r"(?m)^  metrics +http://127.0.0.1:(\d+)", soak.said())[-1])
            failures = metric(port, "hauberk_stage_failures_total")
            events = metric(port, "hauberk_sensor_events_total")
            soak.up.send_signal(signal.SIGINT)
            code = soak.up.wait(120)
            return verdict(soak, said, took, failures, events, code)
        finally:
            over.set()
            soak.close()


def verdict(
    soak: Soak, said: list[dict[str, Any]], took: float, failures: float, events: float, code: int
) -> dict[str, Any]:  # fmt: skip
    """The figures of a run that has ended."""
    third = max(1, len(soak.memory) // 3)
    first, last = statistics.median(soak.memory[:third]), statistics.median(soak.memory[-third:])
    fds = statistics.median(soak.descriptors[:third]), statistics.median(soak.descriptors[-third:])
    nothing = {"tries": [0, 0, 0], "misses": [0, 0, 0], "late": 0, "longest_ms": 0.0, "seconds": 1.0}
    totals = said[-1] if said and "tries" in said[-1] else nothing
    problems = []
    if sum(totals["misses"]) or not all(totals["tries"]):
        problems.append(f"{sum(totals['misses'])} of {sum(totals['tries'])} tries were not stopped")
    if failures or "failed (" in soak.said():
        problems.append(f"{failures:g} stages failed: {soak.said()}")
    if last - first > SLACK_MB:
        problems.append(f"memory grew from {first:.1f} to {last:.1f} MB")
    # The fewest of each: connections that a flood holds open while the run ends are no growth.
    fewest = min(soak.descriptors[:third]), min(soak.descriptors[-third:])
    if fewest[1] - fewest[0] > SLACK_FDS:
        problems.append(f"descriptors grew from {fewest[0]} to {fewest[1]}")
    if max(soak.descriptors) > fds[0] + PORTS_FDS + SLACK_FDS:
        problems.append(f"descriptors were {max(soak.descriptors)} once, {fds[0]:g} as a rule")
    if code or os.path.exists(soak.pins):
        problems.append(f"the end was not clean: status {code}")
    return {
        "minutes": round(took / 60, 1), "tries": dict(zip(("connect", "exec", "open"), totals["tries"], strict=True)),
        "misses": dict(zip(("connect", "exec", "open"), totals["misses"], strict=True)), "missed": [one for one in said if "missed" in one][:20],
        "tries_per_second": round(sum(totals["tries"]) / totals["seconds"], 1), "tries_late": totals["late"], "longest_gap_ms": totals["longest_ms"],
        "memory_mb": {"first_third": round(first, 1), "last_third": round(last, 1), "most": round(max(soak.memory), 1)},
        "descriptors": {"first_third": fds[0], "last_third": fds[1], "most": max(soak.descriptors)},
        "floods": soak.floods, "policies_applied": soak.policies, "events": events, "stage_failures": failures, "problems": problems,
    }  # fmt: skip


def main() -> int:
    """Run for some minutes; 1 when something happened that must not."""
    parser = argparse.ArgumentParser(prog="make soak MINUTES=...", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    found = run(parser.parse_args().minutes * 60)
    print(json.dumps(found, indent=1))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
