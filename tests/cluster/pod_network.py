# SPDX-License-Identifier: Apache-2.0
"""Pods without a cluster: network namespaces behind another one, the node, which sends every first packet to an engine for network policies.

The namespaces have no name. They end with the processes in them, which the kernel kills when the test's does (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import waiting
from policy_engine import found

QUEUE = 100
SECONDS = 3.0
"""After which a connection counts as denied: a first packet that is lost is sent again after one."""
_LISTEN = """
import socket, sys, threading
def serve(port):
    with socket.create_server(("0.0.0.0", port)) as made:
        while True: made.accept()[0].close()
for port in sys.argv[1:]: threading.Thread(target=serve, args=(int(port),)).start()
"""
_CONNECT = """
import asyncio, json, sys
async def reached(address, port):
    try: _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), float(sys.argv[1]))
    except OSError: return False
    writer.close()
    return True
async def all_of(wanted): return await asyncio.gather(*(reached(*one) for one in wanted))
print(json.dumps(asyncio.run(all_of(json.loads(sys.argv[2])))))
"""

Connection = tuple[str, str, int]
"""Who connects, to which address or pod, on which port."""


class PodNetwork:
    """`pods`: name to address, each in a /24 of its own. They listen on `ports`; `services`: (address, port) to (pod, port), which the node
    translates as kube-proxy does. Use as a context."""

    def __init__(
        self, pods: dict[str, str], ports: Iterable[int], services: dict[tuple[str, int], tuple[str, int]]
    ) -> None:
        self.pods, self._ports, self._services = pods, [str(port) for port in ports], services
        self._running: list[subprocess.Popen[bytes]] = []
        self._held: dict[str, int] = {}

    def __enter__(self) -> PodNetwork:
        try:
            self._hold("node", ["sleep", "infinity"])
            self._at("node", "ip", "link", "set", "lo", "up")
            self._at("node", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
            for name, address in self.pods.items():
                self._hold(name, [sys.executable, "-c", _LISTEN, *self._ports])
                near = f"{address.rpartition('.')[0]}.1"
                self._at(
                    "node",
                    "ip",
                    "link",
                    "add",
                    f"v{name}",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    str(self._held[name]),
                )
                self._at("node", "ip", "address", "add", f"{near}/24", "dev", f"v{name}")
                self._at("node", "ip", "link", "set", f"v{name}", "up")
                self._at(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
                self._at(name, "ip", "link", "set", "eth0", "up")
                self._at(name, "ip", "route", "add", "default", "via", near)
            for (address, port), (pod, target) in self._services.items():
                self._at(
                    "node", "iptables", "-t", "nat", "-A", "PREROUTING", "-d", address, "-p", "tcp", "--dport", str(port),
                    "-j", "DNAT", "--to-destination", f"{self.pods[pod]}:{target}",
                )  # fmt: skip
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self._running):
            one.kill()
            one.wait()

    def enforce(self, objects: list[dict[str, Any]], directory: Path) -> None:
        """The engine decides from here on, by `objects`: namespaces, pods and policies. Once for each network."""
        file = directory / "objects.yaml"
        file.write_text("---\n".join(json.dumps(one) + "\n" for one in objects))
        words = ("-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", str(QUEUE))
        self._at("node", "iptables", "-A", "FORWARD", *words)
        with (directory / "engine.log").open("wb") as log:
            engine = self._start([*self._inside("node"), str(found()), str(file), str(QUEUE)], log)

        def listens() -> bool:
            assert engine.poll() is None, (directory / "engine.log").read_text()[-2000:]
            table = self._at("node", "cat", "/proc/net/netfilter/nfnetlink_queue")
            return any(line.split()[0] == str(QUEUE) for line in table.splitlines())

        waiting.eventually(listens)

    def reached(self, wanted: Iterable[Connection]) -> set[Connection]:
        """Which of these connections come about within `SECONDS`."""
        by: dict[str, list[Connection]] = {}
        for one in wanted:
            by.setdefault(one[0], []).append(one)
        asking = {
            name: subprocess.Popen(
                [*self._inside(name), sys.executable, "-c", _CONNECT, str(SECONDS), json.dumps([(self.pods.get(to, to), port) for _, to, port in some])],
                stdout=subprocess.PIPE,
            )
            for name, some in by.items()
        }  # fmt: skip
        found: set[Connection] = set()
        for name, process in asking.items():
            answers = json.loads(process.communicate()[0])
            found |= {one for one, yes in zip(by[name], answers, strict=True) if yes}
        return found

    def _hold(self, name: str, words: list[str]) -> None:
        """A process in a network namespace of its own."""
        made = self._start(["unshare", "--net", *words])
        own = os.readlink("/proc/self/ns/net")
        waiting.eventually(lambda: os.readlink(f"/proc/{made.pid}/ns/net") != own)
        self._held[name] = made.pid

    def _start(self, words: list[str], log: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdout=log, stderr=log)
        self._running.append(made)
        return made

    def _inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._held[name]}/ns/net"]

    def _at(self, name: str, *words: str) -> str:
        done = subprocess.run([*self._inside(name), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout
