# SPDX-License-Identifier: Apache-2.0
"""A real Apache Kafka on loopback (KRaft): one node or three that a test starts, stops, kills, moves and secures.

`tests/conftest.py` has the fixtures: `kafka` is one broker for the whole run, `kafka_clusters` makes private ones. Brokers end
with the run, however it ends: the kernel kills them when the thread that started them is gone (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kafka_jars
from kafka_certificates import authority, certificate, joined

LISTENERS = ("PLAINTEXT", "SCRAM", "TLS", "MTLS", "SASL")
"""What a secure cluster listens on; other clusters on the first alone, whoever comes there may do everything. SCRAM: SASL_SSL with
SCRAM-SHA-512; TLS: encrypted, nobody is asked who they are; MTLS: with a certificate, principal `User:CN=name`; SASL: SCRAM in the clear."""
PROTOCOLS = {"SCRAM": "SASL_SSL", "TLS": "SSL", "MTLS": "SSL", "SASL": "SASL_PLAINTEXT"}

# One thread for all, alive as long as the process: the kernel's signal comes when the *thread* that started a child ends.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-starter")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has. Below those that the kernel hands out by itself: a node that is down keeps its own."""
    found: dict[int, socket.socket] = {}
    while len(found) < count:
        port = random.SystemRandom().randrange(15000, 32000)
        try:
            found[port] = socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    for one in found.values():
        one.close()
    return list(found)


class Node:
    """One broker and controller: its directory, its ports, its process."""

    def __init__(self, directory: Path, number: int, ports: Sequence[int]) -> None:
        self.directory = directory
        self.number = number
        self.controller, *self.listeners = ports
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.directory / "log").read_bytes()[-2000:].decode(errors="replace")

    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of processor time since its start."""
        assert self.process is not None
        # What clock_getcpuclockid(3) gives: to the nanosecond, where /proc/PID/stat counts in ticks of 10 ms, and ended threads are in it.
        return time.clock_gettime(~self.process.pid << 3 | 2)


class Cluster:
    """`brokers` nodes in `directory`, which is made. `start`, `stop`, `kill` take the number of a node (1, 2, 3), or none for all.

    `properties`: further lines for every node. `options`: further options of the JVM. Whoever made it calls `close`.
    """

    def __init__(
        self, directory: Path, brokers: int = 1, *, secure: bool = False, heap: str = "192m",
        properties: Mapping[str, str] | None = None, options: Sequence[str] = (), fetched: bool = False,
    ) -> None:  # fmt: skip
        if not fetched:
            kafka_jars.fetch()
        self.directory = directory.resolve()
        self.secure = secure
        self.identity = _identity()
        self._listeners = LISTENERS if secure else LISTENERS[:1]
        self._heap = heap
        self._options = tuple(options)
        self._properties = dict(properties or {})
        width = 1 + len(self._listeners)
        ports = free_ports(brokers * width)
        self.nodes = {
            number: Node(self.directory / f"node-{number}", number, ports[(number - 1) * width : number * width])
            for number in range(1, brokers + 1)
        }
        if secure:
            authority(self.directory / "tls")
        for node in self.nodes.values():
            self._format(node)

    @property
    def bootstrap(self) -> str:
        return self.addresses("PLAINTEXT")

    def addresses(self, listener: str) -> str:
        """One listener (see `LISTENERS`) of all nodes, as clients take it."""
        index = self._listeners.index(listener)
        return ",".join(f"127.0.0.1:{node.listeners[index]}" for node in self.nodes.values())

    def tls(self, name: str, days: int = 30) -> tuple[str, str, str]:
        """Files for a client called `name`: authority, certificate that is good for `days`, key."""
        return str(self.directory / "tls/ca.pem"), *certificate(self.directory / "tls", name, days)

    def start(self, number: int | None = None, *, timeout: float = 240.0) -> float:
        """Start what is not running, and wait until all that run know of each other; seconds that it took."""
        began = time.monotonic()
        for node in self._chosen(number):
            if not node.running:
                node.process = _starter.submit(self._spawn, node).result()
        running = [node for node in self.nodes.values() if node.running]
        for node in self._chosen(number):
            while brokers_seen(node.listeners[0]) < len(running):
                assert node.running, f"node {node.number} of Kafka ended: {node.log()}"
                assert time.monotonic() - began < timeout, (
                    f"node {node.number} was not ready in {timeout} s: {node.log()}"
                )
                time.sleep(0.05)
        return time.monotonic() - began

    def stop(self, number: int | None = None, *, timeout: float = 30.0) -> None:
        """End in good order; who takes longer is killed. All together: the last of three would wait for a majority that is gone."""
        nodes = [node for node in self._chosen(number) if node.running]
        for node in nodes:
            self._signal(node, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        for node in nodes:
            assert node.process is not None
            try:
                node.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(node.number)

    def kill(self, number: int | None = None) -> None:
        for node in self._chosen(number):
            if node.running:
                self._signal(node, signal.SIGCONT)
                self._signal(node, signal.SIGKILL)
                assert node.process is not None
                node.process.wait(60.0)

    def pause(self, number: int | None = None) -> None:
        """Connections are taken and nothing is answered, until `resume` or `kill`."""
        nodes = [node for node in self._chosen(number) if node.running]
        for node in nodes:
            self._signal(node, signal.SIGSTOP)
        for node in nodes:
            assert node.process is not None
            # The kernel says so once the last thread has stopped; until then some answer.
            os.waitid(os.P_PID, node.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self, number: int | None = None) -> None:
        for node in self._chosen(number):
            self._signal(node, signal.SIGCONT)

    def move(self) -> None:
        """Other ports, the same data, from the next start on."""
        assert not any(node.running for node in self.nodes.values()), "stop it first"
        width = 1 + len(self._listeners)
        ports = free_ports(width * len(self.nodes))
        for index, node in enumerate(self.nodes.values()):
            node.controller, *node.listeners = ports[index * width : (index + 1) * width]
        for node in self.nodes.values():
            self._write(node)

    def empty(self) -> None:
        """The same addresses, other data: a cluster of another identity, from the next start on."""
        assert not any(node.running for node in self.nodes.values()), "stop it first"
        self.identity = _identity()
        for node in self.nodes.values():
            shutil.rmtree(node.directory)
            self._format(node)

    def close(self) -> None:
        """End everything at once and remove the directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _chosen(self, number: int | None) -> list[Node]:
        return list(self.nodes.values()) if number is None else [self.nodes[number]]

    def _signal(self, node: Node, number: signal.Signals) -> None:
        if node.process is not None:
            node.process.send_signal(number)

    def _spawn(self, node: Node) -> subprocess.Popen[bytes]:
        command = [
            *kafka_jars.java(self._heap),
            # A broker that is killed leaves what its codecs unpacked there.
            f"-Djava.io.tmpdir={node.directory}",
            *self._options,
            "kafka.Kafka",
            str(node.directory / "server.properties"),
        ]
        with open(node.directory / "log", "ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=node.directory,
            )  # fmt: skip

    def _format(self, node: Node) -> None:
        data = node.directory / "data"
        # What `StorageTool format` leaves: a checkpoint with the version of the metadata and the SCRAM users, no node in it.
        shutil.copytree(kafka_jars.formatted(), data)
        (data / "meta.properties").write_text(
            f"version=1\ncluster.id={self.identity}\nnode.id={node.number}\ndirectory.id={_identity()}\n"
        )
        self._write(node)

    def _write(self, node: Node) -> None:
        ports = dict(zip(("CONTROLLER", *self._listeners), (node.controller, *node.listeners), strict=True))
        protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT"}
        protocols |= {name: PROTOCOLS[name] for name in self._listeners[1:]}
        copies = min(3, len(self.nodes))
        enough = max(1, copies - 1)
        settings = {
            "node.id": node.number,
            "log.dirs": node.directory / "data",
            "controller.quorum.voters": ",".join(f"{one.number}@127.0.0.1:{one.controller}" for one in self.nodes.values()),
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items()),
            "advertised.listeners":
                ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items() if name != "CONTROLLER"),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "default.replication.factor": copies,
            "min.insync.replicas": enough,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": enough,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": enough,
        }  # fmt: skip
        if self.secure:
            settings |= self._security()
        settings |= self._properties
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        (node.directory / "server.properties").write_text((kafka_jars.HERE / "server.properties").read_text() + lines)

    def _security(self) -> dict[str, object]:
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.scram.scram-sha-512.sasl.jaas.config": login,
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": login,
            "listener.name.mtls.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": joined(*certificate(self.directory / "tls", "broker")),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.directory / "tls/ca.pem",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Whoever comes without a name comes by PLAINTEXT (brokers, the test itself) or by TLS.
            "super.users": "User:ANONYMOUS;User:admin",
            "allow.everyone.if.no.acl.found": "false",
        }


def brokers_seen(port: int) -> int:
    """How many brokers the one at `port` of loopback knows of; 0 when it does not answer. An open port says nothing: the socket
    is bound before requests are answered."""
    # Metadata, version 1, of no topic: key, version, correlation, client (none), count.
    request = struct.pack(">hhihi", 3, 1, 1, -1, 0)
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 2.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            while len(answer) < 12 and (more := connection.recv(4096)):
                answer += more
    except OSError:
        return 0
    return int(struct.unpack_from(">i", answer, 8)[0]) if len(answer) >= 12 else 0


def _identity() -> str:
    """As `StorageTool random-uuid` makes them; one that begins with a dash is refused."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made
