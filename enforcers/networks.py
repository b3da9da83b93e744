# SPDX-License-Identifier: Apache-2.0
"""Network rules of a plan as entries of the kernel's `net_rules` trie. Pure.

The kernel asks two questions and either may stop a call (`schemas.kernel.Direction`): CREATE, may this kind of socket be
used, answered by protocol rules; SEND or BIND, may this address and port be used, answered by the rules of network
policies. Of all that match the greatest rank decides, so the rank is the rule's place in the plan. An IPv4 network is
written for IPv6 sockets too, as the mapped network they could reach it by. What a trie cannot say is refused, and with it
each rule that denies and that it would have been an exception to. Neighbours: `cgroup` (whose map this is), `policy.kernel_plan`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

import msgspec

from enforcers.actors import ActorMachine
from enforcers.contract import Entries, Ident
from enforcers.paths import ACTIONS
from schemas.enforcement import NetworkRule, Refusal
from schemas.kernel import NET_FIXED_BITS, NET_KEY, RULE, SOCKET_TYPE, Direction, RuleFlag
from schemas.operations import Backend
from schemas.refusals import Cause, RefusalCode
from schemas.verdict import DEFAULT_POSTURE, PROTECTED

_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)
_BOTH: Final = (_INET, _INET6)
_PROTOCOLS: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "": (0, _BOTH), "all": (0, _BOTH), "tcp": (6, _BOTH), "udp": (17, _BOTH), "sctp": (132, _BOTH), "icmp": (1, (_INET,)),
    "icmpv6": (58, (_INET6,)), "stream": (SOCKET_TYPE | 1, _BOTH), "dgram": (SOCKET_TYPE | 2, _BOTH),
    "raw": (SOCKET_TYPE | 3, _BOTH), "seqpacket": (SOCKET_TYPE | 5, _BOTH),
}  # fmt: skip
"""Word -> what stands in `net_key.protocol`, and the families that know it."""
_TYPES: Final = {word: SOCKET_TYPE | number for word, number in (("rdm", 4), ("dccp", 6), ("packet", 10))}
"""Types that internet sockets do not have, but where every family is asked about."""
_OTHERS: Final = 0
"""`net_key.family` of every family but the internet's."""
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_MAPPED_NETWORK: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NO_OPINION: Final = RULE.struct.pack(0, 0, 0, 0)
"""Hides a wider network behind a narrower one that decides nothing."""
ENTRIES: Final = 65536
"""Most entries of one workload: what the kernel's table has by default for all."""
PORTS: Final = 1024
"""Widest range of ports that is written out port by port; the kernel's key holds one."""
_LAST_PORT: Final = 65535

_MANY: Final = Cause(
    RefusalCode.SOURCE,
    "its `fromSource` is a directory or a pattern, and cgroup programs look executables up by their whole paths",
)
_PEERS: Final = ("KubeArmorNetworkPolicy",)


def encode(
    rules: Iterable[NetworkRule],
    ident: Ident,
    backend: Backend,
    uid: str,
    *,
    every_family: bool = False,
    actors: ActorMachine | None = None,
) -> tuple[Entries, tuple[Refusal, ...], set[Direction]]:
    """Entries with table id 0; refusals; questions in which a rule that frees is missing, so that no posture must be held.
    `every_family`: who asks sees sockets of all families, not the internet's alone. `actors`: it knows executables by directories and
    patterns."""
    ordered = list(rules)
    entries: dict[bytes, bytes] = {}
    refused: list[Refusal] = []
    holes: set[Direction] = set()
    wide: list[bytes] = []
    anywhere: dict[bytes, bytes] = {}
    for index, rule in enumerate(ordered):
        questions = _questions(rule)
        why = _problem(rule, every_family) or _source(rule, actors) or _too_many(rule, len(entries))
        if why is None and rule.stops and holes & questions:
            why = Cause(
                RefusalCode.EXCEPTION,
                "an exception before it cannot be carried out, and without it too much would be denied",
            )
        if why is not None:
            refused.append(Refusal(ref=rule.ref, uid=uid, backend=backend, reason=why.text, code=why.code))
            if rule.frees:
                holes |= questions
            continue
        flags = RuleFlag.NO_TERMINAL if rule.no_terminal else RuleFlag(0)
        value = RULE.struct.pack(ACTIONS[rule.action], flags, index, len(ordered) - index)
        for question, source in product(sorted(questions), _sources(rule, ident, actors)):
            for key in _keys(rule, question, source):
                entries.setdefault(key, value)
            if every_family and question is Direction.CREATE and (other := _other_families(rule, source)):
                entries.setdefault(other, value)
            if ":" in rule.cidr and _MAPPED_NETWORK.subnet_of(ipaddress.IPv6Network(rule.cidr, strict=False)):
                wide += _keys(msgspec.structs.replace(rule, cidr=str(_MAPPED_NETWORK)), question, source)
            elif not rule.cidr:
                for key in _keys(msgspec.structs.replace(rule, cidr=str(_MAPPED_NETWORK)), question, source):
                    anywhere.setdefault(key, value)
    # An IPv6 network says nothing of the IPv4 addresses mapped into it; a rule for any address does.
    for key in wide:
        entries.setdefault(key, anywhere.get(key, _NO_OPINION))
    return tuple(entries.items()), tuple(refused), holes


def _source(rule: NetworkRule, actors: ActorMachine | None) -> Cause | None:
    if not rule.many:
        return None
    return _MANY if actors is None else actors.problem


def _sources(rule: NetworkRule, ident: Ident, actors: ActorMachine | None) -> tuple[int, ...]:
    if rule.many and actors is not None:
        return actors.numbers(rule)
    return (ident(rule.source) if rule.source else 0,)


def _questions(rule: NetworkRule) -> set[Direction]:
    address = Direction.SEND if rule.direction == "egress" else Direction.BIND
    if rule.ref.policy == PROTECTED:
        return {Direction.CREATE, address}
    return {address} if rule.ref.kind in _PEERS or rule.ref.policy == DEFAULT_POSTURE else {Direction.CREATE}


def _other_families(rule: NetworkRule, source: int) -> bytes:
    """The key of a rule on a type of socket, or on all, for families other than the internet's; empty for a protocol of that."""
    number = _TYPES.get(rule.protocol) or _PROTOCOLS[rule.protocol][0]
    if number and number < SOCKET_TYPE:
        return b""
    return NET_KEY.struct.pack(NET_FIXED_BITS, 0, number, _OTHERS, 0, source, Direction.CREATE, 0, bytes(16))


def _problem(rule: NetworkRule, every_family: bool) -> Cause | None:
    if rule.protocol not in _PROTOCOLS and not (every_family and rule.protocol in _TYPES):
        return Cause(RefusalCode.SOCKET_FAMILY, f"cgroup programs see internet sockets only, not `{rule.protocol}`")
    if rule.direction == "ingress" and rule.cidr:
        return Cause(
            RefusalCode.INGRESS_NETWORK,
            "who connects is not known when a socket is bound; only the port of an ingress rule can be enforced",
        )
    if rule.end_port - rule.port >= PORTS and (rule.port > 1 or rule.end_port < _LAST_PORT):
        return Cause(
            RefusalCode.TOO_MANY_ENTRIES,
            f"a range of {rule.end_port - rule.port + 1} ports; at most {PORTS} are written out",
        )
    return None


def _too_many(rule: NetworkRule, before: int) -> Cause | None:
    # Counted before anything is written out.
    ports = 1 if rule.port <= 1 and rule.end_port >= _LAST_PORT else max(1, rule.end_port - rule.port + 1)
    if before + 2 * ports <= ENTRIES:
        return None
    return Cause(
        RefusalCode.TOO_MANY_ENTRIES,
        f"{before} entries of this workload are in the table already, at most {ENTRIES} are written out",
    )


def _keys(rule: NetworkRule, question: Direction, source: int) -> Iterator[bytes]:
    protocol, families = _PROTOCOLS.get(rule.protocol) or (_TYPES[rule.protocol], _BOTH)
    ports: Iterable[int] = range(rule.port, max(rule.port, rule.end_port) + 1)
    if question is Direction.CREATE or (rule.port <= 1 and rule.end_port >= _LAST_PORT):
        ports = (0,)
    for family, bits, address in _networks(rule.cidr):
        if family in families:
            for port in ports:
                yield NET_KEY.struct.pack(
                    NET_FIXED_BITS + bits, port, protocol, family, 0, source, question, 0, address
                )  # fmt: skip


def _networks(cidr: str) -> Iterator[tuple[int, int, bytes]]:
    if not cidr:
        yield _INET, 0, bytes(16)
        yield _INET6, 0, bytes(16)
        return
    network = ipaddress.ip_network(cidr, strict=False)
    packed = network.network_address.packed
    if network.version == 4:
        yield _INET, network.prefixlen, packed + bytes(12)
        yield _INET6, 96 + network.prefixlen, _MAPPED + packed
    else:
        yield _INET6, network.prefixlen, packed
