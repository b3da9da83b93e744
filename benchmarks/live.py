# SPDX-License-Identifier: Apache-2.0
"""A real `hauberk up` or `hauberk node` to measure: its own state, pins, cgroup, taken down completely afterwards.

Only the cgroup made here is a workload, so that no policy of a benchmark reaches anybody else. Neighbours: `bench_latency`,
`bench_memory`; `run.py` puts this directory on the path.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.features import cgroup2_mount
from kernel.loading import unload
from schemas.errors import MissingDependency, Unavailable

PINS = f"/sys/fs/bpf/hauberk-bench-{os.getpid()}"
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def missing() -> str:
    """Why nothing can be measured here; empty when it can."""
    if os.geteuid() != 0:
        return "expected root, got another user; run as root"
    if cgroup2_mount() is None:
        return "expected a cgroup v2 mount, found none; mount -t cgroup2 none /sys/fs/cgroup/unified"
    if not os.path.isdir("/sys/fs/bpf"):
        return "expected /sys/fs/bpf, found none; this kernel has no BPF"
    return ""


class Box:
    """A cgroup that `up` takes for a container with the label app=bench."""

    def __init__(self) -> None:
        self.name = f"/hauberk-bench-{os.getpid()}"
        mount = cgroup2_mount()
        if mount is None:
            raise MissingDependency(missing())
        self.path = Path(mount + self.name)
        self.id = 0

    def make(self) -> None:
        """After the programs are loaded: they watch a cgroup from its birth on."""
        self.path.mkdir()
        self.id = self.path.stat().st_ino

    def popen(self, program: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """A Python program in the cgroup; its standard output is a pipe."""
        enter = f"open({str(self.path / 'cgroup.procs')!r}, 'w').write('0')\n"
        return subprocess.Popen(
            [sys.executable, "-S", "-c", enter + program, *arguments], stdin=stdin, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """Remove it; what just ended in it may take the kernel a moment."""
        deadline = time.monotonic() + 5
        while self.id:
            try:
                self.path.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


class Live:
    """A running process of ours. `state`: its directory; `alerts`: its file of alerts; `box`: the watched cgroup."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, alerts: Path, box: Box) -> None:
        self.process = process
        self.state = state
        self.alerts = alerts
        self.box = box

    def memory(self) -> dict[str, float]:
        """`Rss`, `Pss`, `Anonymous` of the process alone, in MB of 10^6 bytes, from smaps_rollup."""
        found = {}
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024 / 1e6
        return found


@contextmanager
def running(verb: str, *, sets: tuple[str, ...] = ()) -> Iterator[Live]:
    """`hauberk VERB`, ready. Raises Unavailable with its last words when it ends before."""
    box = Box()
    try:
        with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as directory:
            state, said = Path(directory) / "state", Path(directory) / "stderr"
            alerts = Path(directory) / "alerts.jsonl"
            sinks = [
                {"type": "file", "path": str(alerts)},
                {"type": "store", "path": str(Path(directory) / "summary.db")},
                {"type": "prometheus", "port": 0},
            ]
            workload = {"name": "bench", "cgroup": box.name, "namespace": "bench", "labels": {"app": "bench"}}
            settings = [
                f"sensor.pin_dir={PINS}", f"sinks={json.dumps(sinks)}", f"inventory.workloads={json.dumps([workload])}",
                "page.port=0",
                *sets,
            ]  # fmt: skip
            command = [sys.executable, "-m", "hauberk", verb, "--state", str(state)]
            command += ["--quiet"] if verb == "up" else []
            for setting in settings:
                command += ["--set", setting]
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, said.open("wb") as stderr:
                channel.bind(f"{directory}/notify")
                environment = {k: v for k, v in os.environ.items() if not k.startswith("HAUBERK")}
                environment["NOTIFY_SOCKET"] = f"{directory}/notify"
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
                try:
                    _until_ready(process, channel, said)
                    box.make()
                    yield Live(process, state, alerts, box)
                    if process.poll() is not None:
                        raise Unavailable(f"hauberk {verb} ended while measured: {_last(said)}")
                finally:
                    _end(process)
    finally:
        unload(PINS)
        box.close()


def _until_ready(process: subprocess.Popen[bytes], channel: socket.socket, said: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    channel.settimeout(0.2)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if channel.recv(200) == b"READY=1":
                return
        except TimeoutError:
            continue
    raise Unavailable(f"expected {process.args!r} to be ready within {START_SECONDS:g} s; it said: {_last(said)}")


def _last(said: Path) -> str:
    return " | ".join(said.read_text(errors="replace").splitlines()[-5:])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
