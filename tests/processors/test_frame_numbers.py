# SPDX-License-Identifier: Apache-2.0
"""The frames that were read, as ranges: the same as a set of their numbers, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from processors.frame_numbers import MOST, holds, note


@given(some.lists(some.integers(0, 40), unique=True))
def test_ranges_are_a_set(numbers: list[int]) -> None:
    ranges: list[int] = []
    for number in numbers:
        note(ranges, number)
    assert [number for number in range(42) if holds(ranges, number)] == sorted(numbers)
    assert ranges == sorted(ranges)
    assert all(last + 1 < first for last, first in zip(ranges[1::2], ranges[2::2], strict=False)), "joined"


def test_a_run_full_of_holes_keeps_the_newest() -> None:
    ranges: list[int] = []
    for number in range(0, 2000, 2):
        note(ranges, number)
    assert len(ranges) == 2 * MOST
    assert holds(ranges, 1998)
    assert not holds(ranges, 0)
