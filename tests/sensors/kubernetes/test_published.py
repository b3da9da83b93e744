# SPDX-License-Identifier: Apache-2.0
"""What is on its way to a compacted topic: one record that the bus refuses holds up no other."""

from __future__ import annotations

import asyncio

from bus.memory import MemoryBus
from schemas.errors import Refused
from schemas.topics import POLICIES
from sensors.kubernetes.published import Published

LIMIT = 1000


async def test_a_record_that_the_bus_never_takes_holds_up_no_other(until, caplog):
    """Whoever may make one huge policy must not keep everybody's from the nodes."""
    bus = MemoryBus()
    take = bus.publish

    async def publish(topic, records):
        if any(len(record.value or b"") > LIMIT for record in records):
            raise Refused("too large")
        await take(topic, records)

    bus.publish = publish
    published = Published(bus, POLICIES)
    await published.load()
    published.put(b"large", b"small at first")
    running = asyncio.create_task(published.run())
    await until(lambda: not published.waiting)
    published.put(b"a", b"1")
    published.put(b"large", b"x" * (LIMIT + 1))
    published.put(b"b", b"1")
    await until(lambda: not published.waiting and published.published == 3)
    assert {key: record.value for key, record in (await bus.latest(POLICIES)).items()} == {
        b"large": b"small at first", b"a": b"1", b"b": b"1",
    }  # fmt: skip
    assert published.refused == 1
    assert "`large` is not published" in caplog.text
    # It is told again when it is asked for again, and goes when it is small enough or deleted.
    published.put(b"large", b"x" * (LIMIT + 2))
    await until(lambda: published.refused == 2)
    published.put(b"large", None)
    await until(lambda: not published.waiting and published.removed == 1)
    assert set(await bus.latest(POLICIES)) == {b"a", b"b"}
    assert not running.done()
    running.cancel()
    await asyncio.wait((running,))
