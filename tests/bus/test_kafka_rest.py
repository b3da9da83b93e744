# SPDX-License-Identifier: Apache-2.0
"""Where nothing comes little is asked, and what changes is heard at once all the same. On a real broker."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.contract import Record
from schemas.errors import Unavailable
from schemas.topics import ALERTS

pytestmark = pytest.mark.parametrize("world", ["kafka"], indirect=True)
LONG = 30.0
"""Seconds: nothing of a test waits for this by itself."""


async def test_a_look_for_life_leaves_what_is_known_of_topics(world) -> None:
    bus = await world.open()
    await bus.publish(ALERTS, [Record(b"k", b"v")])
    client = await bus.link.client()
    channel = ALERTS.named(bus.settings.prefix)
    before = bus.link.known_partitions(channel)
    assert before
    assert await client.answers()
    assert bus.link.known_partitions(channel) == before
    assert client.identity
    assert not client.changed


@pytest.mark.parametrize("group", ["g", None])
async def test_a_reader_that_waits_hears_at_once_that_brokers_are_away(world, group, until) -> None:
    bus = await world.open()
    async with bus.subscribe([ALERTS], group, "earliest") as reader:
        await until(lambda: taken(reader))
        waiting = asyncio.create_task(reader.take(1, LONG))
        await until(lambda: bool(reader._fetch))
        began = time.monotonic()
        bus.link.lost(ConnectionError("gone"))
        with pytest.raises(Unavailable, match="gone"):
            await waiting
        assert time.monotonic() - began < LONG / 10


async def taken(reader) -> bool:
    """It has its partitions."""
    await reader.take(1, 0.1)
    return bool(reader.owned)
