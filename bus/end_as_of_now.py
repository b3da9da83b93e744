# SPDX-License-Identifier: Apache-2.0
"""Whether a reader has come to where topics ended when it began: what a verb asks that lists all there is, and then ends.

A `take` that brings nothing says nothing of the end: a broker may need longer for its first answer than the reader waits.
Neighbours: `contract`; `follow` (`opened`), for compacted topics that are followed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bus.contract import Bus, Partition
from schemas.errors import Unavailable
from schemas.topics import Topic

PATIENCE_SECONDS: Final = 30.0
"""Without a record for so long nothing more comes: a broker that is away is an error of `take` sooner."""


class EndAsOfNow:
    """`ends`: offset after the last record of each partition. See `of`."""

    def __init__(self, ends: Mapping[Partition, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._ends = dict(ends)
        self._clock = clock
        self._at = -1
        self._since = clock()

    @classmethod
    async def of(cls, bus: Bus, topics: Sequence[Topic], clock: Callable[[], float] = time.monotonic) -> EndAsOfNow:
        """The end of `topics` as of now. Raises what the bus raises."""
        return cls(
            {(topic.name, number): end for topic in topics for number, end in (await bus.end(topic)).items()}, clock
        )

    def reached(self, position: Mapping[Partition, int]) -> bool:
        """Whether a reader at `position` has had everything up to the end. `Unavailable` when it has not and nothing came for
        `PATIENCE_SECONDS`: what it has then is not all."""
        left = [place for place, end in self._ends.items() if position.get(place, 0) < end]
        if not left:
            return True
        at = sum(position.get(place, 0) for place in self._ends)
        now = self._clock()
        if at != self._at:
            self._at, self._since = at, now
        elif now - self._since >= PATIENCE_SECONDS:
            topic, number = left[0]
            more = f" and of {len(left) - 1} other partitions" if len(left) > 1 else ""
            raise Unavailable(
                f"expected the records of `{topic}` up to offset {self._ends[left[0]]} of partition {number}{more}, got those up to "
                f"{position.get(left[0], 0)} and nothing for {PATIENCE_SECONDS:g} s: that is not all there is; "
                "try again, `hauberk doctor` says what is the matter with the bus"
            )
        return False
