# SPDX-License-Identifier: Apache-2.0
"""Pods, services and nodes that are over: their facts stay some hours, so that addresses of connections can be told by who had them then.

A pod's fact keeps its key; a service's and a node's gets one of its own, for another may have the name by now. So does what one
had of addresses and has no more. Nothing is kept beside what is on the bus: a replica that takes over reads the same facts there.
Neighbours: `facts_watch` (who says that one is over), `policy.cluster_peers` (who reads it).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from schemas.cluster import NodeFact, PodFact, ServiceFact, decode, encode
from schemas.errors import DecodeError
from sensors.kubernetes.published import Published

Ending = PodFact | ServiceFact | NodeFact
_KINDS: Final = (b"pod/", b"service/", b"node/")


class EndedFacts:
    """`seconds`, `most`: how long, and how many at a time of all kinds together; 0 of either keeps none. `dropped`: before their
    time, because there were more."""

    def __init__(self, published: Published, seconds: float, most: int) -> None:
        self._published = published
        self._seconds = seconds
        self._most = most
        self._ended: dict[bytes, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ended

    def load(self) -> None:
        """Know those that are on the bus."""
        for key in (key for kind in _KINDS for key in self._published.keys(kind)):
            fact = self._fact(key)
            if fact is not None and fact.ended:
                self._ended[key] = fact.ended
        self._ended = dict(sorted(self._ended.items(), key=lambda item: item[1]))

    def since(self, key: bytes, now: float) -> float:
        """When the pod of `key`, which is over, was seen to be: once said it stays."""
        fact = self._fact(key)
        return fact.ended if fact is not None and fact.ended else now

    def gone(self, key: bytes, now: float) -> None:
        """The cluster has what `key` is of no more."""
        fact = self._fact(key)
        if isinstance(fact, PodFact) and self._seconds and self._most:
            self._keep(fact, fact.ended or now)
            return
        if isinstance(fact, ServiceFact | NodeFact):
            self._had(fact, fact.addresses, now)
        self._published.put(key, None)

    def told(self, fact: ServiceFact | NodeFact, now: float) -> None:
        """`fact` is about to replace what was known under its key: addresses that it does not have were another's, or its own before."""
        before = self._fact(fact.key)
        if before is None or isinstance(before, PodFact):
            return
        anew = before.started != fact.started
        lost = before.addresses if anew else tuple(one for one in before.addresses if one not in fact.addresses)
        # Whoever made it anew had deleted the one before it by then.
        self._had(before, lost, fact.started if anew and before.started < fact.started < now else now)

    def _had(self, fact: ServiceFact | NodeFact, addresses: tuple[str, ...], ended: float) -> None:
        if addresses and self._seconds and self._most:
            self._keep(msgspec.structs.replace(fact, addresses=addresses), ended)

    def _keep(self, fact: Ending, ended: float) -> None:
        kept = msgspec.structs.replace(fact, ended=ended)
        self._published.put(kept.key, encode(kept))
        self._ended[kept.key] = ended

    def sweep(self, now: float, there: Collection[str]) -> None:
        """Remove whose time is over. `there`: uids of pods that the cluster still has."""
        over = [key for key, ended in self._ended.items() if now - ended >= self._seconds]
        more = len(self._ended) - len(over) - self._most
        if more > 0:
            self.dropped += more
            left = self._ended.keys() - set(over)
            over += sorted(left, key=lambda key: (self._ended[key], key))[:more]
        for key in over:
            del self._ended[key]
            if not key.startswith(b"pod/") or key.removeprefix(b"pod/").decode("utf-8", "replace") not in there:
                self._published.put(key, None)

    def _fact(self, key: bytes) -> Ending | None:
        value = self._published.value(key)
        try:
            fact = None if value is None else decode(value)
        except DecodeError:
            return None
        return fact if isinstance(fact, Ending) else None
