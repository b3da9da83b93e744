# SPDX-License-Identifier: Apache-2.0
"""Connections and datagrams made in unusual ways: each is told once, with the peer it really had."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: sockets}
spec:
  selector: {matchLabels: {app: talker}}
  severity: 5
  network:
    matchProtocols: [{protocol: tcp}, {protocol: udp}, {protocol: raw}]
    matchDNSQueries: [{domain: evil.example}]
  action: Audit
"""


@pytest.fixture(scope="module")
def attacked(make_container: Callable[[str], Any], make_node: Callable[..., Any], build: Callable[[str], str]) -> Any:
    node = make_node(POLICY, make_container("talker"))
    node.program = build("sockets")
    return node


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a listening socket of the test's own process."""
    made = socket.create_server(("127.0.0.1", 0))
    yield made.getsockname()[1]
    made.close()


@pytest.fixture
def attack(attacked: Any) -> Callable[..., dict[str, str]]:
    """attack(word, ...): what the program printed, by its words."""

    def run(*words: object) -> dict[str, str]:
        done = attacked.containers["talker"].run(attacked.program, *map(str, words))
        assert done.returncode == 0, done.stderr
        return dict(line.split(": ") for line in done.stdout.splitlines())

    return run


def connects(attacked: Any, port: int) -> list[dict[str, Any]]:
    """Alerts about connections to the port, once the end of the program that made them is seen: nothing comes after it."""
    attacked.containers["talker"].run(attacked.program, "connect", "127.0.0.1", "1")
    attacked.alert("port=1 ")
    told = attacked.alerts(f"port={port} ")
    for row in attacked.alerts("port=1 "):
        assert row["Result"] == "Connection refused"
    return [row for row in told if row["Data"].startswith("kprobe=tcp_connect")]


@pytest.mark.attack("Connect that a signal interrupts; it goes on in the background", "told", by="sensor")
def test_an_interrupted_connect(attacked: Any, attack: Any, port: int) -> None:
    assert attack("interrupted", "127.0.0.1", port) == {"interrupted": "EINTR", "then": "ok"}
    # two fill the queue of the listener, the third is the one
    rows = connects(attacked, port)
    assert [row["Resource"] for row in rows] == [f"remoteip=127.0.0.1 port={port} protocol=TCP"] * 3
    assert {row["PolicyName"] for row in rows} == {"sockets"}


@pytest.mark.attack("Connect that a signal interrupts and the kernel makes again", "told", by="sensor")
def test_a_restarted_connect_is_one(attacked: Any, attack: Any, port: int) -> None:
    assert attack("restarted", "127.0.0.1", port) == {"restarted": "ok", "then": "ok"}
    assert len(connects(attacked, port)) == 3


@pytest.mark.parametrize("word", ["rewritten", "rewritten-fastopen"])
@pytest.mark.attack("Address of a connect rewritten by another thread while it waits", "told", by="sensor")
def test_a_rewritten_address(attacked: Any, attack: Any, port: int, word: str) -> None:
    assert attack(word, "127.0.0.1", port) == {word: "ok"}
    assert len(connects(attacked, port)) == 3
    assert attacked.alerts("192.0.2.1") == []


@pytest.mark.parametrize("word", ["fastopen", "fastopen-msg", "fastopen-connect"])
@pytest.mark.attack("TCP connection opened by its first bytes (TCP Fast Open)", "told", by="sensor")
def test_fast_open(attacked: Any, attack: Any, server: int, word: str) -> None:
    assert attack(word, "127.0.0.1", server) == {word: "ok"}
    (row,) = connects(attacked, server)
    assert (row["Resource"], row["PolicyName"]) == (f"remoteip=127.0.0.1 port={server} protocol=TCP", "sockets")
    said = attacked.hauberk("summary", "-o", "json").stdout
    assert str(server) in json.dumps([value for value in json.loads(said) if "egress" in json.dumps(value).lower()])


@pytest.mark.attack("MPTCP socket (protocol 262), which speaks TCP to any TCP peer", "told", by="sensor")
def test_mptcp_is_tcp(attacked: Any, attack: Any, server: int) -> None:
    assert attack("mptcp", "127.0.0.1", server) == {"mptcp": "ok"}
    (row,) = connects(attacked, server)
    assert (row["Resource"], row["PolicyName"]) == (f"remoteip=127.0.0.1 port={server} protocol=TCP", "sockets")


@pytest.mark.attack("Datagram to an address of the family AF_UNSPEC", "told", by="sensor")
def test_an_address_without_family(attacked: Any, attack: Any) -> None:
    assert attack("unspec", "127.0.0.23", 53) == {"unspec": "ok"}
    assert attacked.alert("remoteip=127.0.0.23 port=53 protocol=UDP")["PolicyName"] == "sockets"
    assert attack("unspec-raw6", "::1") == {"unspec-raw6": "ok"}
    assert attacked.alert("remoteip=::1 port=0 ")["PolicyName"] == "sockets"


@pytest.mark.parametrize(("word", "peer"), [("parts", 24), ("two-questions", 25), ("unspec", 26)])
@pytest.mark.attack("DNS query in a hundred parts, with a second question, or to AF_UNSPEC", "told", by="sensor")
def test_a_hidden_dns_query(attacked: Any, attack: Any, word: str, peer: int) -> None:
    before = len(attacked.alerts(Resource="evil.example"))
    assert attack(word, f"127.0.0.{peer}", 53) == {word: "ok"}
    attacked.alert(f"remoteip=127.0.0.{peer} ")
    connects(attacked, 2)
    told = attacked.alerts(Resource="evil.example")
    assert len(told) == before + 1
    assert told[-1]["PolicyName"] == "sockets"


@pytest.mark.attack("Connect through io_uring", "not held", by="sensor")
def test_a_connect_by_io_uring(attacked: Any, attack: Any, server: int) -> None:
    assert attack("uring", "127.0.0.1", server) == {"uring": "ok"}
    assert connects(attacked, server) == []
