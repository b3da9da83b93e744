# SPDX-License-Identifier: Apache-2.0
"""What is known of one thing that a workload used: how often, when, by which instances. Sums that no order or batching changes."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Final, Self

SLOT: Final = 600 * 1_000_000_000
"""Nanoseconds. What a container does within ten minutes is one look at it: a start is one look, a day is many."""
NEVER: Final = 1 << 63

Birth = tuple[int, str]
"""When something was seen first (Unix ns), and by which instance (its uid)."""
Look = tuple[str, int]
"""An instance and ten minutes of its life: what is done in one look counts once."""

NOBODY: Final[frozenset[str]] = frozenset()


class Evidence:
    """Adds up. `first`, by the instance `uid`, and `last`: Unix ns. `instances`: who did it, by uid. `sources`: executables that did it, ""
    for one that is not known. `write`: something changed it. `foreign`: somebody did it who is not known to own the file. `others`: below
    /proc of another process."""

    __slots__ = ("count", "first", "foreign", "instances", "last", "others", "sources", "uid", "write")

    def __init__(
        self, count: int = 0, first: int = NEVER, last: int = 0, uid: str = "", instances: frozenset[str] = NOBODY,
        sources: frozenset[str] = NOBODY,
    ) -> None:  # fmt: skip
        self.count = count
        self.first = first
        self.last = last
        self.uid = uid
        self.instances: Set[str] = instances
        self.sources = sources
        self.write = self.foreign = self.others = False

    def add(self, count: int, first: int, last: int, uid: str, source: str) -> None:
        """`count` events of the instance `uid` by the executable `source`, between `first` and `last`."""
        self.merge(Evidence(count, first, last, uid, just(uid), just(source)))

    def merge(self, other: Evidence) -> None:
        """Everything of `other` too."""
        self.count += other.count
        if other.first < self.first or (other.first == self.first and other.uid < self.uid):
            self.first = other.first
            self.uid = other.uid
        if other.last > self.last:
            self.last = other.last
        mine, its = self.instances, other.instances
        if its is not mine and not its <= mine:
            # A set is this one's own and grows; what is frozen may be another's too.
            if isinstance(mine, set):
                mine |= its
            elif mine:
                self.instances = {*mine, *its}
            else:
                self.instances = its if isinstance(its, frozenset) else {*its}
        if other.sources is not self.sources and not other.sources <= self.sources:
            self.sources = self.sources | other.sources if self.sources else other.sources
        self.write |= other.write
        self.foreign |= other.foreign
        self.others |= other.others

    @classmethod
    def of(cls, parts: Iterable[Evidence]) -> Self:
        """The sum of `parts`."""
        made = cls()
        count = last = 0
        first, uid = NEVER, ""
        whose: list[Set[str]] = [NOBODY]
        by = [NOBODY]
        write = foreign = others = False
        for part in parts:
            count += part.count
            at = part.first
            if at <= first and (at < first or part.uid < uid):
                first, uid = at, part.uid
            if part.last > last:
                last = part.last
            if part.instances is not whose[-1]:
                whose.append(part.instances)
            if part.sources is not by[-1]:
                by.append(part.sources)
            write |= part.write
            foreign |= part.foreign
            others |= part.others
        made.count, made.first, made.last, made.uid = count, first, last, uid
        made.write, made.foreign, made.others = write, foreign, others
        # What has one set of them has that one itself.
        made.instances = whose[1] if len(whose) == 2 and isinstance(whose[1], frozenset) else NOBODY.union(*whose)
        made.sources = by[1] if len(by) == 2 else NOBODY.union(*by)
        return made

    @property
    def birth(self) -> Birth:
        """When and by whom it was seen first."""
        return self.first, self.uid


def look(birth: Birth) -> Look:
    """In which look."""
    first, uid = birth
    return uid, first // SLOT


@lru_cache(maxsize=4096)
def just(name: str) -> frozenset[str]:
    """One source or instance, the same object each time: most of what is merged has the same."""
    return frozenset((name,))
