# SPDX-License-Identifier: Apache-2.0
"""How far behind the processors are, and how much less is named for it.

A new name costs the judge some 50 us and a known one nothing, so what makes a backlog is new names. While the oldest frame that
was not read yet is older than LATE and grows older, the kernel's budget of them (`sensor.load.new_per_second`) is halved step by step; what is
over it is counted exactly and told as `unnamed` of its container. What comes later is then told in time, and the backlog is
bounded. Must never wait. Neighbours: `agent` (who calls), `following` (how far processors of
other processes are), `pins` (who writes the step), `kernel/programs/budget.c` (who obeys).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from schemas.frame import Frame, FrameHeader

LATE: Final = 1.0
"""Seconds from which the budget shrinks: an alert should not take longer than a few."""
EARLY: Final = 0.25
"""Seconds from which it grows."""
STEP_SECONDS: Final = 0.5
"""Between two steps: the effect of one is to be seen before the next."""
STEPS: Final = 6
"""At most: a sixty-fourth of what anybody may take, and from the fourth on also less of each container's share, an eighth in the end."""
_NAMED: Final = 64
"""Of `shared` in budget.c at least: a container then names one failed call a second, the tier that has least."""
_AT_MOST: Final = 1 << 14

Read = Callable[[FrameHeader], int]
"""Number of the newest frame of this header's run that was read; -1: none yet."""


def steps_of(new_per_second: int) -> int:
    """Most steps with this budget: whoever holds the processors up must not silence what a container does."""
    return min(STEPS, 3 + (new_per_second // _NAMED).bit_length() - 1)


class Backlog:
    """`published` frames, `look` now and then. `step`: how many times the budget is halved; `seconds`: age of the oldest frame
    that was not read. `spare(step)` is called when the step changes; `steps`: at most."""

    def __init__(
        self, read: Read, spare: Callable[[int], None], clock: Callable[[], float] = time.monotonic, steps: int = STEPS
    ) -> None:
        self._steps = steps
        self.step = 0
        self.seconds = 0.0
        self._read, self._spare, self._clock = read, spare, clock
        self._unread: deque[tuple[int, float]] = deque(maxlen=_AT_MOST)
        self._header: FrameHeader | None = None
        self._stepped, self._before = clock(), 0.0
        spare(0)

    def published(self, frames: Iterable[Frame]) -> None:
        """These are on the bus now."""
        now = self._clock()
        for frame in frames:
            self._header = frame.header
            self._unread.append((frame.header.number, now))

    def look(self) -> None:
        """Take note of what was read meanwhile, and step."""
        unread, now = self._unread, self._clock()
        if self._header is not None and unread:
            read = self._read(self._header)
            while unread and unread[0][0] <= read:
                unread.popleft()
        self.seconds = now - unread[0][1] if unread else 0.0
        if now - self._stepped < STEP_SECONDS:
            return
        before, self._before = self._before, self.seconds
        if self.seconds >= LATE and self.seconds >= before and self.step < self._steps:
            step = self.step + 1
        elif self.seconds <= EARLY and self.step:
            step = self.step - 1
        else:
            step = self.step
        self._stepped = now
        if step != self.step:
            self._spare(step)
            self.step = step
