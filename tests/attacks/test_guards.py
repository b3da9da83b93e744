# SPDX-License-Identifier: Apache-2.0
"""Ways around a network rule: what a guard denies is told once by the guard itself, with policy, rule and severity."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TAKEN = 45678
"""A port that may not be taken, of the ephemeral range."""
POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: wall}}
spec:
  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: "*"}}}}
  severity: 8
  egress:
  - to: [{{ipBlock: {{cidr: 127.0.0.1/32}}}}]
  - to: [{{ipBlock: {{cidr: 127.0.0.77/32}}}}]
  - to: [{{ipBlock: {{cidr: "::1/128"}}}}]
  - to: [{{ipBlock: {{cidr: "2001:db8::5/128"}}}}]
    ports: [{{port: {behind}, protocol: TCP}}]
  ingress:
  - ports: [{{port: {taken}, protocol: TCP}}]
  action: Block
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: no-tcp}}
spec:
  selector: {{matchLabels: {{app: mute}}}}
  severity: 7
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Block
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: only-tcp}}
spec:
  selector: {{matchLabels: {{app: tcp}}}}
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Allow
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: no-sockets}}
spec:
  selector: {{matchLabels: {{app: alone}}}}
  severity: 6
  network: {{matchProtocols: [{{protocol: all}}]}}
  action: Block
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], build: Callable[[str], str], eventually: Any
) -> Any:
    wall = make_container("wall")
    node = make_node(
        POLICY.format(taken=TAKEN, behind=TAKEN + 1), make_container("mute"), make_container("tcp"), make_container("alone"),
        planner={"plan": {"host_cgroups": [wall.cgroup]}},
        postures={"host_visibility": ["none"], "network": "block"},
    )  # fmt: skip
    node.program = build("sockets")
    node.containers["wall"] = wall
    eventually(lambda: wall.run(node.program, "connect", "127.0.0.1", "1").stdout == "connect: EPERM\n")
    node.alert("DestinationPort=1 ")
    return node


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a listening socket of the test's own process."""
    made = socket.create_server(("127.0.0.1", 0))
    yield made.getsockname()[1]
    made.close()


@pytest.fixture
def attack(attacked: Any) -> Callable[..., dict[str, str]]:
    """attack(word, ..., inside=name): what the program printed, by its words."""

    def run(*words: object, inside: str = "wall") -> dict[str, str]:
        done = attacked.containers[inside].run(attacked.program, *map(str, words))
        assert done.returncode == 0, done.stderr
        return dict(line.split(": ") for line in done.stdout.splitlines())

    return run


_LAST = [40000]


def blocks(attacked: Any, attack: Any, port: int) -> list[dict[str, Any]]:
    """Denials that name the port, once a later one is told: nothing comes after it."""
    _LAST[0] += 1
    assert attack("connect", "127.0.0.1", _LAST[0]) == {"connect": "EPERM"}
    attacked.alert(f"DestinationPort={_LAST[0]} ", Action="Block")
    return [row for row in attacked.alerts(f"DestinationPort={port} ") if row["Action"] == "Block"]


def is_named(row: dict[str, Any], policy: str, severity: str) -> None:
    assert (row["PolicyName"], row["Severity"], row["Enforcer"]) == (policy, severity, "Hauberk cgroup")
    assert row["Rule"]
    assert row["Result"] == "Operation not permitted"
    assert row["ProcessName"].endswith("/sockets")


@pytest.mark.parametrize(
    ("word", "call"),
    [("connect", "CONNECT"), ("mptcp", "CONNECT"), ("fastopen", "SENDTO"), ("fastopen-msg", "SENDMSG"),
     ("fastopen-connect", "CONNECT"), ("udp", "SENDTO"), ("unspec", "SENDTO"), ("uring", "IO_URING_ENTER")],
)  # fmt: skip
@pytest.mark.attack(
    "Peer of a Block rule reached by connect, MPTCP, Fast Open, AF_UNSPEC, io_uring", "held", by="cgroup"
)
def test_every_way_to_a_peer(attacked: Any, attack: Any, word: str, call: str) -> None:
    _LAST[0] += 1
    port = _LAST[0]
    assert attack(word, "127.0.0.1", port) == {word: "EPERM"}
    (row,) = blocks(attacked, attack, port)
    is_named(row, "wall", "8")
    assert row["Judged"]["syscall_name"] == call.lower()
    assert "DestinationIP=127.0.0.1 " in row["Data"]


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("alias", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::", "::1"])
@pytest.mark.attack("Peer of a Block rule by another name of the loopback", "held", by="cgroup")
def test_aliases_of_the_loopback(attacked: Any, attack: Any, alias: str, protocol: int) -> None:
    _LAST[0] += 1
    port = _LAST[0]
    assert attack("alias", alias, port, protocol) == {"alias": "EPERM"}
    (row,) = blocks(attacked, attack, port)
    is_named(row, "wall", "8")
    assert ("::1" if alias in ("::", "::1") else "127.0.0.1") in row["Data"]


@pytest.mark.attack("Peer of a Block rule by `any` of a socket bound to its address", "held", by="cgroup")
def test_any_is_the_address_bound_to(attacked: Any, attack: Any) -> None:
    assert attack("bound-alias", "127.0.0.77", 41999) == {"bound-alias": "EPERM"}
    (row,) = blocks(attacked, attack, 41999)
    assert "127.0.0.77" in row["Data"]
    assert attack("bound-alias", "127.0.0.78", 41998) == {"bound-alias": "ECONNREFUSED"}


@pytest.mark.attack("Second message of a sendmmsg to a peer of a Block rule", "held", by="cgroup")
def test_a_later_message(attacked: Any, attack: Any) -> None:
    assert attack("second-message", "127.0.0.1", 41997, 41996) == {"sent": "1", "next": "ok"}
    (row,) = blocks(attacked, attack, 41997)
    is_named(row, "wall", "8")
    assert [one for one in attacked.alerts("DestinationPort=41996 ") if one["Action"] == "Block"] == []


@pytest.mark.attack("Bind of a port that an ingress rule blocks", "held", by="cgroup")
def test_a_port_that_may_not_be_taken(attacked: Any, attack: Any) -> None:
    assert attack("bind", "127.0.0.9", TAKEN) == {"bind": "EPERM"}
    (row,) = blocks(attacked, attack, TAKEN)
    is_named(row, "wall", "8")
    assert row["Rule"].startswith("spec.ingress")


@pytest.mark.parametrize("protocol", [0, 6, 262])
@pytest.mark.attack("Socket of a blocked protocol, MPTCP for TCP", "held", by="cgroup")
def test_a_socket_of_a_blocked_protocol(attacked: Any, attack: Any, protocol: int) -> None:
    before = len(attacked.alerts(PolicyName="no-tcp"))
    assert attack("create", 2, 1, protocol, inside="mute") == {"create": "EPERM"}
    blocks(attacked, attack, 1)
    rows = attacked.alerts(PolicyName="no-tcp")
    assert len(rows) == before + 1
    is_named(rows[-1], "no-tcp", "7")
    assert "protocol=TCP" in rows[-1]["Resource"]


@pytest.mark.parametrize(("family", "protocol"), [(2, 6), (2, 17), (2, 241), (10, 6)])
@pytest.mark.attack(
    "Raw socket under a list that allows TCP alone, with TCP's number or one that looks like a type",
    "held",
    by="cgroup",
)
def test_a_raw_socket_is_not_tcp(attacked: Any, attack: Any, family: int, protocol: int) -> None:
    assert attack("create", 2, 1, 0, inside="tcp") == {"create": "ok"}
    assert attack("create", family, 3, protocol, inside="tcp") == {"create": "EPERM"}


@pytest.mark.attack("Socket connected outside and handed into the container", "not held", by="cgroup")
def test_a_socket_from_outside(attacked: Any, server: int) -> None:
    with socket.create_connection(("127.0.0.1", server)) as outside:
        process = attacked.containers["wall"].start(
            attacked.program, "inherited", stdin=outside, stdout=subprocess.PIPE
        )
        assert process.communicate(timeout=60)[0] == "inherited: ok\n"


@pytest.mark.attack("Packet to a peer of a Block rule from a raw socket", "held", by="cgroup")
def test_raw_packets(attacked: Any, attack: Any) -> None:
    before = len(
        [row for row in attacked.alerts("DestinationIP=127.0.0.1 DestinationPort=0") if row["Action"] == "Block"]
    )
    answers = attack("raw", "127.0.0.1")
    assert (answers["raw-send"], answers["raw-sent-connected"]) == ("EPERM", "EPERM")
    blocks(attacked, attack, 1)
    rows = [row for row in attacked.alerts("DestinationIP=127.0.0.1 DestinationPort=0") if row["Action"] == "Block"]
    assert len(rows) == before + 2
    is_named(rows[-1], "wall", "8")
    assert attack("raw", "127.0.0.5")["raw-send"] == "ok"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize(
    ("final", "via", "free"), [("127.0.0.5", "127.0.0.77", "127.0.0.78"), ("2001:db8::5", "::1", "")]
)
@pytest.mark.attack(
    "Peer of a Block rule as the first hop of a source route, to an allowed address", "held", by="cgroup"
)
def test_a_source_route(attacked: Any, attack: Any, final: str, via: str, free: str, kind: int) -> None:
    _LAST[0] += 1
    port = _LAST[0]
    answer = attack("routed", final, port, via, int(kind))
    if kind == socket.SOCK_DGRAM:
        assert answer == {"routed": "EPERM"}
    else:  # the packet is dropped; who connects is told nothing, and tries until its time is over
        assert answer == {"routed": "EINPROGRESS"}
    row, *_ = blocks(attacked, attack, port)
    is_named(row, "wall", "8")
    assert f"DestinationIP={via} " in row["Data"]
    if free and kind == socket.SOCK_DGRAM:
        assert attack("routed", final, port, free, int(kind)) == {"routed": "ok"}


def behind(attacked: Any, attack: Any, port: int, headers: int) -> tuple[str, list[dict[str, Any]]]:
    """The answer to a packet behind so many extension headers, and the denials of it."""
    peer = {"RemoteAddress": "2001:db8::5", "Action": "Block"}
    before = len(attacked.alerts(**peer))
    answer = attack("behind", "2001:db8::5", port, headers)["behind"]
    blocks(attacked, attack, 1)
    return answer, attacked.alerts(**peer)[before:]


@pytest.mark.parametrize("headers", [0, 1, 5])
@pytest.mark.attack("Packet to a blocked port from a raw socket, behind extension headers of IPv6", "held", by="cgroup")
def test_a_port_behind_extension_headers(attacked: Any, attack: Any, headers: int) -> None:
    answer, (row,) = behind(attacked, attack, TAKEN + 1, headers)
    assert answer == "EPERM"
    is_named(row, "wall", "8")
    assert f"DestinationPort={TAKEN + 1} " in row["Data"]
    assert behind(attacked, attack, TAKEN + 2, headers) == ("ok", [])


@pytest.mark.parametrize("port", [TAKEN + 1, TAKEN + 2])
@pytest.mark.parametrize("headers", [6, 7, 60])
@pytest.mark.attack("Packet behind more extension headers of IPv6 than are looked behind", "held", by="cgroup")
def test_more_extension_headers_than_are_looked_behind(attacked: Any, attack: Any, headers: int, port: int) -> None:
    answer, (row,) = behind(attacked, attack, port, headers)
    assert answer == "EPERM"
    assert "more extension headers" in row["Message"]
    assert (row["Resource"], row["Enforcer"]) == ("remoteip=2001:db8::5 port=0 protocol=60", "Hauberk cgroup")
    assert "PolicyName" not in row


@pytest.mark.parametrize(("family", "kind"), [(17, 3), (17, 2), (40, 1), (44, 3), (16, 3), (1, 1)])
@pytest.mark.attack(
    "Socket of AF_PACKET, AF_VSOCK, AF_XDP, AF_NETLINK or AF_UNIX under a Block rule on `all`", "told", by="cgroup"
)
def test_other_families(attacked: Any, attack: Any, family: int, kind: int) -> None:
    words = {17: "AF_PACKET", 40: "AF_VSOCK", 44: "AF_XDP", 16: "AF_NETLINK", 1: "AF_UNIX"}[family]
    assert attack("create", 2, 1, 0, inside="alone") == {"create": "EPERM"}
    assert attack("create", family, kind, 768 if family == 17 else 0, inside="alone") == {"create": "ok"}
    row = attacked.alert(f"domain={words}", PolicyName="no-sockets")
    assert (row["Action"], row["Severity"]) == ("Audit (Block)", "6")
    said = attacked.hauberk("describe", "node", "attacked").stdout
    assert "no-sockets" in said
    assert "Enforced in part:" in said
    assert "other-families" in said


@pytest.mark.attack("Listen without bind, on a port that an ingress rule blocks", "told", by="sensor")
def test_listen_without_bind(attacked: Any, eventually: Any) -> None:
    def listening() -> subprocess.Popen[str] | None:
        started = attacked.containers["wall"].start(
            attacked.program, "autobind", "-", str(TAKEN), stdout=subprocess.PIPE
        )
        answer = started.stdout.readline()
        if answer == "autobind: EADDRINUSE\n":  # a connection of another test has the port for a moment
            started.communicate(timeout=60)
            return None
        assert answer == "autobind: ok\n"
        return started

    process = eventually(listening)
    assert process.stdout is not None
    port = int(process.stdout.readline().split()[1])
    socket.create_connection(("127.0.0.1", port)).close()
    process.communicate(timeout=60)
    said = attacked.hauberk("describe", "node", "attacked").stdout
    assert "listen without bind gets a port of the ephemeral range" in said
    if port != TAKEN:
        pytest.skip("this kernel lets nobody choose the range (IP_LOCAL_PORT_RANGE, Linux 6.3)")
    attacked.alert(f"DestinationPort={TAKEN} ", Action="Audit (Block)", PolicyName="wall", Rule="spec.ingress[0]")


def test_what_chosen_host_cgroups_hold_is_not_said_to_be_refused(attacked: Any) -> None:
    (policy,) = json.loads(attacked.hauberk("get", "nsp", "wall", "-o", "json").stdout)
    assert policy["status"]["notEnforced"] == []
    assert [(one["rule"], one["code"]) for one in policy["status"]["enforcedInPart"]] == [
        ("spec.ingress[0]", "autobind")
    ]
