# SPDX-License-Identifier: Apache-2.0
"""Pods that are over: their facts stay some hours, so that addresses of connections can be told by who had them then.

Nothing is kept beside what is on the bus: a replica that takes over reads the same facts there. Neighbours: `facts_watch` (who
says that a pod is over), `policy.cluster_peers` (who reads it).
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from schemas.cluster import PodFact, decode, encode
from schemas.errors import DecodeError
from sensors.kubernetes.published import Published

log = logging.getLogger(__name__)


class EndedPods:
    """`seconds`, `most`: how long, and how many at a time; 0 of either keeps none. `dropped`: before their time, because there were
    more."""

    def __init__(self, published: Published, seconds: float, most: int) -> None:
        self._published = published
        self._seconds = seconds
        self._most = most
        self._ended: dict[bytes, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._ended)

    def load(self) -> None:
        """Know those that are on the bus."""
        for key in self._published.keys(b"pod/"):
            fact = self._fact(key)
            if fact is not None and fact.ended:
                self._ended[key] = fact.ended
        self._ended = dict(sorted(self._ended.items(), key=lambda item: item[1]))

    def since(self, key: bytes, now: float) -> float:
        """When the pod of `key`, which is over, was seen to be: once said it stays."""
        fact = self._fact(key)
        return fact.ended if fact is not None and fact.ended else now

    def gone(self, key: bytes, now: float) -> None:
        """The cluster has the pod no more."""
        fact = self._fact(key)
        if fact is None or not (self._seconds and self._most):
            self._published.put(key, None)
            return
        ended = fact.ended or now
        self._published.put(key, encode(msgspec.structs.replace(fact, ended=ended)))
        self._ended[key] = ended

    def sweep(self, now: float, there: Collection[str]) -> None:
        """Remove whose time is over. `there`: uids of pods that the cluster still has."""
        over = [key for key, ended in self._ended.items() if now - ended >= self._seconds]
        more = len(self._ended) - len(over) - self._most
        if more > 0:
            self.dropped += more
            over += [key for key in self._ended if key not in set(over)][:more]
        for key in over:
            del self._ended[key]
            if key.removeprefix(b"pod/").decode("utf-8", "replace") not in there:
                self._published.put(key, None)

    def _fact(self, key: bytes) -> PodFact | None:
        value = self._published.value(key)
        try:
            fact = None if value is None else decode(value)
        except DecodeError:
            return None
        return fact if isinstance(fact, PodFact) else None
