# SPDX-License-Identifier: Apache-2.0
"""How many events left the rings and are not counted for good: what a kill of this process costs, told by the next agent.

Frames that are handed over in memory are lost with the process. So their events are counted in `config[IN_HAND]`, which outlives it,
strictly before the rings' space is given back, until the processor has committed them. Neighbours: `agent` (calls `handed`), `pins`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sensors.source import Batch


class InHand:
    """`end()`: records handed over so far, in all. `write(events)`: leave word of so many. `events`: in hand now."""

    def __init__(self, end: Callable[[], int], write: Callable[[int], None]) -> None:
        self.events = 0
        self._end, self._write = end, write
        self._seen = end()
        self._batches: deque[tuple[int, int]] = deque()

    def handed(self, batch: Batch) -> None:
        """`batch` was published; into the log it needs no word."""
        end = self._end()
        events = sum(frame.header.events for frame in batch.frames)
        if end != self._seen:
            self._seen = end
            self._batches.append((end, events))
            self.events += events
            self._write(self.events)

    def settled(self, committed: int) -> None:
        """Records below `committed` are counted for good."""
        before = self.events
        while self._batches and self._batches[0][0] <= committed:
            self.events -= self._batches.popleft()[1]
        if self.events != before:
            self._write(self.events)
