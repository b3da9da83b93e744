# SPDX-License-Identifier: Apache-2.0
"""`node`, `processor`, `planner` and `sink` as four processes over one embedded bus; the node killed and started again; their memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.maps import Map
from schemas.kernel import Config
from schemas.wakeup import CALLS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("live")]

NAME = f"hauberk-parts-{os.getpid()}"
NODE_MB, UP_MB = 36, 90
POLICY = f"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: parts
spec:
  selector:
    matchLabels:
      kubearmor.io/container.name: {NAME}
  severity: 5
  message: told by parts
  network:
    matchProtocols:
    - protocol: tcp
    matchDNSQueries:
    - domain: example.test
      action: Audit
  file:
    action: Audit
    matchDirectories:
    - dir: /tmp/{NAME}/
      recursive: true
  action: Block
"""


def cgroup_root() -> str:
    return next(
        line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )


class Workload:
    """A cgroup of the test's own that is declared as a container."""

    def __init__(self, name: str = NAME) -> None:
        self.full = Path(cgroup_root(), name)
        self.files = Path("/tmp", name)
        self.files.mkdir()
        self.full.mkdir()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", f'echo $$ > {self.full}/cgroup.procs && exec "$@"', "sh", *command],
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def touch(self, names: list[str]) -> None:
        """Make these files from inside, one open(2) each."""
        code = "import sys\nfor name in sys.argv[1:]: open(name, 'w').close()"
        done = self.run(sys.executable, "-S", "-c", code, *[str(self.files / name) for name in names])
        assert done.returncode == 0, done.stderr

    def connect(self, port: int) -> str:
        code = (
            f"import socket,errno\ntry:\n socket.create_connection(('127.0.0.1',{port}),60)\n print('ok')\n"
            "except OSError as e:\n print(errno.errorcode[e.errno])"
        )
        return self.run(sys.executable, "-S", "-c", code).stdout.strip()

    def ask(self, name: str) -> None:
        """Have a name server that is not there asked for `name`, as a resolver would."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        message = bytes([0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + labels + bytes([0, 0, 1, 0, 1])
        code = f"import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({message!r}, ('127.0.0.1', 53))"
        done = self.run(sys.executable, "-S", "-c", code)
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        for file in self.files.iterdir():
            file.unlink()
        self.files.rmdir()
        deadline = time.monotonic() + 60
        while True:
            try:
                self.full.rmdir()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(100)
        yield made.getsockname()[1]


@pytest.fixture(scope="module")
def parts(make_hauberk: Callable[..., Any]) -> Iterator[Any]:
    """Four running parts and the workload, with the policy in force."""
    made = make_hauberk()
    made.sinks = [{"type": "file", "path": f"{made.state}/alerts.jsonl"}]
    made.pins += "-parts"
    made.more = {
        "HAUBERK__INVENTORY__WORKLOADS": json.dumps([{"name": NAME, "cgroup": f"/{NAME}"}]),
        "HAUBERK__INVENTORY__RUNTIMES": "[]", "HAUBERK__PROCESSOR__THROTTLE__MAX_ALERTS_PER_SECOND": "0", "HAUBERK__SENSOR__LOAD__HOST_VISIBILITY": "0",
    }  # fmt: skip
    made.workload = Workload()
    try:
        made.started = {name: made.start(name, **made.more) for name in ("processor", "planner", "sink", "node")}
        for part in made.started.values():
            part.ready()
        (made.home / "policy.yaml").write_text(POLICY)
        done = made("apply", "-f", "policy.yaml", "--wait", "60", seconds=90)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.close()
        made.workload.close()
        subprocess.run([sys.executable, "-c", "import sys; from kernel.loading import unload; unload(sys.argv[1])", made.pins], check=True)  # fmt: skip
    for name, part in made.started.items():
        assert "Traceback" not in part.said(), (name, part.said())
    assert not Path(made.pins).exists()


def alerts(parts: Any) -> list[dict[str, Any]]:
    file = parts.state / "alerts.jsonl"
    # Whole lines: the last may still be on its way into the file.
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def steady(*pids: int) -> list[tuple[float, float]]:
    """`memory` of each, once none has moved by more than a third of a megabyte in eight seconds; a minute at most."""
    seen = [[memory(pid) for pid in pids]]

    def moved() -> float:
        return max(max(one)[0] - min(one)[0] for one in zip(*seen[-5:], strict=True))

    while len(seen) < 30 and (len(seen) < 5 or moved() > 0.3):
        time.sleep(2)
        seen.append([memory(pid) for pid in pids])
    return seen[-1]


def memory(pid: int) -> tuple[float, float]:
    """(VmRSS, Pss) in MB."""
    resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    share = re.search(r"(?m)^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert resident is not None
    assert share is not None
    return int(resident[1]) / 1024, int(share[1]) / 1024


def test_an_event_becomes_an_alert_and_a_connection_is_denied(parts: Any, listener: int, eventually: Callable[..., Any]) -> None:  # fmt: skip
    eventually(lambda: parts.workload.connect(listener) == "EPERM")
    parts.workload.touch(["first"])
    found = eventually(lambda: [one for one in alerts(parts) if one.get("Resource", "").endswith("/first")])
    assert found[0]["PolicyName"] == "parts"
    assert found[0]["ContainerName"] == NAME
    assert found[0]["Action"] == "Audit"


def test_a_name_that_is_asked_for_is_told(parts: Any, eventually: Callable[..., Any]) -> None:
    parts.workload.ask("other.test")
    parts.workload.ask("API.Example.test")
    # Another test asks for a name of its own.
    found = eventually(
        lambda: [one for one in alerts(parts) if "domain=" in one.get("Data", "") and "called" not in one["Resource"]]
    )
    assert [(one["Operation"], one["Resource"], one["Action"], one["PolicyName"]) for one in found] == [
        ("Network", "API.Example.test", "Audit", "parts")
    ]
    assert found[0]["Data"] == "kfunc=UDP_SENDSKB domain=API.Example.test daddr=127.0.0.1"


def test_events_that_are_alerts_call_the_sensor(parts: Any, eventually: Callable[..., Any]) -> None:
    parts.workload.ask("called.example.test")

    def called() -> int:
        with Map.open(f"{parts.pins}/maps/behaviours") as behaviours:
            return sum(struct.unpack("=Q", value) == (CALLS,) for _, value in behaviours.items())

    assert eventually(called) > 0


def spared(parts: Any) -> int:
    """How many times the kernel's budget of new names is halved."""
    with Map.open(f"{parts.pins}/maps/config") as config:
        return config.sum_u64(struct.pack("=I", Config.SPARED))


def test_a_node_names_less_while_its_processor_is_behind(parts: Any, eventually: Callable[..., Any]) -> None:
    def reported() -> bool:
        # Each look makes a frame of its own: a processor says how far it is while it reads.
        parts.workload.touch(["read"])
        tail = parts("topic", "tail", "progress", "--from", "earliest", "--until-quiet", "0.2")
        return '"number"' in tail.stdout

    processor = parts.started["processor"].process
    eventually(reported)
    processor.send_signal(signal.SIGSTOP)
    # Until its last thread has stopped it reads.
    os.waitid(os.P_PID, processor.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        parts.workload.touch(["unread"])
        eventually(lambda: spared(parts) > 0, 25)
    finally:
        processor.send_signal(signal.SIGCONT)
    eventually(lambda: spared(parts) == 0)


def test_a_killed_node_keeps_enforcing_and_loses_nothing(parts: Any, listener: int, eventually: Callable[..., Any]) -> None:  # fmt: skip
    eventually(lambda: parts.workload.connect(listener) == "EPERM")
    before = parts.started["node"]
    parts.workload.touch(["before"])
    eventually(lambda: any(one.get("Resource", "").endswith("/before") for one in alerts(parts)))
    before.process.send_signal(signal.SIGKILL)
    before.process.wait(60)
    names = [f"meanwhile-{number}" for number in range(200)]
    assert parts.workload.connect(listener) == "EPERM", "enforcement went on"
    parts.workload.touch(names)
    parts.started["node"] = again = parts.start("node", **parts.more)
    again.ready()
    parts.workload.touch(["after"])
    eventually(lambda: any(one.get("Resource", "").endswith("/after") for one in alerts(parts)))

    def missing() -> set[str]:
        return set(names) - {one.get("Resource", "").rsplit("/", 1)[-1] for one in alerts(parts)}

    with contextlib.suppress(AssertionError):
        eventually(lambda: not missing())
    told = alerts(parts)
    lost = [one for one in told if one.get("Operation") == "Loss" or "lost" in str(one.get("Message", "")).lower()]
    assert not missing(), f"{len(missing())} of {len(names)} events from when the node was away; told losses: {lost}"
    idents = [one["EventID"] for one in told]
    assert len(set(idents)) == len(idents), "ids are unique across the restart"
    # node:boot:..., also of a notice
    boots = {tuple(ident.split(":")[:2]) for ident in idents}
    assert len(boots) == 1, boots
    assert parts.workload.connect(listener) == "EPERM"


def test_memory_of_the_parts(parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    figures = steady(*[part.process.pid for part in parts.started.values()])
    found = dict(zip(parts.started, figures, strict=True))
    with capsys.disabled():
        print("".join(f"\n  hauberk {name}: {rss:.1f} MB resident, {pss:.1f} MB Pss" for name, (rss, pss) in found.items()))  # fmt: skip
    assert found["node"][0] < NODE_MB
    assert "libcrypto" not in Path(f"/proc/{parts.started['node'].process.pid}/maps").read_text()


def test_memory_of_up(hauberk: Any, capsys: pytest.CaptureFixture[str], eventually: Callable[..., Any]) -> None:
    hauberk.sinks = [{"type": "file", "path": f"{hauberk.state}/alerts.jsonl"}, {"type": "store", "path": f"{hauberk.state}/summary.db"},
                     {"type": "prometheus", "port": 0}]  # fmt: skip
    hauberk.pins += "-up"
    name = f"{NAME}-up"
    # One workload is watched and not the host: what the machine's other processes do is not weighed.
    up = hauberk.start("up", "-q", HAUBERK__INVENTORY__WORKLOADS=json.dumps([{"name": name, "cgroup": f"/{name}"}]),
                       HAUBERK__INVENTORY__RUNTIMES="[]", HAUBERK__SENSOR__LOAD__HOST_VISIBILITY="0")  # fmt: skip
    workload = Workload(name)
    try:
        up.ready()

        def recognised() -> bool:
            workload.touch(["recognised"])
            return f"{name}/recognised" in hauberk("summary", "-o", "json", "-t", "file").stdout

        eventually(recognised)
        for round_ in range(5):
            workload.touch([f"{round_}-{number}" for number in range(500)])
        ((rss, pss),) = steady(up.process.pid)
        told = hauberk("summary", "-o", "json", "-t", "file").stdout
        assert f"{name}/0-499" in told
        # Of 2,500 new names at once some may be told by their directory; each open is counted.
        files = [
            row for one in json.loads(told) for row in one["file"]
            if f"{name}/" in row["destination"] and not row["destination"].endswith("/recognised")
        ]  # fmt: skip
        assert sum(row["count"] for row in files) == 2500
    finally:
        workload.close()
    with capsys.disabled():
        print(f"\n  hauberk up: {rss:.1f} MB resident, {pss:.1f} MB Pss")
    assert up.end() == 0
    assert rss < UP_MB
