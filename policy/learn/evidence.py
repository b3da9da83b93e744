# SPDX-License-Identifier: Apache-2.0
"""What is known of one thing that a workload used: how often, when, in which looks, by whom. Sums that no order or batching changes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Self

Look = tuple[str, int]
"""An instance (its uid) and ten minutes of its life (`sightings.SLOT`): what is done in one look counts once."""
Birth = tuple[int, Look]
"""When (Unix ns), and in which look."""


class Evidence:
    """Adds up. `looks`: each with the time (Unix ns) of the first event in it. `write`: something changed it. `foreign`: somebody did it
    who is not known to own the file. `sources`: executables that did it, "" for one that is not known. `others`: below /proc of another
    process."""

    __slots__ = ("count", "first", "foreign", "last", "looks", "others", "sources", "write")

    def __init__(self) -> None:
        self.count = self.last = 0
        self.first = 1 << 63
        self.looks: dict[Look, int] = {}
        self.sources: frozenset[str] = frozenset()
        self.write = self.foreign = self.others = False

    def add(self, count: int, first: int, last: int, look: Look, source: str) -> None:
        """`count` events between `first` and `last`, of which the first lies in `look`."""
        self.count += count
        if first < self.first:
            self.first = first
        if last > self.last:
            self.last = last
        known = self.looks.get(look)
        if known is None or first < known:
            self.looks[look] = first
        if source not in self.sources:
            self.sources = self.sources | just(source) if self.sources else just(source)

    def merge(self, other: Evidence) -> None:
        """Everything of `other` too."""
        self.count += other.count
        if other.first < self.first:
            self.first = other.first
        if other.last > self.last:
            self.last = other.last
        if self.looks:
            looks = self.looks
            for look, first in other.looks.items():
                known = looks.get(look)
                if known is None or first < known:
                    looks[look] = first
        else:
            self.looks = dict(other.looks)
        if other.sources is not self.sources and not other.sources <= self.sources:
            self.sources = self.sources | other.sources if self.sources else other.sources
        self.write |= other.write
        self.foreign |= other.foreign
        self.others |= other.others

    @classmethod
    def of(cls, parts: Iterable[Evidence]) -> Self:
        """The sum of `parts`."""
        made = cls()
        for part in parts:
            made.merge(part)
        return made

    @property
    def instances(self) -> frozenset[str]:
        """Who did it, by uid."""
        return frozenset(uid for uid, _ in self.looks)

    @property
    def birth(self) -> Birth:
        """When and in which look it was seen first."""
        looks = self.looks
        if len(looks) == 1:
            for look, first in looks.items():
                return first, look
        return min((first, look) for look, first in looks.items())


@lru_cache(maxsize=4096)
def just(source: str) -> frozenset[str]:
    """One source, the same object each time: most of what is merged has the same."""
    return frozenset((source,))
