# SPDX-License-Identifier: Apache-2.0
"""What nodes lost, told at once and then summed: a node that loses events in every frame must not drown its own alerts.

A loss whose container is known is told as that container's, the rest as the node's; nothing is told twice. Nothing
uncounted: what is not told yet is told with the next notice, at the latest when the stage ends. Neighbours:
`processors.pipeline` (who hears of losses), `processors.alerts` (the words).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from schemas.frame import FrameHeader
from schemas.identity import Identity

QUIET_SECONDS: Final = 10.0
"""Between two notices of one agent run about one container; by feel: soon enough for a person, slow enough for a pager."""
_RUNS: Final = 4096
"""Containers of agent runs remembered; an older one may be told sooner than after QUIET_SECONDS."""

_Key = tuple[str, str, str, str]


class Lost(NamedTuple):
    """`header`: the newest frame; `unix`: ns, 0 when no frame had a time; `owner`: whose events, None for the node's."""

    header: FrameHeader
    unix: int
    counts: list[tuple[str, int]]
    owner: Identity | None


class ReportedLosses:
    """Sums of one processor, by agent run and container. Times in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._sums: dict[_Key, tuple[Counter[str], FrameHeader, int, Identity | None]] = {}
        self._told: dict[_Key, float] = {}

    @property
    def waiting(self) -> bool:
        """Whether something is to be told."""
        return bool(self._sums)

    def add(
        self, header: FrameHeader, unix: int, counts: Iterable[tuple[str, int]], owner: Identity | None = None
    ) -> None:
        """`counts` (what, how many) of `owner`, None for the node, came to light with this frame, at `unix` ns."""
        key = (header.node, header.boot, header.run, owner.uid if owner is not None else "")
        known = self._sums.get(key)
        sums = known[0] if known is not None else Counter()
        for what, many in counts:
            sums[what] += many
        latest = header if known is None or header.number >= known[1].number else known[1]
        self._sums[key] = (sums, latest, max(unix, known[2]) if known is not None else unix, owner)

    def due(
        self, now: float, ready: Callable[[FrameHeader], bool] | None = None, everything: bool = False
    ) -> Iterator[Lost]:
        """What is to be told now. `ready`: whether the time on the frame's node is known; what has none waits for it."""
        for key in list(self._sums):
            if not everything and ready is not None and not self._sums[key][2] and not ready(self._sums[key][1]):
                continue
            if not everything and now - self._told.get(key, float("-inf")) < QUIET_SECONDS:
                continue
            sums, header, unix, owner = self._sums.pop(key)
            self._told.pop(key, None)
            self._told[key] = now
            if len(self._told) > _RUNS:
                del self._told[next(iter(self._told))]
            yield Lost(header, unix, sorted(sums.items()), owner)
