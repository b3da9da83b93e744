# SPDX-License-Identifier: Apache-2.0
"""Parts of a stage: the first that ends ends all, and what it failed of is raised."""

from __future__ import annotations

import asyncio

import pytest

from bus.side_by_side import SideBySide


async def fails(text: str) -> None:
    raise ValueError(text)


async def test_the_others_are_cancelled_and_waited_for() -> None:
    ended = []

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("goes on")

    async with SideBySide() as parts:
        parts.start(goes_on(), fails("a part"))
        with pytest.raises(ValueError, match="a part"):
            await parts.first()
    assert ended == ["goes on"]


async def test_a_part_that_fails_ends_the_wait() -> None:
    async with SideBySide() as parts:
        parts.start(fails("a part"))
        with pytest.raises(ValueError, match="a part"):
            await parts.until(asyncio.Event().wait())


async def test_what_is_waited_for_may_fail_too() -> None:
    async with SideBySide() as parts:
        parts.start(asyncio.Event().wait())
        with pytest.raises(ValueError, match="what is wanted"):
            await parts.until(fails("what is wanted"))


async def test_what_is_waited_for_ends_the_wait() -> None:
    async with SideBySide() as parts:
        parts.start(asyncio.Event().wait())
        await parts.until(asyncio.sleep(0))


async def test_a_part_that_ends_well_ends_the_wait() -> None:
    async with SideBySide() as parts:
        parts.start(asyncio.sleep(0))
        await parts.until(asyncio.Event().wait())
