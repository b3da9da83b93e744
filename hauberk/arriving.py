# SPDX-License-Identifier: Apache-2.0
"""Waits until what happened before a verb was typed has reached the summary store: frames judged, their counts stored.

Offsets say it: the processors' group has committed the frames that lay on the bus, then the store's group the summaries.
Bounded, and given up early when nobody reads. Neighbour: `verbs/summary`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from schemas.topics import EVENTS_RAW, SUMMARIES, Topic

if TYPE_CHECKING:
    from bus.contract import Bus

FRAME_SECONDS: Final = 0.3
"""A frame is published at most so long after its first event (`sensor.rings`)."""
STANDS_SECONDS: Final = 3.0
"""No offset moved for so long: nobody reads. A processor publishes the counts of a second within two."""
LOOK_SECONDS: Final = 0.05


async def arrived(bus: Bus, processors: str, store: str, within: float, progress: Callable[[int], None]) -> bool:
    """Whether the groups have passed all that lay on the bus when called, within `within` seconds. `progress` is given the
    records that are still to be read. True at once where no such group has ever read."""
    try:
        async with asyncio.timeout(within):
            known = await bus.groups()
            if EVENTS_RAW.name not in known.get(processors, {}) or SUMMARIES.name not in known.get(store, {}):
                return True
            await asyncio.sleep(FRAME_SECONDS)
            return await _passed(bus, processors, EVENTS_RAW, progress) and await _passed(
                bus, store, SUMMARIES, progress
            )
    except TimeoutError:
        return False


async def _passed(bus: Bus, group: str, topic: Topic, progress: Callable[[int], None]) -> bool:
    """Whether `group` commits what `topic` holds now; False when it stands still."""
    clock = asyncio.get_running_loop().time
    target = sum((await bus.end(topic)).values())
    least, since = target, clock()
    while (left := target - (await bus.groups()).get(group, {}).get(topic.name, 0)) > 0:
        if left < least:
            least, since = left, clock()
        elif clock() - since > STANDS_SECONDS:
            return False
        progress(left)
        await asyncio.sleep(LOOK_SECONDS)
    return True
