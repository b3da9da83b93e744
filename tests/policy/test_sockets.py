# SPDX-License-Identifier: Apache-2.0
"""Socket tables against slow references: networks and ports, names, protocol words."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.judge.compile import compile_judge
from policy.judge.sockets import address_number, words
from schemas.behaviour import Behaviour
from schemas.operations import Class, Operation
from schemas.rules import Match, Peer, PolicyKey, Ports, Rule
from schemas.verdict import Action, Mode

KEY = PolicyKey("KubeArmorNetworkPolicy", "", "fw")
NETWORKS = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "2001:db8::/32", "2001:db8::1/128"]
ADDRESSES = ["10.1.2.3", "10.1.9.9", "10.9.9.9", "9.9.9.9", "2001:db8::1", "2001:db8::2", "fe80::1", "::ffff:10.1.2.3"]
ports = st.builds(
    Ports,
    first=st.sampled_from([0, 22, 80]),
    last=st.sampled_from([0, 22, 80, 443]),
    protocol=st.sampled_from(["", "tcp", "udp"]),
).map(lambda one: one if one.first and one.last >= one.first else Ports(0, 0, one.protocol))
peers = st.builds(
    Peer,
    ingress=st.just(False),
    networks=st.lists(st.sampled_from(NETWORKS), max_size=2, unique=True).map(tuple),
    ports=st.lists(ports, max_size=2, unique=True).map(tuple),
)
rules = st.lists(st.tuples(peers, st.sampled_from([Action.ALLOW, Action.BLOCK])), max_size=6)


def best(found: list[tuple[Peer, Action]], address: str, port: int, protocol: str) -> str | None:
    parsed = ipaddress.ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    said: list[tuple[int, int, bool]] = []
    for peer, action in found:
        for network in peer.networks or ("",):
            inside = not network or (
                ipaddress.ip_network(network).version == parsed.version and parsed in ipaddress.ip_network(network)
            )
            for ports in peer.ports or (Ports(),):
                fits = not ports.first or ports.first <= port <= ports.last
                if inside and fits and ports.protocol in ("", protocol):
                    prefix = ipaddress.ip_network(network).prefixlen if network else -1
                    width = 0 if not ports.first else 2 if ports.first == ports.last else 1
                    said.append((prefix, width, action is Action.BLOCK))
    return None if not said else "Block" if max(said)[2] else "Allow"


@given(rules, st.sampled_from(ADDRESSES), st.sampled_from([22, 80, 443]), st.sampled_from(["tcp", "udp"]))
@settings(max_examples=300, deadline=None)
def test_peers(found: list[tuple[Peer, Action]], address: str, port: int, protocol: str) -> None:
    compiled = [
        (Rule(key=KEY, index=number, position="", class_=Class.NETWORK, match=Match.PEER, value="egress", action=action, peer=peer), Mode.ENFORCE)
        for number, (peer, action) in enumerate(found)
    ]  # fmt: skip
    judge = compile_judge(compiled, {"network": "block"}, host=True)
    behaviour = Behaviour(
        operation=Operation.CONNECT,
        family=10 if ":" in address else 2,
        socket_type=1 if protocol == "tcp" else 2,
        protocol=6 if protocol == "tcp" else 17,
        address=address,
        port=port,
    )
    wanted = best(found, address, port, protocol)
    if wanted is None:
        wanted = "Block" if any(action is Action.ALLOW for _, action in found) else "Allow"
    assert judge.judge(behaviour).action.value == wanted


labels = st.lists(st.sampled_from(["a", "b", "com", "evil"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(st.tuples(labels, st.booleans()), max_size=5), labels)
@settings(max_examples=200, deadline=None)
def test_names(found: list[tuple[str, bool]], asked: str) -> None:
    compiled = [
        (Rule(key=KEY, index=number, position="", class_=Class.NETWORK, match=Match.DNS, value=name, action=Action.BLOCK if block else Action.ALLOW), Mode.ENFORCE)
        for number, (name, block) in enumerate(found)
    ]  # fmt: skip
    judge = compile_judge(compiled, {"network": "allow"})
    matching = [(len(name), block) for name, block in found if asked == name or asked.endswith("." + name)]
    wanted = bool(matching) and max(matching)[1]
    behaviour = Behaviour(operation=Operation.DNS, detail=asked.upper() + ".")
    assert (judge.judge(behaviour).action is Action.BLOCK) is wanted


@pytest.mark.parametrize(
    ("socket", "wanted"),
    [
        ((2, 1, 0), {"all", "stream", "tcp"}),
        ((2, 0o2000001, 6), {"all", "stream", "tcp"}),
        ((10, 2, 17), {"all", "dgram", "udp"}),
        ((10, 2, 58), {"all", "dgram", "icmpv6"}),
        ((2, 3, 1), {"all", "raw", "icmp"}),
        ((2, 5, 132), {"all", "seqpacket", "sctp"}),
        ((1, 1, 0), {"all", "stream"}),
        ((16, 3, 0), {"all"}),
        ((17, 3, 3), {"all", "raw"}),
        ((17, 10, 0), {"all", "packet"}),
        ((0, 0, 6), {"all", "tcp"}),
        ((2, 0, 0), {"all"}),
        ((40, 1, 0), {"all", "stream"}),
    ],
)
def test_words(socket: tuple[int, int, int], wanted: set[str]) -> None:
    assert set(words(*socket)) == wanted


def test_addresses_that_are_none() -> None:
    assert address_number("") is None
    assert address_number("10.0.0") is None
    assert address_number("/run/x") is None
    assert address_number("fe80::1%eth0") == (6, int(ipaddress.ip_address("fe80::1")))
    assert address_number("a\0b") is None
