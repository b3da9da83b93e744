# SPDX-License-Identifier: Apache-2.0
"""Which frames of a run were already counted: sorted, merged, closed ranges as a flat list `[first, last, first, last]`.

Pure. Most runs arrive in order, so most lists hold one range that grows at its end.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Literal

Fit = Literal["new", "covered", "overlaps"]


def fit(ranges: list[int], first: int, last: int) -> Fit:
    """Whether none, all or some of `first`..`last` is in `ranges`."""
    # Position of the first range that ends at or after `first`.
    at = bisect_left(ranges[1::2], first)
    if 2 * at >= len(ranges) or ranges[2 * at] > last:
        return "new"
    return "covered" if ranges[2 * at] <= first and last <= ranges[2 * at + 1] else "overlaps"


def add(ranges: list[int], first: int, last: int) -> list[int]:
    """`ranges` with `first`..`last` in it, touching ranges joined."""
    low = bisect_left(ranges[1::2], first - 1)
    high = bisect_right(ranges[0::2], last + 1)
    if low < high:
        first, last = min(first, ranges[2 * low]), max(last, ranges[2 * high - 1])
    return [*ranges[: 2 * low], first, last, *ranges[2 * high :]]
