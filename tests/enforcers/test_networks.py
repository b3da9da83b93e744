# SPDX-License-Identifier: Apache-2.0
"""The trie answers as the ordered plan does: a model of the kernel's lookup against the first rule that matches."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.networks import encode
from schemas.enforcement import NetworkRule
from schemas.kernel import NET_FIXED_BITS, NET_KEY, RULE, Direction, RuleAction, RuleFlag
from schemas.operations import Backend
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

NSP = RuleRef("peers", "KubeArmorNetworkPolicy")
KSP = RuleRef("protocols", "KubeArmorPolicy")


def ident(text: str) -> int:
    return sum(text.encode()) + 1


def rule(action: Action = Action.BLOCK, ref: RuleRef = KSP, **words: Any) -> NetworkRule:
    return NetworkRule(**({"protocol": "tcp", "action": action, "ref": ref} | words))


def ask(entries: Any, direction: Direction, source: int, protocol: int, address: str, port: int) -> RuleAction | None:
    """What kernel/programs/guard.c does: longest prefix in each combination, greatest rank of all."""
    found = ipaddress.ip_address(address)
    family, packed = (2, found.packed) if found.version == 4 else (10, found.packed)
    best: tuple[int, int] | None = None
    for who in {source, 0}:
        for what in {protocol, 0}:
            for where in {port, 0}:
                longest = (-1, b"")
                for key, value in entries:
                    bits, p, proto, fam, _, src, way, _, raw = NET_KEY.struct.unpack(key)
                    bits -= NET_FIXED_BITS
                    if (p, proto, fam, src, way) != (where, what, family, who, direction):
                        continue
                    width = len(packed) * 8
                    mine = int.from_bytes(raw[: len(packed)], "big") >> (width - bits)
                    if int.from_bytes(packed, "big") >> (width - bits) == mine and bits > longest[0]:
                        longest = (bits, value)
                if longest[1] and RULE.struct.unpack(longest[1])[0]:
                    action, _, _, rank = RULE.struct.unpack(longest[1])
                    best = max(best or (0, 0), (rank, action))
    return None if best is None else RuleAction(best[1])


def test_a_protocol_rule_is_about_sockets_and_a_peer_rule_about_addresses() -> None:
    entries, refused, holes = encode((rule(), rule(ref=NSP, cidr="10.0.0.0/8")), ident, Backend.CGROUP, "u")
    ways = {(NET_KEY.struct.unpack(key)[6], NET_KEY.struct.unpack(key)[3]) for key, _ in entries}
    assert ways == {(Direction.CREATE, 2), (Direction.CREATE, 10), (Direction.SEND, 2), (Direction.SEND, 10)}
    assert not refused
    assert not holes


def test_what_a_trie_cannot_say_is_refused_and_what_depended_on_it_too() -> None:
    ingress = {"ref": NSP, "direction": "ingress"}
    rules = (
        rule(Action.ALLOW, cidr="10.0.0.0/8", **ingress),
        rule(Action.BLOCK, RuleRef(DEFAULT_POSTURE), protocol="all", direction="ingress"),
        rule(Action.BLOCK, protocol="packet"),
        rule(Action.BLOCK, ref=NSP, port=1, end_port=60000),
        rule(Action.BLOCK, ref=NSP, port=1, end_port=65535),
    )
    entries, refused, holes = encode(rules, ident, Backend.CGROUP, "u")
    assert [one.ref for one in refused] == [rules[0].ref, rules[1].ref, rules[2].ref, rules[3].ref]
    assert "who connects is not known" in refused[0].reason
    assert "too much would be denied" in refused[1].reason
    assert holes == {Direction.BIND}
    assert len(entries) == 2


def test_a_terminal_is_asked_for_by_a_flag_of_the_entry() -> None:
    for action in (Action.BLOCK, Action.ALLOW):
        for backend in (Backend.CGROUP, Backend.BPF_LSM):
            entries, refused, _ = encode((rule(action, no_terminal=True),), ident, backend, "u")
            assert {RULE.struct.unpack(value)[1] for _, value in entries} == {RuleFlag.NO_TERMINAL}
            assert not refused


def test_an_ipv4_network_holds_mapped_addresses_too() -> None:
    entries, _, _ = encode((rule(ref=NSP, cidr="192.0.2.0/24"),), ident, Backend.CGROUP, "u")
    assert ask(entries, Direction.SEND, 5, 6, "::ffff:192.0.2.9", 80) is RuleAction.BLOCK
    assert ask(entries, Direction.SEND, 5, 6, "::ffff:192.0.3.9", 80) is None


def test_an_ipv6_network_says_nothing_of_mapped_addresses_and_any_address_does() -> None:
    wide = rule(ref=NSP, cidr="::/0")
    anywhere = rule(Action.ALLOW, ref=NSP)
    entries, _, _ = encode((wide,), ident, Backend.CGROUP, "u")
    assert ask(entries, Direction.SEND, 5, 6, "2001:db8::1", 80) is RuleAction.BLOCK
    assert ask(entries, Direction.SEND, 5, 6, "::ffff:192.0.2.9", 80) is None
    entries, _, _ = encode((wide, anywhere), ident, Backend.CGROUP, "u")
    assert ask(entries, Direction.SEND, 5, 6, "2001:db8::1", 80) is RuleAction.BLOCK
    assert ask(entries, Direction.SEND, 5, 6, "::ffff:192.0.2.9", 80) is RuleAction.ALLOW


addresses = st.sampled_from(["10.0.0.1", "10.1.0.1", "10.1.2.3", "192.0.2.1"])
networks = st.sampled_from(["", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24"])
rules = st.lists(
    st.tuples(networks, st.sampled_from([0, 80, 443]), st.sampled_from(["tcp", "udp", "all"]),
              st.sampled_from([Action.ALLOW, Action.BLOCK])), max_size=8
)  # fmt: skip


@given(rules, addresses, st.sampled_from([80, 443, 22]), st.sampled_from([(6, "tcp"), (17, "udp")]))
def test_the_trie_decides_as_the_ordered_plan(given_rules: Any, address: str, port: int, how: tuple[int, str]) -> None:
    def weight(one: Any) -> tuple[int, bool]:
        length = ipaddress.ip_network(one[0]).prefixlen if one[0] else -1
        return (-((length + 1) * 4 + (2 if one[1] else 0)), one[3] is not Action.BLOCK)

    ordered = [
        rule(action, NSP, cidr=cidr, port=number, end_port=number, protocol=protocol)
        for cidr, number, protocol, action in sorted(given_rules, key=weight)
    ]
    entries, _, _ = encode(ordered, ident, Backend.CGROUP, "u")
    expected = next(
        (
            one.action
            for one in ordered
            if (not one.cidr or ipaddress.ip_address(address) in ipaddress.ip_network(one.cidr))
            and one.port in (0, port)
            and one.protocol in ("all", how[1])
        ),
        None,
    )
    answer = ask(entries, Direction.SEND, 7, how[0], address, port)
    assert (answer is None) == (expected is None)
    if expected is not None:
        assert answer is (RuleAction.ALLOW if expected is Action.ALLOW else RuleAction.BLOCK)


@pytest.mark.parametrize(
    ("protocol", "number", "families"),
    [("tcp", 6, {2, 10}), ("icmp", 1, {2}), ("icmpv6", 58, {10}), ("raw", 0xF3, {2, 10}), ("all", 0, {2, 10})],
)
def test_words_of_protocols(protocol: str, number: int, families: set[int]) -> None:
    entries, _, _ = encode((rule(protocol=protocol),), ident, Backend.CGROUP, "u")
    unpacked = [NET_KEY.struct.unpack(key) for key, _ in entries]
    assert {one[2] for one in unpacked} == {number}
    assert {one[3] for one in unpacked} == families


def test_a_policy_with_the_name_of_the_exceptions_is_none_of_them() -> None:
    """An Allow rule on peers would open sockets of protocols that another policy blocks."""
    named = RuleRef("protected", kind=NSP.kind, namespace="shop", position="spec.egress[0]")
    entries, _, _ = encode((rule(Action.ALLOW, ref=named, cidr="10.0.0.0/8"), rule()), ident, Backend.CGROUP, "u")
    ways = {NET_KEY.struct.unpack(key)[6] for key, value in entries if RULE.struct.unpack(value)[0] == RuleAction.ALLOW}
    assert ways == {Direction.SEND}
