# SPDX-License-Identifier: Apache-2.0
"""The cgroup backend on the live kernel: EPERM in the test's own cgroup, one event for it, and nothing anywhere else."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kernel import bpf
from kernel.catalogue import GUARDS
from kernel.siphash import string_id
from schemas.kernel import NET_FIXED_BITS, NET_KEY, RULE, SOCKET_TYPE, Direction, RuleAction, ScopeFlag
from schemas.operations import Backend, Operation

pytestmark = pytest.mark.kernel
PYTHON = os.path.realpath("/proc/self/exe")
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
Rules = Callable[..., None]


@pytest.fixture
def rules(sensor: Any) -> Iterator[Rules]:
    """rules((direction, protocol, network, port, action, rank, source), ...): guards attached, table in force."""
    table = time.monotonic_ns()
    keys: list[bytes] = []
    held: list[int] = []
    directory = os.open(sensor.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    for guard in GUARDS:
        program = sensor.loaded.program(guard.name)
        held += [program, bpf.cgroup_attach(program, directory, guard.attach_type)]

    def put(*wanted: tuple[Any, ...], flags: int = 0) -> None:
        with sensor.map("net_rules") as trie:
            for direction, protocol, network, port, action, *rest in wanted:
                rank, source = (*rest, 0, "")[:2] if len(rest) != 1 else (rest[0], "")
                for family in (socket.AF_INET, socket.AF_INET6):
                    found = ipaddress.ip_network(network) if network else None
                    if found and found.version != (4 if family == socket.AF_INET else 6):
                        continue
                    prefix = NET_FIXED_BITS + (found.prefixlen if found else 0)
                    address = found.network_address.packed.ljust(16, b"\0") if found else bytes(16)
                    ident = string_id(sensor.key, source) if source else 0
                    key = NET_KEY.struct.pack(prefix, port, protocol, family, table, ident, direction, 0, address)
                    trie.put(key, RULE.struct.pack(action, 0, 3, rank))
                    keys.append(key)
        sensor.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_CGROUP | flags, table=table)

    yield put
    for fd in (*held, directory):
        os.close(fd)
    with sensor.map("net_rules") as trie:
        for key in keys:
            trie.delete(key)


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """Address of a listening TCP socket of the test's own process."""
    made = socket.create_server(("127.0.0.1", 0))
    yield made.getsockname()
    made.close()


def connects(address: tuple[str, int], refused: bool) -> Callable[[], None]:
    """A connect that must work, or must meet EPERM."""

    def act() -> None:
        with socket.socket() as client:
            assert client.connect_ex(address) == (errno.EPERM if refused else 0)

    return act


def test_a_blocked_port_is_eperm_once_and_only_here(
    sensor: Any, rules: Rules, pick: Callable[..., Any], server: tuple[str, int]
) -> None:
    rules((Direction.SEND, TCP, "127.0.0.0/8", server[1], RuleAction.BLOCK))
    event = pick(sensor.run(connects(server, refused=True)), Operation.CONNECT)
    assert (event.result, event.enforcer, event.port) == (-errno.EPERM, Backend.CGROUP, server[1])
    connects(server, refused=False)()


def test_eperm_from_elsewhere_is_nobodys_denial(sensor: Any, rules: Rules, pick: Callable[..., Any]) -> None:
    rules((Direction.SEND, TCP, "", 1, RuleAction.BLOCK))

    def act() -> None:
        with pytest.raises(PermissionError):
            socket.socket().connect(("127.0.0.1", 1))
        os.setuid(4321)
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)

    events = sensor.run(act)
    assert pick(events, Operation.SOCKET, socket_type=socket.SOCK_RAW).enforcer is Backend.OBSERVER


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (("127.0.0.0/8", 0, RuleAction.BLOCK, 1), ("127.0.0.1/32", 0, RuleAction.ALLOW, 2), False),
        (("", 0, RuleAction.ALLOW, 1), ("127.0.0.0/16", 0, RuleAction.BLOCK, 2), True),
        (("10.0.0.0/8", 0, RuleAction.BLOCK, 2), ("", 0, RuleAction.ALLOW, 1), False),
        (("", 0, RuleAction.BLOCK, 1), ("127.0.0.0/8", -1, RuleAction.ALLOW, 2), False),
    ],
)
def test_the_greatest_rank_decides(
    sensor: Any, rules: Rules, server: tuple[str, int], first: Any, second: Any, refused: bool
) -> None:
    made = [
        (Direction.SEND, 0, network, server[1] if port < 0 else port, action, rank)
        for network, port, action, rank in (first, second)
    ]
    rules(*made)
    sensor.run(connects(server, refused))


def test_a_protocol_is_stopped_at_socket_and_at_connect(
    sensor: Any, rules: Rules, pick: Callable[..., Any], server: tuple[str, int]
) -> None:
    def act() -> None:
        early = socket.socket()
        rules((Direction.CREATE, TCP, "", 0, RuleAction.BLOCK))
        assert early.connect_ex(server) == errno.EPERM
        for family in (socket.AF_INET, socket.AF_INET6):
            with pytest.raises(PermissionError):
                socket.socket(family, socket.SOCK_STREAM)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    sensor.scope(flags=ScopeFlag.CONTAINER)
    events = sensor.run(act)
    refused = [e for e in events if e.operation is Operation.SOCKET and e.result]
    assert {e.enforcer for e in refused} == {Backend.CGROUP}
    assert len(refused) == 2
    assert pick(events, Operation.CONNECT).enforcer is Backend.CGROUP


@pytest.mark.parametrize(("type_", "word"), [(socket.SOCK_DGRAM, "dgram"), (socket.SOCK_RAW, "raw")])
def test_a_socket_type_is_stopped(sensor: Any, rules: Rules, type_: int, word: str) -> None:
    rules((Direction.CREATE, SOCKET_TYPE | type_, "", 0, RuleAction.BLOCK))

    def act() -> None:
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, type_, socket.IPPROTO_ICMP if word == "raw" else 0)
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    sensor.run(act)


def test_a_whitelist_stops_the_rest(sensor: Any, rules: Rules, server: tuple[str, int]) -> None:
    rules((Direction.CREATE, UDP, "", 0, RuleAction.ALLOW), flags=ScopeFlag.WHITELIST_NETWORK)

    def act() -> None:
        with pytest.raises(PermissionError):
            socket.socket()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", 9))
        socket.socket(socket.AF_UNIX)

    sensor.run(act)


def test_a_source_may_what_others_may_not(sensor: Any, rules: Rules, server: tuple[str, int]) -> None:
    block = (Direction.SEND, TCP, "", 0, RuleAction.BLOCK, 1)
    rules(block, (Direction.SEND, TCP, "", 0, RuleAction.ALLOW, 2, PYTHON))
    sensor.run(connects(server, refused=False))
    rules(block, (Direction.SEND, TCP, "", 0, RuleAction.BLOCK, 2, PYTHON))
    sensor.run(connects(server, refused=True))


def test_datagrams_and_binds(sensor: Any, rules: Rules, pick: Callable[..., Any]) -> None:
    rules(
        (Direction.SEND, UDP, "127.0.0.1/32", 5353, RuleAction.BLOCK),
        (Direction.BIND, UDP, "", 5354, RuleAction.BLOCK),
    )

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            with pytest.raises(PermissionError):
                client.sendto(b"x", ("127.0.0.1", 5353))
            client.sendto(b"x", ("127.0.0.1", 9))
            with pytest.raises(PermissionError):
                client.bind(("127.0.0.1", 5354))

    events = sensor.run(act)
    assert pick(events, Operation.SEND, port=5353).enforcer is Backend.CGROUP
    assert pick(events, Operation.SEND, port=9).enforcer is Backend.OBSERVER
    assert pick(events, Operation.BIND).enforcer is Backend.CGROUP


def test_ipv6(sensor: Any, rules: Rules, pick: Callable[..., Any]) -> None:
    server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    rules((Direction.SEND, TCP, "::1/128", 0, RuleAction.BLOCK))

    def act() -> None:
        assert socket.socket(socket.AF_INET6).connect_ex(server.getsockname()) == errno.EPERM

    assert pick(sensor.run(act), Operation.CONNECT).enforcer is Backend.CGROUP
    server.close()


def test_the_first_call_of_an_unknown_process_is_told_with_its_name(
    sensor: Any, rules: Rules, pick: Callable[..., Any], server: tuple[str, int]
) -> None:
    rules((Direction.SEND, 0, "127.0.0.0/8", 0, RuleAction.BLOCK))

    def act() -> None:
        stream, datagram = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sensor.loaded.map("processes") as processes:
            processes.clear()
        assert stream.connect_ex(server) == errno.EPERM
        with sensor.loaded.map("processes") as processes:
            processes.clear()
        with pytest.raises(PermissionError):
            datagram.sendto(b"x", ("127.0.0.1", 9))

    events = sensor.run(act)
    for operation, port in ((Operation.CONNECT, server[1]), (Operation.SEND, 9)):
        event = pick(events, operation)
        assert (event.enforcer, event.port, event.result) == (Backend.CGROUP, port, -errno.EPERM)
        assert event.executable == PYTHON


def test_denials_of_many_threads_are_told_one_by_one(sensor: Any, rules: Rules) -> None:
    rules(
        (Direction.SEND, 0, "127.0.0.1/32", 0, RuleAction.BLOCK),
        (Direction.CREATE, SOCKET_TYPE | 3, "", 0, RuleAction.BLOCK),
    )
    threads, each = 8, 200

    def work(first: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for number in range(each):
                port = first + number
                with socket.socket() as stream:
                    assert stream.connect_ex(("127.0.0.1", port)) == errno.EPERM
                with pytest.raises(PermissionError):
                    client.sendto(b"x", ("127.0.0.1", port))
                client.sendto(b"x", ("127.0.0.2", port))
                with pytest.raises(PermissionError):
                    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)

    def act() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [1000] * threads))

    events = sensor.run(act)
    denied = [event for event in events if event.enforcer is Backend.CGROUP]
    told = Counter((event.operation, event.port) for event in denied)
    ports = range(1000, 1000 + each)
    expected = Counter({(what, port): threads for what in (Operation.CONNECT, Operation.SEND) for port in ports})
    assert told == expected + Counter({(Operation.SOCKET, 0): threads * each})
    passed = [
        event.port for event in events if event.operation is Operation.SEND and event.enforcer is Backend.OBSERVER
    ]
    assert Counter(passed) == dict.fromkeys(ports, threads)
    assert len({event.sequence for event in events}) == len(events)
