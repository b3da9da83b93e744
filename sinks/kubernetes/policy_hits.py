# SPDX-License-Identifier: Apache-2.0
"""Alerts counted per policy of the cluster, and what of them is an Event: many blocked operations in one window; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec

from schemas.alerted_policy import decode, named
from sinks.kubernetes.policy_status import Hits


class BlockStorm(msgspec.Struct):
    """Blocked operations of one policy in one window. `where`: pod or node -> how many; `example`: one of them in words."""

    blocked: int = 0
    where: Counter[str] = msgspec.field(default_factory=Counter)
    example: str = ""

    @property
    def sentence(self) -> str:
        most = ", ".join(f"{name} ({many})" for name, many in self.where.most_common(3))
        more = f" and {len(self.where) - 3} more" if len(self.where) > 3 else ""
        return f"blocked {self.blocked} operations, of {most}{more}; one of them: {self.example}"


class AlertCounts:
    """`take` each alert; `hits` by the key of the policy. `storms` hands out the window that is over and begins the next."""

    def __init__(self) -> None:
        self.hits: dict[str, Hits] = {}
        self._storms: dict[str, BlockStorm] = {}
        self._named: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def restart(self, hits: dict[str, Hits]) -> None:
        """Count on from `hits`; the window begins anew."""
        self.hits, self._storms = hits, {}

    def know(self, keys: Collection[str]) -> None:
        """The policies that are objects of the cluster; others are not counted."""
        self._named = named(keys)
        for gone in self.hits.keys() - set(keys):
            del self.hits[gone]

    def take(self, value: bytes) -> str:
        """Count one alert; the key of its policy, "" when it is of none that is known. Raises DecodeError."""
        one = decode(value)
        key = one.whose(self._named)
        if not key:
            return ""
        mine = self.hits.setdefault(key, Hits())
        if one.silence:
            mine.suppressed += one.Suppressed
            return key
        many = one.Count + one.Suppressed
        mine.last = max(mine.last, one.UpdatedTime)
        if one.beside:
            mine.shadow += many
            return key
        if one.Action != "Block":
            mine.audited += many
            return key
        mine.blocked += many
        storm = self._storms.setdefault(key, BlockStorm())
        storm.blocked += many
        storm.where[one.PodName or one.HostName or "unknown"] += many
        if not storm.example:
            # Without arguments: passwords are among them, and Events are read by more people than alerts.
            what = one.Resource.partition(" ")[0] if one.Operation == "Process" else one.Resource
            storm.example = f"{one.ProcessName} {one.Operation} {what}"[:512]
        return key

    def storms(self, least: int) -> dict[str, BlockStorm]:
        """Windows of at least so many blocked operations."""
        over, self._storms = self._storms, {}
        return {key: one for key, one in over.items() if one.blocked >= least}
