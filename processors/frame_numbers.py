# SPDX-License-Identifier: Apache-2.0
"""Which frames of a run were read here: sorted, closed ranges as a flat list `[first, last, first, last]`. Pure.

A node sends a frame again when it had no answer, and counts must not grow by it. Nearly always one range grows at its end; a run
with more than `MOST` holes forgets the oldest, so that nobody who writes frames decides how much is kept. Neighbour: `pipeline`.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

MOST: Final = 64
"""Ranges of a run. What comes again is of the last seconds."""


def holds(ranges: list[int], number: int) -> bool:
    """Whether `number` is in one of them."""
    at = bisect_right(ranges, number)
    return at % 2 == 1 or (at > 0 and ranges[at - 1] == number)


def note(ranges: list[int], number: int) -> None:
    """Put `number` in, which they do not hold."""
    at = bisect_right(ranges, number)
    after = at > 0 and ranges[at - 1] == number - 1
    before = at < len(ranges) and ranges[at] == number + 1
    if after and before:
        del ranges[at - 1 : at + 1]
    elif after:
        ranges[at - 1] = number
    elif before:
        ranges[at] = number
    else:
        ranges[at:at] = (number, number)
        if len(ranges) > 2 * MOST:
            del ranges[:2]
