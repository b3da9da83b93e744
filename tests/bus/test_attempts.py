# SPDX-License-Identifier: Apache-2.0
"""Tries and back-off: the bound doubles, a far side is not met sooner than it asks, a stop leaves who does not get on."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.attempts import Attempts, Remainder, Stopped
from bus.backoff import Backoff
from schemas.errors import Permanent, Refused, Unavailable

QUICK = Backoff(first_seconds=0.001, max_seconds=0.002)


def test_the_bound_doubles_up_to_the_longest_and_never_undercuts_what_was_asked() -> None:
    backoff = Backoff(first_seconds=0.5, max_seconds=3.0)
    assert [backoff.delay(attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.delay(10**6) == 3.0
    assert backoff.delay(2, 0.25) == 0.5
    assert backoff.delay(0, 0.0, 7.0) == 7.0


async def test_each_item_ends_done_or_buried_with_its_tries() -> None:
    done: list[int] = []
    buried: dict[int, int] = {}
    late = {2: 2, 5: 1}

    async def action(part: list[int]) -> Remainder | None:
        if 7 in part:
            raise Permanent("7 never")
        again = [index for index, item in enumerate(part) if late.get(item, 0) > 0]
        for index in again:
            late[part[index]] -= 1
        refused = [(index, Refused("no")) for index, item in enumerate(part) if item == 3]
        done.extend(item for index, item in enumerate(part) if index not in again and item != 3)
        return Remainder(again=again, refused=refused)

    async def bury(given_up: list[tuple[int, Exception, int]]) -> None:
        buried.update({item: attempts for item, _, attempts in given_up})

    attempts = Attempts("test", QUICK, 1.0)
    await attempts.work(range(8), action, bury)
    assert sorted([*done, *buried]) == list(range(8))
    assert buried == {3: 1, 7: 1}
    assert (attempts.stats.failure, attempts.stats.retries) == ("", 3)


@pytest.mark.parametrize("asked", [None, 600.0])
async def test_a_stop_leaves_a_far_side_that_stays_away(asked: float | None) -> None:
    attempts = Attempts("test", QUICK, 0.2)
    tries = 0

    async def action() -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("away", asked)

    task = asyncio.create_task(attempts.insist(action))
    async with asyncio.timeout(60):
        while not tries:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0)
    attempts.stop()
    began = time.monotonic()
    with pytest.raises(Stopped):
        await asyncio.wait_for(task, 60)
    if asked:
        assert tries == 1
    else:
        assert time.monotonic() - began >= 0.15


async def test_a_call_under_way_at_a_stop_has_the_time_of_a_stop() -> None:
    attempts = Attempts("test", QUICK, 0.05)

    async def hang() -> None:
        async with attempts.limit(3600):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    attempts.stop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 60)
