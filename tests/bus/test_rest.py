# SPDX-License-Identifier: Apache-2.0
"""Looks of one period, and of its multiples, fall on the same moments, whenever each begins to wait."""

from __future__ import annotations

import random

import pytest

from bus.rest import until_look


@pytest.mark.parametrize("period", [0.01, 5.0, 15.0, 30.0])
def test_who_waits_for_a_look_meets_the_others_there(period: float) -> None:
    random.seed(7)
    for _ in range(2000):
        now = random.uniform(0, 1e6)
        left = until_look(period, now)
        assert period / 100 <= left <= period * 1.01
        place = (now + left) / period
        assert place == pytest.approx(round(place), abs=1e-4)


def test_a_look_of_thirty_seconds_is_one_of_five_too() -> None:
    now = 123_456.7
    assert (now + until_look(30.0, now)) % 5.0 == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("early", [0.0, 1e-9, 0.0009])
def test_who_was_woken_for_a_look_waits_for_the_next(early: float) -> None:
    assert until_look(5.0, 100.0 - early) >= 5.0
