# SPDX-License-Identifier: Apache-2.0
"""Frames that a processor will never read: retention deleted them first, or what lay there cannot be read. Whose they were nobody
knows, so the alert is the processor's own. One at once, then sums; what is not told yet is told when the stage ends.
Neighbours: `bus.pump` (who finds gaps), `processors.losses` (what nodes lost themselves)."""

from __future__ import annotations

import os
from typing import Final

from bus.contract import Gap, Record
from processors.notices import notice

QUIET_SECONDS: Final = 10.0
"""Between two alerts; as those of nodes."""


class MissedFrames:
    """Sums of one processor. Times in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._frames = 0
        self._newest: Gap | None = None
        self._told = float("-inf")

    @property
    def waiting(self) -> bool:
        """Whether something is to be told."""
        return self._newest is not None

    def add(self, frames: int, newest: Gap) -> None:
        """`frames` more, the last of them in `newest`. An upper bound where offsets have holes."""
        self._frames += frames
        self._newest = newest

    def due(self, now: float, *, everything: bool = False) -> list[Record]:
        """The alert that is to be told now, if there is one."""
        gap = self._newest
        if gap is None or (not everything and now - self._told < QUIET_SECONDS):
            return []
        frames, self._frames, self._newest, self._told = self._frames, 0, None, now
        message = (
            f"{frames} frames of `{gap.topic}` were lost before they were judged, the newest on partition {gap.partition}, "
            f"offsets {gap.first} to {gap.last}: {gap.why}"
        )
        data = {"frames": str(frames), "topic": gap.topic, "partition": str(gap.partition)}
        return [notice(os.uname().nodename, "FramesLost", message, data, severity=9)]
