# SPDX-License-Identifier: Apache-2.0
"""On the live kernel: a workload that asks for a name and connects is told to have connected to that name, everywhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from name_server import ADDRESS, CONNECTED, READING, UNCONNECTED, NameServer
from waiting import eventually

from kernel.features import cgroup2_mount

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: who-connects}
spec:
  selector: {matchLabels: {app: asking}}
  network: {matchProtocols: [{protocol: tcp}]}
  action: Audit
"""
RESOLVING = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20).close()
"""
"""glibc's resolver, by getaddrinfo(3)."""
BY_HAND = f"""
import socket, struct, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "resolving")!r})
from name_server import A, ask, question
said = ask(question(sys.argv[1]), sys.argv[3])
socket.create_connection((socket.inet_ntop(socket.AF_INET, said[-4:]), int(sys.argv[2])), timeout=20).close()
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    mount = cgroup2_mount()
    if mount is None or os.geteuid():
        pytest.skip("needs root and cgroup v2")
    made = Path(mount) / f"hauberk-asking-{os.getpid()}"
    made.mkdir()
    yield made
    eventually(lambda: not (made / "cgroup.procs").read_text())
    made.rmdir()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """Where names lead: a listening socket on a loopback address."""
    with socket.create_server(("127.0.77.1", 0)) as made:
        yield made


@pytest.mark.kernel
def test_a_connection_is_told_by_the_name_that_was_asked_for(
    hauberk: Any, live: None, tmp_path: Path, cgroup: Path, target: socket.socket
) -> None:
    names = {f"{way}.shop.example": way for way in ("getaddrinfo", "recvfrom", "connected", "read")}
    ways = {"recvfrom": UNCONNECTED, "connected": CONNECTED, "read": READING}
    port = target.getsockname()[1]
    settings, policy, resolv = tmp_path / "settings.toml", tmp_path / "policy.yaml", tmp_path / "resolv.conf"
    settings.write_text(
        f'[[inventory.workloads]]\nname = "asking"\ncgroup = "/{cgroup.name}"\nlabels = {{ app = "asking" }}\n'
        # Twelve alerts within a second, of sockets and of connections: each is to be told.
        "[processor.throttle]\nmax_alerts_per_second = 0\n"
    )
    policy.write_text(POLICY)
    resolv.write_text(f"nameserver {ADDRESS}\noptions timeout:20\n")

    def inside(*words: str) -> None:
        script = 'echo $$ > "$1/cgroup.procs" && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'
        subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", str(cgroup), str(resolv), sys.executable, "-c", *words], check=True, timeout=60,
        )  # fmt: skip

    with NameServer({name: ["127.0.77.1"] for name in names} | {"again.example": ["127.0.77.1"]}) as server:
        hauberk.state.mkdir()
        hauberk.sinks.append({"type": "store", "path": str(hauberk.state / "summary.db")})
        up = hauberk.start("up", "--config", str(settings), "-f", str(policy))
        up.ready()
        eventually(lambda: "asking" in hauberk("get", "workloads", "-o", "name").stdout)
        for name, way in names.items():
            inside(*((RESOLVING, name, str(port)) if way == "getaddrinfo" else (BY_HAND, name, str(port), ways[way])))
        # Nobody is asked: the address is what it was called last. Then it is another's.
        inside(RESOLVING, "127.0.77.1", str(port))
        server.zone["other.example"] = ["127.0.77.1"]
        inside(RESOLVING, "other.example", str(port))

        def egress() -> dict[str, int]:
            said = hauberk("summary", "-n", "container_namespace", "-t", "egress", "-o", "json").stdout
            found = json.loads(said) if said else []
            lines = [line for one in found for line in one["egress"]]
            return {line["peer"]: line["count"] for line in lines if line["port"] == port}

        wanted = {f"dns/{name}": 1 for name in names} | {"dns/read.shop.example": 2, "dns/other.example": 1}
        eventually(lambda: egress() == wanted or sum(egress().values()) > 6, 60)
        assert egress() == wanted
        alerts = json.loads(hauberk("get", "alerts", "-o", "json").stdout)
        peers = [one["RemotePeer"] for one in alerts if one.get("RemotePort") == port]
        assert sorted(peers) == sorted(
            [*(f"dns/{name}" for name in names), "dns/read.shop.example", "dns/other.example"]
        )
        assert {one["RemoteAddress"] for one in alerts if one.get("RemotePort") == port} == {"127.0.77.1"}
        assert "dns/getaddrinfo.shop.example" in hauberk("summary", "-n", "container_namespace", "-t", "egress").stdout
    assert up.end() == 0


@pytest.mark.kernel
def test_switched_off_nothing_is_heard(hauberk: Any, live: None, eventually: Callable[..., Any]) -> None:
    up = hauberk.start("up", "--set", "sensor.load.dns_answers=false")
    up.ready()
    links = Path(hauberk.pins, "links")
    assert (links / "on_exec").exists()
    assert not (links / "hear_answer").exists()
    assert not (links / "hear_question").exists()
    assert up.end() == 0
