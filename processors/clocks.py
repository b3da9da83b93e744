# SPDX-License-Identifier: Apache-2.0
"""What time it is on each node, by its own events: the newest time since boot that was seen, and what has passed here since.

A recording has a time of its own, and a clock that is wrong, or set, is its node's own trouble. Neighbours: `processors.pipeline`
(hears), `processors.throttle` (asks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.frame import FrameHeader

_SECOND: Final = 1_000_000_000
_BOOTS: Final = 4096
"""Boots of nodes remembered; one of which nothing was heard for longest is forgotten."""


class Clocks:
    """`clock`: seconds of this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest: dict[tuple[str, str], tuple[int, float]] = {}

    def heard(self, header: FrameHeader, at: int) -> None:
        """An event of this frame happened at boot ns `at`."""
        key = (header.node, header.boot)
        if at < self.now(header):
            return
        self._latest.pop(key, None)
        self._latest[key] = (at, self._clock())
        if len(self._latest) > _BOOTS:
            del self._latest[next(iter(self._latest))]

    def knows(self, header: FrameHeader) -> bool:
        """Whether any event of this boot was heard of."""
        return (header.node, header.boot) in self._latest

    def now(self, header: FrameHeader) -> int:
        """Boot ns on the frame's node; 0 when nothing was heard of it."""
        found = self._latest.get((header.node, header.boot))
        return found[0] + int((self._clock() - found[1]) * _SECOND) if found is not None else 0

    def unix(self, header: FrameHeader) -> int:
        """The same in Unix ns, by what the frame says of the node's clock."""
        return self.now(header) + header.clock_offset_ns
