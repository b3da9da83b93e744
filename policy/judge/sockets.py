# SPDX-License-Identifier: Apache-2.0
"""Hot. Rules on sockets: by protocol and type, by DNS name, by peer and port.

Protocols know the family: a stream of AF_UNIX is `stream`, never `tcp` (KubeArmor 2.4 counts it as TCP). Networks are found by one
hash per prefix length in use, names by one hash per label, so the cost does not grow with the rules.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

from policy.judge.paths import Entry, Group
from policy.judge.precedence import Candidate
from policy.judge.sources import Actors
from schemas.rules import Ports
from schemas.socket_names import TCP_STREAMS

UNSPECIFIED: Final = 0
UNIX: Final = 1
INET: Final = 2
INET6: Final = 10
NETLINK: Final = 16
SMC: Final = 43
LOCAL: Final = frozenset({UNIX, NETLINK})
"""Families whose sockets never leave the machine: named rules reach them, the default posture does not."""

_TYPES: Final = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}
_PROTOCOLS: Final = {132: "sctp", 33: "dccp"}


@lru_cache(maxsize=1024)
def words(family: int, socket_type: int, protocol: int) -> tuple[str, ...]:
    """The protocol words a socket answers to. Family 0 (not known) counts as an internet family, type 0 as any.

    `socket_type` may carry SOCK_CLOEXEC and SOCK_NONBLOCK.
    """
    kind = socket_type & 0xF
    found = ["all"]
    if kind in _TYPES and (kind != 3 or family not in LOCAL):
        found.append(_TYPES[kind])
    if family == SMC and kind == 1:
        found.append("tcp")  # net/smc/af_smc.c: to a peer that knows no SMC it is TCP
    if family in (UNSPECIFIED, INET, INET6):
        # A raw socket writes packets of any protocol and any port itself: no rule on a protocol but ICMP's means it.
        if kind in (0, 1) and protocol in TCP_STREAMS and (kind or protocol):
            found.append("tcp")
        elif kind in (0, 2) and protocol in (0, 17) and (kind or protocol):
            found.append("udp")
        elif protocol == 1 and family != INET6:
            found.append("icmp")
        elif protocol == 58 and family != INET:
            found.append("icmpv6")
        elif kind != 3 and protocol in _PROTOCOLS and _PROTOCOLS[protocol] not in found:
            found.append(_PROTOCOLS[protocol])
    return tuple(found)


class WordTable:
    """Rules found by words: protocols, capabilities, system call names, presets."""

    __slots__ = ("_groups",)

    def __init__(self, entries: list[tuple[str, Entry]], actors: Actors) -> None:
        sorted_out: dict[str, list[Entry]] = {}
        for word, entry in entries:
            sorted_out.setdefault(word, []).append(entry)
        self._groups = {word: Group(found, actors) for word, found in sorted_out.items()}

    def __contains__(self, word: str) -> bool:
        return word in self._groups

    def lookup(self, asked: tuple[str, ...]) -> list[Group]:
        """The groups of the words asked for."""
        return [self._groups[word] for word in asked if word in self._groups]


class NameTable:
    """DNS rules: a name and all names below it, each also with the cluster's search suffixes."""

    __slots__ = ("_groups",)

    def __init__(self, entries: list[Entry], actors: Actors) -> None:
        sorted_out: dict[str, list[Entry]] = {}
        for entry in entries:
            value = entry[0].rule.value.lower().strip(".")
            tails = [suffix.lower().strip(".") for suffix in entry[0].rule.suffixes]
            for name in dict.fromkeys((value, *(f"{value}.{tail}" for tail in tails))):
                sorted_out.setdefault(name, []).append(entry)
        self._groups = {name: Group(found, actors) for name, found in sorted_out.items()}

    def lookup(self, name: str) -> list[Group]:
        """The groups that cover `name`, whatever its case."""
        rest = name.lower().strip(".")
        found = []
        while True:
            if rest in self._groups:
                found.append(self._groups[rest])
            cut = rest.find(".") + 1
            if not cut:
                return found
            rest = rest[cut:]


@lru_cache(maxsize=4096)
def address_number(address: str) -> tuple[int, int] | None:
    """(4 or 6, the address as a number); IPv4 inside of IPv6 counts as IPv4; None when it is no address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (4, int(mapped)) if mapped is not None else (parsed.version, int(parsed))


def destination(address: str) -> str:
    """Where a packet to `address` goes: "any" as a destination is the loopback, whatever way it is written."""
    where = address_number(address)
    if where is None or where[1]:
        return address
    return "127.0.0.1" if where[0] == 4 else "::1"


class _Ported:
    """Rules on one network, by port."""

    __slots__ = ("ranges", "single")

    def __init__(self) -> None:
        self.single: dict[int, list[tuple[str, Candidate]]] = {}
        self.ranges: list[tuple[Ports, Candidate]] = []

    def add(self, ports: Ports, candidate: Candidate) -> None:
        if ports.first and ports.first == ports.last:
            self.single.setdefault(ports.first, []).append((ports.protocol, candidate))
        else:
            self.ranges.append((ports, candidate))

    def find(self, port: int, asked: tuple[str, ...]) -> list[Candidate]:
        found = [rule for protocol, rule in self.single.get(port, ()) if not protocol or protocol in asked]
        for ports, rule in self.ranges:
            covered = not ports.first or ports.first <= port <= ports.last
            if covered and (not ports.protocol or ports.protocol in asked):
                found.append(rule)
        return found


def _masked(network: str) -> tuple[int, int, int]:
    """(IP version, host bits, address without them)."""
    parsed = ipaddress.ip_network(network, strict=False)
    shift = parsed.max_prefixlen - parsed.prefixlen
    return parsed.version, shift, int(parsed.network_address) >> shift


class PeerTable:
    """Ingress or egress entries of network policies."""

    __slots__ = ("_anywhere", "_lengths", "_networks")

    def __init__(self, entries: list[tuple[str, Ports, Candidate]]) -> None:
        self._anywhere = _Ported()
        self._networks: dict[tuple[int, int, int], _Ported] = {}
        parsed: dict[str, tuple[int, int, int]] = {}
        for network, ports, candidate in entries:
            if not network:
                self._anywhere.add(ports, candidate)
                continue
            where = parsed.get(network)
            if where is None:
                where = parsed[network] = _masked(network)
            self._networks.setdefault(where, _Ported()).add(ports, candidate)
        self._lengths = {
            version: tuple(sorted({shift for other, shift, _ in self._networks if other == version}))
            for version in (4, 6)
        }

    def lookup(self, address: str, port: int, asked: tuple[str, ...]) -> list[Candidate]:
        """The rules on `address` and `port` for a socket that answers to the words `asked`."""
        found = self._anywhere.find(port, asked)
        where = address_number(address)
        if where is not None:
            version, number = where
            for shift in self._lengths[version]:
                rules = self._networks.get((version, shift, number >> shift))
                if rules is not None:
                    found += rules.find(port, asked)
        return found
