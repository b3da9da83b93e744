# SPDX-License-Identifier: Apache-2.0
"""Polling gives the first true answer, and says what it waited for when the deadline has passed."""

import itertools

import pytest
from waiting import eventually, until


async def test_the_first_true_answer_is_given() -> None:
    counted = itertools.count()
    assert eventually(lambda: next(counted) if next(counted) else 0)
    assert await until(lambda: "yes") == "yes"

    async def asked() -> int:
        return next(counted)

    assert await until(asked)


async def test_a_deadline_names_the_condition_and_the_last_answer() -> None:
    received: list[str] = []
    with pytest.raises(AssertionError, match=r"within 0 s: .*lambda: received.*last answer was \[\]"):
        eventually(lambda: received, 0)
    with pytest.raises(AssertionError, match=r"within 0 s: dockerd is up; the last answer was None"):
        await until(lambda: None, 0, "dockerd is up")
