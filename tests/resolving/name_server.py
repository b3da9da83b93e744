# SPDX-License-Identifier: Apache-2.0
"""A name server on port 53 of a loopback address, over UDP and TCP, and its messages (RFC 1035); and the three ways in which programs ask.

Real sockets and real bytes: what answers here is heard by the kernel's programs as any server is. Needs root, for the port.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from types import TracebackType
from typing import Final, Self

A, AAAA = 1, 28
WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ADDRESS: Final = f"127.0.53.{10 + WORKER}1"
"""Of its own in each worker of a run: there is one port 53 at an address."""
UNCONNECTED, CONNECTED, READING = "recvfrom, not connected", "connected", "write and read, as Go does"
WAYS: Final = (UNCONNECTED, CONNECTED, READING)


def labels(name: str) -> bytes:
    """A name on the wire."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, kind: int = A, ident: int = 4711) -> bytes:
    """A message that asks for `name`."""
    return struct.pack(">HHHHHH", ident, 0x0100, 1, 0, 0, 0) + labels(name) + struct.pack(">HH", kind, 1)


def answer(asked: bytes, addresses: list[str], ttl: int = 300, padding: int = 0) -> bytes:
    """The answer to the message `asked`; `padding`: bytes of records of another kind before the addresses."""
    records = []
    if padding:
        # TXT of the root, which no question leads to.
        records.append(b"\0" + struct.pack(">HHIH", 16, 1, ttl, padding) + bytes(padding))
    for address in addresses:
        raw = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        records.append(b"\xc0\x0c" + struct.pack(">HHIH", AAAA if ":" in address else A, 1, ttl, len(raw)) + raw)
    return asked[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0) + asked[12:] + b"".join(records)


def ask(message: bytes, way: str, server: str = ADDRESS) -> bytes:
    """Send `message` to the server and wait for its answer, in one of the WAYS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20.0)
        if way == UNCONNECTED:
            client.sendto(message, (server, 53))
            return client.recvfrom(4096)[0]
        client.connect((server, 53))
        if way == CONNECTED:
            client.send(message)
            return client.recv(4096)
        client.setblocking(True)
        os.write(client.fileno(), message)
        return os.read(client.fileno(), 4096)


def ask_stream(message: bytes, server: str = ADDRESS) -> bytes:
    """The same over TCP."""
    with socket.create_connection((server, 53), timeout=20.0) as client:
        client.sendall(struct.pack(">H", len(message)) + message)
        with client.makefile("rb") as stream:
            (length,) = struct.unpack(">H", stream.read(2))
            return stream.read(length)


class NameServer:
    """`zone`: name -> addresses, may be changed while it runs. `ttl`, `padding`: of its answers. `udp`: its socket."""

    def __init__(self, zone: dict[str, list[str]] | None = None, address: str = ADDRESS) -> None:
        self.zone = zone or {}
        self.ttl, self.padding = 300, 0
        self.address = address
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.udp.bind((address, 53))
            self._tcp = socket.create_server((address, 53))
        except OSError:
            self.udp.close()
            raise
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._datagrams, self._streams)]

    def said(self, asked: bytes) -> bytes:
        """The answer to a message: of the kind that was asked for, from the zone."""
        at, parts = 12, []
        while length := asked[at]:
            parts.append(asked[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind = struct.unpack_from(">H", asked, at + 1)[0]
        known = self.zone.get(".".join(parts).lower(), [])
        return answer(asked[: at + 5], [one for one in known if (":" in one) == (kind == AAAA)], self.ttl, self.padding)

    def _datagrams(self) -> None:
        while True:
            try:
                asked, who = self.udp.recvfrom(4096)
                if not asked:  # shut down
                    return
                self.udp.sendto(self.said(asked), who)
            except OSError:
                return

    def _streams(self) -> None:
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                said = self.said(stream.read(struct.unpack(">H", stream.read(2))[0]))
                client.sendall(struct.pack(">H", len(said)) + said)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # A thread that waits in a call is not called by close(2); shutdown(2) does.
        for one in (self.udp, self._tcp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(20.0)
