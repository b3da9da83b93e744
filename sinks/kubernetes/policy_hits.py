# SPDX-License-Identifier: Apache-2.0
"""Alerts counted per policy of the cluster, and what of them is an Event: many blocked operations in one window; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Final

import msgspec

from bus.contract import Delivery
from schemas.alerted_policy import decode, named
from sinks.kubernetes.policy_status import Hits

_COUNTED: Final = re.compile(r"(\d{1,6})=(\d{1,19})@(\d{1,19})", re.ASCII)


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


CountedUpTo = dict[int, tuple[int, int]]
"""Partition -> offset of the first alert that is not counted, and the time of the youngest that is, Unix ms."""


def counted_up_to(text: str) -> CountedUpTo:
    """What `Hits.counted` says; nothing for what is no such text."""
    found: CountedUpTo = {}
    for word in text.split():
        parts = _COUNTED.fullmatch(word)
        if parts is None:
            return {}
        found[int(parts[1])] = int(parts[2]), int(parts[3])
    return found


class AlertCounts:
    """`take` each alert as often as it comes; `hits` by the key of the policy. `storms` hands out the window that is over and begins the next."""

    def __init__(self) -> None:
        self.hits: dict[str, Hits] = {}
        self._counted: dict[str, CountedUpTo] = {}
        self._storms: dict[str, BlockStorm] = {}
        self._named: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def restart(self, hits: dict[str, Hits]) -> None:
        """Count on from `hits`, whose alerts may come again; the window begins anew."""
        self.hits, self._storms = hits, {}
        self._counted = {key: counted_up_to(one.counted) for key, one in hits.items()}

    def know(self, keys: Collection[str]) -> None:
        """The policies that are objects of the cluster; others are not counted."""
        self._named = named(keys)
        for gone in self.hits.keys() - set(keys):
            del self.hits[gone]
            self._counted.pop(gone, None)

    def forget(self, key: str) -> None:
        """The policy of this key was made anew: it begins at none."""
        self.hits.pop(key, None)
        self._counted.pop(key, None)

    def take(self, delivery: Delivery) -> str:
        """Count one alert; the key of its policy, "" when it is of none that is known, or when it was counted already. Raises DecodeError."""
        record = delivery.record
        one = decode(record.value or b"")
        key = one.whose(self._named)
        if not key:
            return ""
        mine = self.hits.setdefault(key, Hits())
        up_to = self._counted.setdefault(key, {})
        offset, newest = up_to.get(delivery.partition, (0, 0))
        # Both: a topic that was made anew begins at offset 0 again, with younger records.
        if delivery.offset < offset and record.timestamp_ms <= newest:
            return ""
        up_to[delivery.partition] = delivery.offset + 1, max(newest, record.timestamp_ms)
        mine.counted = " ".join(f"{part}={next_}@{at}" for part, (next_, at) in sorted(up_to.items()))
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
