# SPDX-License-Identifier: Apache-2.0
"""Taking the agent's descriptors: what anybody on the machine may open at its ports is capped and timed, and the guard has its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  network: {{matchProtocols: [{{protocol: {protocol}}}]}}
  action: Block
"""
LIMIT = 512
IDLE = """
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
os.setgid(65534)
os.setuid(65534)
held = []
for number in range(1500):
    one = socket.socket()
    one.connect(("127.0.0.1", int(sys.argv[1 + number % 2])))
    try:
        if number % 3:
            one.send((b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nX: ", b"GET /events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")[number % 3 - 1])
    except OSError:
        pass
    held.append(one)
print("held", flush=True)
sys.stdin.read()
"""
CALL = "import socket\ntry: socket.socket(socket.AF_INET, {kind})\nexcept PermissionError: print('denied')\nelse: print('made')"


@pytest.fixture(scope="module")
def attacked(make_container: Callable[[str], Any], make_node: Callable[..., Any]) -> Any:
    node = make_node(POLICY.format(name="first", protocol="udp"), make_container("box"), start=False)
    node.before = ("prlimit", f"--nofile={LIMIT // 2}:{LIMIT}")
    node.start()
    return node


def open_descriptors(node: Any) -> int:
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an unprivileged user")
@pytest.mark.attack("1,500 idle connections and event streams to the page and the metrics", "held", by="hauberk up")
def test_idle_connections(attacked: Any, eventually: Callable[..., Any]) -> None:
    limits = Path(f"/proc/{attacked.process.pid}/limits").read_text()
    assert re.search(rf"Max open files +{LIMIT} +{LIMIT}", limits), "raised to the hard limit"
    ports = [re.search(rf"(?m)^  {what} +http://127.0.0.1:(\d+)/", attacked.said()) for what in ("page", "metrics")]
    numbers = [port[1] for port in ports if port is not None]
    box = attacked.containers["box"]
    attacker = subprocess.Popen(
        [sys.executable, "-S", "-c", IDLE, *numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "held\n"
        assert open_descriptors(attacked) < LIMIT - 40
        attacked.apply(POLICY.format(name="second", protocol="tcp"))
        for kind in ("socket.SOCK_DGRAM", "socket.SOCK_STREAM"):
            assert box.run(sys.executable, "-S", "-c", CALL.format(kind=kind)).stdout == "denied\n"
        metrics = eventually(lambda: answered(f"http://127.0.0.1:{numbers[1]}/metrics"))
        assert re.search(r'(?m)^hauberk_listener_evicted_total{listener="prometheus"} [1-9]', metrics)
        assert "Hauberk" in eventually(lambda: answered(f"http://127.0.0.1:{numbers[0]}/"))
        assert re.search(r'(?m)^hauberk_stage_failures_total{stage="enforcement"} 0$', metrics)
    finally:
        attacker.communicate("", timeout=60)
    assert attacked.process.poll() is None
    assert "failed (" not in attacked.said()


def answered(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
