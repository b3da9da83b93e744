# SPDX-License-Identifier: Apache-2.0
"""What nodes lost, told at once and then summed: a node that loses events in every frame must not drown its own alerts.

Nothing uncounted: what is not told yet is told with the next notice, at the latest when the stage ends. Neighbours:
`processors.teller` (who hears of losses), `processors.alerts` (the words).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from schemas.frame import FrameHeader

QUIET_SECONDS: Final = 10.0
"""Between two notices of one agent run; by feel: soon enough for a person, slow enough for a pager."""
_RUNS: Final = 4096
"""Agent runs remembered; an older one may be told sooner than after QUIET_SECONDS."""


class Losses:
    """Sums of one processor, by agent run. Times in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str], tuple[Counter[str], FrameHeader, int]] = {}
        self._told: dict[tuple[str, str, str], float] = {}

    def add(self, header: FrameHeader, unix: int, counts: list[tuple[str, int]]) -> None:
        """`counts` (what, how many) came to light with this frame, at `unix` ns."""
        run = (header.node, header.boot, header.run)
        known = self._sums.get(run)
        sums = known[0] if known is not None else Counter()
        sums.update(dict(counts))
        latest = header if known is None or header.number >= known[1].number else known[1]
        self._sums[run] = (sums, latest, max(unix, known[2]) if known is not None else unix)

    def due(self, now: float, everything: bool = False) -> Iterator[tuple[FrameHeader, int, list[tuple[str, int]]]]:
        """(newest frame, Unix ns, sums) of each run whose notice is due."""
        for run in list(self._sums):
            if not everything and now - self._told.get(run, float("-inf")) < QUIET_SECONDS:
                continue
            sums, header, unix = self._sums.pop(run)
            self._told.pop(run, None)
            self._told[run] = now
            if len(self._told) > _RUNS:
                del self._told[next(iter(self._told))]
            yield header, unix, sorted(sums.items())
