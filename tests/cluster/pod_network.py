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
_OWN_PORTS = 20000
"""From here on datagrams are sent from a port each: the node would take a second one between the same ports for a part of the first."""
_LISTEN = """
import socket, sys, threading
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
def serve(port):
    with socket.create_server((sys.argv[1], port), family=family) as made:
        while True: made.accept()[0].close()
def answer(port):
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((sys.argv[1], port))
        while True: made.sendto(*made.recvfrom(16))
for port in map(int, sys.argv[2:]):
    for each in (serve, answer): threading.Thread(target=each, args=(port,)).start()
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
_SEND = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def answered(address, port, own):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("", own))
        made.connect((address, port))
        made.settimeout(1)
        for _ in range(int(float(sys.argv[1]))):
            try:
                made.send(b"x")
                return made.recv(16) == b"x"
            except OSError: pass
    return False
wanted = json.loads(sys.argv[2])
with ThreadPoolExecutor(len(wanted)) as several: print(json.dumps(list(several.map(lambda one: answered(*one), wanted))))
"""

Connection = tuple[str, str, int]
"""Who connects, to which address or pod, on which port."""


class PodNetwork:
    """`pods`: name to address, all of IPv4 or all of IPv6, each in a network of its own (/24, /64). They listen on `ports`, of TCP and UDP;
    `services`: (address, port) to (pod, port), which the node translates as kube-proxy does. Use as a context."""

    def __init__(
        self, pods: dict[str, str], ports: Iterable[int], services: dict[tuple[str, int], tuple[str, int]]
    ) -> None:
        self.pods, self._ports, self._services = pods, [str(port) for port in ports], services
        self._running: list[subprocess.Popen[bytes]] = []
        self._held: dict[str, int] = {}
        self._own_port = _OWN_PORTS
        self._six = any(":" in address for address in pods.values())
        self._tables = "ip6tables" if self._six else "iptables"

    def __enter__(self) -> PodNetwork:
        try:
            self._hold("node", ["sleep", "infinity"])
            self._at("node", "ip", "link", "set", "lo", "up")
            forward = "ipv6/conf/all/forwarding" if self._six else "ipv4/ip_forward"
            self._at("node", "sh", "-c", f"echo 1 >/proc/sys/net/{forward}")
            # An address of IPv6 is not used for a second, while its neighbours are asked whether it is theirs.
            bits, at_once = ("64", ["nodad"]) if self._six else ("24", [])
            for name, address in self.pods.items():
                self._hold(name, [sys.executable, "-c", _LISTEN, "::" if self._six else "0.0.0.0", *self._ports])
                head, colon, _ = address.rpartition(":" if self._six else ".")
                near = f"{head}{colon}1"
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
                self._at("node", "ip", "address", "add", f"{near}/{bits}", "dev", f"v{name}", *at_once)
                self._at("node", "ip", "link", "set", f"v{name}", "up")
                self._at(name, "ip", "address", "add", f"{address}/{bits}", "dev", "eth0", *at_once)
                self._at(name, "ip", "link", "set", "eth0", "up")
                self._at(name, "ip", "-6" if self._six else "-4", "route", "add", "default", "via", near)
            for (address, port), (pod, target) in self._services.items():
                to = f"[{self.pods[pod]}]" if self._six else self.pods[pod]
                for protocol in ("tcp", "udp"):
                    self._at(
                        "node", self._tables, "-t", "nat", "-A", "PREROUTING", "-d", address, "-p", protocol, "--dport", str(port),
                        "-j", "DNAT", "--to-destination", f"{to}:{target}",
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
        self._at("node", self._tables, "-A", "FORWARD", *words)
        with (directory / "engine.log").open("wb") as log:
            engine = self._start([*self._inside("node"), str(found()), str(file), str(QUEUE)], log)

        def listens() -> bool:
            assert engine.poll() is None, (directory / "engine.log").read_text()[-2000:]
            table = self._at("node", "cat", "/proc/net/netfilter/nfnetlink_queue")
            return any(line.split()[0] == str(QUEUE) for line in table.splitlines())

        waiting.eventually(listens)

    def reached(self, wanted: Iterable[Connection], protocol: str = "TCP") -> set[Connection]:
        """Which of these connections come about within `SECONDS`; of UDP, which datagrams are answered."""
        by: dict[str, list[Connection]] = {}
        for one in wanted:
            by.setdefault(one[0], []).append(one)
        asking = {
            name: subprocess.Popen(
                [*self._inside(name), sys.executable, "-c", _SEND if protocol == "UDP" else _CONNECT, str(SECONDS), json.dumps(self._told(some, protocol))],
                stdout=subprocess.PIPE,
            )
            for name, some in by.items()
        }  # fmt: skip
        found: set[Connection] = set()
        for name, process in asking.items():
            answers = json.loads(process.communicate()[0])
            found |= {one for one, yes in zip(by[name], answers, strict=True) if yes}
        return found

    def _told(self, wanted: list[Connection], protocol: str) -> list[tuple[str | int, ...]]:
        told: list[tuple[str | int, ...]] = [(self.pods.get(to, to), port) for _, to, port in wanted]
        if protocol != "UDP":
            return told
        first = self._own_port
        self._own_port += len(told)
        return [(*one, own) for own, one in enumerate(told, first)]

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
