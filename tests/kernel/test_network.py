# SPDX-License-Identifier: Apache-2.0
"""Socket calls as the live kernel tells them, on loopback."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.kernel import Loss
from schemas.operations import Operation

pytestmark = pytest.mark.kernel
Pick = Callable[..., Any]
V4, V6 = bytes([127, 0, 0, 1]) + bytes(12), bytes(15) + b"\1"


class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class Header(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("name_length", ctypes.c_uint32), ("parts", ctypes.POINTER(Part)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint32), ("hole", ctypes.c_uint32),
    ]  # fmt: skip


def send_all(messages: list[tuple[bytes, int]]) -> None:
    """One sendmmsg(2) of (payload, port) to the loopback."""
    names = [struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), V4[:4]) for _, port in messages]
    parts = [Part(payload, len(payload)) for payload, _ in messages]
    headers = (Header * len(messages))(
        *[Header(name, 16, ctypes.pointer(part), 1) for name, part in zip(names, parts, strict=True)]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        assert ctypes.CDLL(None).sendmmsg(client.fileno(), headers, len(messages), 0) == len(messages)


def question(name: str, kind: int = 1, *, flags: int = 0x0100, count: int = 1) -> bytes:
    """A DNS message that asks for `name`, RFC 1035 section 4.1."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">HHHHHH", 4711, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def asked(events: list[Any]) -> list[Any]:
    return [(event.resource, event.address, event.port) for event in events if event.operation is Operation.DNS]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A listening TCP socket of the test's own process."""
    made = socket.socket(request.param, socket.SOCK_STREAM)
    made.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
    made.listen(4)
    yield made
    made.close()


def test_connect_tells_peer_and_local_port(sensor: Any, pick: Pick, server: socket.socket) -> None:
    host, port = server.getsockname()[:2]
    read, write = os.pipe()

    def act() -> None:
        client = socket.create_connection((host, port))
        os.write(write, client.getsockname()[1].to_bytes(2, "big"))

    events = sensor.run(act)
    event = pick(events, Operation.CONNECT)
    assert (event.family, event.socket_type, event.protocol) == (server.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert (event.address, event.port, event.result) == (V4 if server.family == socket.AF_INET else V6, port, 0)
    assert event.aux == int.from_bytes(os.read(read, 2), "big")
    made = pick(events, Operation.SOCKET, family=server.family)
    assert (made.socket_type, made.flags & socket.SOCK_CLOEXEC) == (socket.SOCK_STREAM, socket.SOCK_CLOEXEC)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_refused_connect_is_told(sensor: Any, pick: Pick, family: int, host: str) -> None:
    # Bound and not listening: the port is nobody else's meanwhile, and the client cannot be given it and meet itself.
    with socket.socket(family) as closed:
        closed.bind((host, 0))
        address = closed.getsockname()

        def act() -> None:
            with socket.socket(family) as client, pytest.raises(ConnectionRefusedError):
                client.connect(address)

        event = pick(sensor.run(act), Operation.CONNECT)
    assert (event.port, event.result) == (address[1], -errno.ECONNREFUSED)


def test_a_connect_in_progress_is_a_pass(sensor: Any, pick: Pick) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def act() -> None:
        client = socket.socket()
        client.setblocking(False)
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS

    event = pick(sensor.run(act), Operation.CONNECT)
    assert (event.ret, event.result) == (-errno.EINPROGRESS, 0)
    server.close()


def test_bind_listen_accept(sensor: Any, pick: Pick) -> None:
    read, write = os.pipe()

    def act() -> None:
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen(7)
        client = socket.create_connection(server.getsockname())
        server.accept()
        os.write(write, server.getsockname()[1].to_bytes(2, "big") + client.getsockname()[1].to_bytes(2, "big"))

    events = sensor.run(act)
    data = os.read(read, 4)
    local, remote = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:], "big")
    bound = pick(events, Operation.BIND)
    assert (bound.address, bound.port, bound.aux) == (V4, 0, local)
    listening = pick(events, Operation.LISTEN)
    assert (listening.address, listening.port, listening.args[0]) == (V4, local, 7)
    accepted = pick(events, Operation.ACCEPT)
    assert (accepted.address, accepted.port, accepted.aux) == (V4, local, remote)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("call", ["sendto", "sendmsg"])
def test_datagrams_tell_their_destination(sensor: Any, pick: Pick, connected: bool, call: str) -> None:
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    address = sink.getsockname()

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            if connected:
                client.connect(address)
            if call == "sendto":
                client.send(b"x") if connected else client.sendto(b"x", address)
            else:
                client.sendmsg([b"x"], [], 0, *([] if connected else [address]))

    event = pick(sensor.run(act), Operation.SEND)
    assert (event.address, event.port, event.protocol, event.ret) == (V4, address[1], socket.IPPROTO_UDP, 1)
    sink.close()


def test_every_message_of_a_sendmmsg_is_told(sensor: Any) -> None:
    ports = [9001, 9002, 9003]

    sent = [
        event
        for event in sensor.run(lambda: send_all([(b"x", port) for port in ports]))
        if event.operation is Operation.SEND
    ]
    assert [(event.port, event.address, event.ret) for event in sent] == [(port, V4, 3) for port in ports]


@pytest.mark.parametrize("way", ["sendto", "connected", "sendmsg"])
def test_the_name_asked_of_a_name_server_is_told_after_the_datagram(sensor: Any, way: str) -> None:
    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            if way == "sendto":
                client.sendto(question("Api.example.com"), ("127.0.0.1", 53))
            elif way == "connected":
                client.connect(("127.0.0.1", 53))
                client.send(question("Api.example.com"))
            else:
                client.sendmsg([question("Api.example.com")], [], 0, ("127.0.0.1", 53))

    events = sensor.run(act)
    assert asked(events) == [("Api.example.com", V4, 53)]
    both = [event.operation for event in events if event.operation in (Operation.SEND, Operation.DNS)]
    assert both == [Operation.SEND, Operation.DNS]


def test_a_datagram_that_was_not_sent_asked_nobody(sensor: Any) -> None:
    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
            client.sendto(question("never.test"), ("127.255.255.255", 53))  # broadcast, which this socket may not

    events = sensor.run(act)
    assert [event.result for event in events if event.operation is Operation.SEND] == [-errno.EACCES]
    assert asked(events) == []


def test_a_resolver_that_asks_for_both_kinds_at_once_asks_for_one_name(sensor: Any) -> None:
    longest = ".".join(["l" * 63] * 3 + ["m" * 61])
    events = sensor.run(lambda: send_all([
        (question("a.test"), 53), (question("a.test", 28), 53), (question("never.test"), 5353), (question(longest), 53),
    ]))  # fmt: skip
    assert asked(events) == [(name, V4, 53) for name in ("a.test", "a.test", longest)]
    assert len({event.id for event in events if event.resource == "a.test"}) == 1
    assert [event.port for event in events if event.operation is Operation.SEND] == [53, 53, 5353, 53]


def test_of_many_queries_at_once_six_are_told_and_the_rest_is_counted(sensor: Any) -> None:
    before = sensor.lost(Loss.CHAIN_BROKEN)
    events = sensor.run(lambda: send_all([(question(f"q{number}.test"), 53) for number in range(9)]))
    assert [name for name, _, _ in asked(events)] == [f"q{number}.test" for number in range(6)]
    assert sensor.lost(Loss.CHAIN_BROKEN) > before


NO_QUESTION = {
    "empty": b"",
    "header alone": question("a.test")[:12],
    "half a name": question("a.test")[:15],
    "no end": question("a" * 63)[:70],
    "an answer": question("a.test", flags=0x8180),
    "an update": question("a.test", flags=0x2800),
    "no question": question("a.test", count=0),
    "the root": question(""),
    "a pointer": question("a.test")[:12] + b"\1a\xc0\x0c\0\1\0\1",
    "noise": bytes(range(256)) * 2,
}


@pytest.mark.parametrize("payload", NO_QUESTION.values(), ids=NO_QUESTION.keys())
def test_what_is_no_question_is_a_datagram_alone(sensor: Any, payload: bytes) -> None:
    events = sensor.run(lambda: send_all([(payload, 53), (question("next.test"), 53)]))
    assert asked(events) == [("next.test", V4, 53)]
    assert len([event for event in events if event.operation is Operation.SEND]) == 2


def test_streams_are_told_by_connect_not_by_send(sensor: Any) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    events = sensor.run(lambda: socket.create_connection(server.getsockname()).send(b"x"))
    assert not [event for event in events if event.operation is Operation.SEND]
    server.close()


def test_unix_sockets_by_path(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    def act() -> None:
        os.chdir(tmp_path)
        server = socket.socket(socket.AF_UNIX)
        server.bind("./sock")
        server.listen(1)
        socket.socket(socket.AF_UNIX).connect(str(tmp_path / "sock"))

    events = sensor.run(act)
    path = f"{tmp_path}/sock"
    assert pick(events, Operation.BIND).resource == path
    assert pick(events, Operation.CONNECT).resource == path
    assert pick(events, Operation.CONNECT).family == socket.AF_UNIX


def test_abstract_unix_sockets_keep_every_byte(sensor: Any, pick: Pick) -> None:
    name = f"\0hauberk\0{os.getpid()}"

    def act() -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.listen(1)
        socket.socket(socket.AF_UNIX).connect(name)
        server.accept()

    events = sensor.run(act)
    for operation in (Operation.BIND, Operation.LISTEN, Operation.CONNECT, Operation.ACCEPT):
        assert pick(events, operation).resource == "@" + name[1:]


def test_a_descriptor_that_is_no_socket(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        fd = os.open("/etc/hosts", os.O_RDONLY)
        address = struct.pack("=HH12x", socket.AF_INET, socket.htons(9))
        assert ctypes.CDLL(None).connect(fd, address, len(address)) == -1

    event = pick(sensor.run(act), Operation.CONNECT)
    assert (event.result, event.port) == (-errno.ENOTSOCK, 9)
