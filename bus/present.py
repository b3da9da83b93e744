# SPDX-License-Identifier: Apache-2.0
"""What a compacted topic says now, with what it says is gone: `Bus.latest` leaves tombstones out.

Whoever must tell "deleted" from "lost" needs them: a key that is neither there nor buried was lost. A tombstone is kept for
`bus.tombstone_age`. Neighbours: `contract` (the promise); the planner and the processors ask this of policies.
"""

from __future__ import annotations

from bus.contract import Bus, Record
from schemas.topics import Topic


async def present(bus: Bus, topic: Topic) -> dict[bytes, Record]:
    """Key -> its newest record, `value` None for a tombstone. Raises what the bus raises."""
    ends = await bus.end(topic)
    found: dict[bytes, Record] = {}
    async with bus.subscribe((topic,), None, "earliest") as subscription:
        place = subscription.position
        while any(place.get((topic.name, part), 0) < end for part, end in ends.items()):
            for delivery in await subscription.take(1000, 0.2):
                found[delivery.record.key] = delivery.record
            place = subscription.position
    return found
