# SPDX-License-Identifier: Apache-2.0
"""Who an address was at a time: a pod, a service or a node, from the facts that a cluster tells. Pure.

Addresses are used again: whoever has one has it from when it was made until it was seen to be over. Where two pods claim one, it
was the earlier one's until that one ended, for pods are made before they have addresses; of services and nodes it was the later one's, for
the end of the earlier may have been seen late. An address
that nobody is known to have had at that time is nobody's: a name that may be another's is worse than none.
Neighbours: `schemas.cluster` (the facts), `policy.cluster_facts` (the same for containers).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from math import inf
from typing import Final

import msgspec

from schemas.cluster import EndpointsFact, Fact, NamespaceFact, NodeFact, PodFact, PolicyFact, ServiceFact, decode
from schemas.identity import Owner

Holder = PodFact | ServiceFact | NodeFact
_WORDS: Final = {PodFact: "pod", ServiceFact: "svc", NodeFact: "node"}


class ClusterPeer(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: `pod/NAME`, `svc/NAME` or `node/NAME`. `owner`: of a pod. `services`: names of the services of its namespace that it
    stood behind when this was asked. `since`, `until`: Unix seconds in which the address was its own; `until` inf: it still is."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    owner: Owner = Owner()
    services: tuple[str, ...] = ()
    since: float = 0.0
    until: float = inf


class ClusterPeers:
    """`fact` takes what `cluster.v1` carries, `peer` answers. Whose fact is gone is not known any more. `len`: addresses that are known."""

    def __init__(self) -> None:
        self._facts: dict[bytes, Fact] = {}
        self._held: dict[str, dict[bytes, Fact]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def fact(self, key: bytes, value: bytes | None) -> None:
        """One record of `cluster.v1`. Raises DecodeError."""
        self.put(key, None if value is None else decode(value))

    def put(self, key: bytes, fact: Fact | None) -> None:
        """The same, decoded."""
        before = self._facts.pop(key, None)
        for address in () if before is None else _addresses(before):
            held = self._held[address]
            del held[key]
            if not held:
                del self._held[address]
        if fact is None or not (addresses := _addresses(fact)):
            return
        self._facts[key] = fact
        for address in addresses:
            self._held.setdefault(address, {})[key] = fact

    def holder(self, address: str, at: float | None = None) -> Holder | None:
        """Whose `address` was at `at`, Unix seconds (None: now, and whoever has it last when nobody does); None: not known."""
        held = self._held.get(_normal(address), {})
        had = [one for one in held.values() if isinstance(one, Holder)]
        if at is None:
            return max(had, key=lambda fact: (_until(fact), -fact.started), default=None)
        found = [one for one in had if one.started <= at < _until(one)]
        if len(found) > 1 and any(one.ended for one in found) and not any(isinstance(one, PodFact) for one in found):
            return max(found, key=_started)
        return min(found, key=_started, default=None)

    def peer(self, address: str, at: float | None = None) -> ClusterPeer | None:
        """What is told of the holder, or of whoever stands behind a service with `address` outside the cluster."""
        held = self._held.get(_normal(address))
        if not held:
            return None
        one = self.holder(address, at)
        if one is None:
            return None if any(isinstance(fact, Holder) for fact in held.values()) else self._behind(held)
        if not isinstance(one, PodFact):
            where = "" if isinstance(one, NodeFact) else one.namespace
            return ClusterPeer(
                name=f"{_WORDS[type(one)]}/{one.name}", namespace=where, labels=one.labels, since=one.started, until=_until(one)
            )  # fmt: skip
        behind = {
            fact.service for fact in held.values() if isinstance(fact, EndpointsFact) and fact.namespace == one.namespace
        }  # fmt: skip
        return ClusterPeer(
            name=f"pod/{one.name}", namespace=one.namespace, labels=one.labels, owner=one.owner,
            services=tuple(sorted(behind - {""})) if not one.ended else (), since=one.started, until=_until(one),
        )  # fmt: skip

    def _behind(self, held: dict[bytes, Fact]) -> ClusterPeer | None:
        """An address outside the cluster that a service was given: the service, when it is one alone."""
        services = {
            (one.namespace, one.service) for one in held.values() if isinstance(one, EndpointsFact) and one.service
        }
        if len(services) != 1:
            return None
        namespace, name = services.pop()
        known = self._facts.get(f"service/{namespace}/{name}".encode())
        return ClusterPeer(
            name=f"svc/{name}", namespace=namespace, labels=known.labels if isinstance(known, ServiceFact) else {}
        )


def _addresses(fact: Fact) -> tuple[str, ...]:
    return (
        () if isinstance(fact, NamespaceFact | PolicyFact) else tuple({_normal(address) for address in fact.addresses})
    )


def _until(fact: Holder) -> float:
    return fact.ended or inf


def _started(fact: Holder) -> float:
    return fact.started


@lru_cache(4096)
def _normal(address: str) -> str:
    """One spelling of an address; an IPv4 address that a socket of IPv6 speaks to is that address."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)
