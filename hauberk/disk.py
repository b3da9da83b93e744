# SPDX-License-Identifier: Apache-2.0
"""Tells that the disk of the bus is full, and what was shed for it: an alert, on the room that was kept for alerts."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from bus.rest import until_look
from schemas.errors import Temporary
from schemas.topics import ALERTS

if TYPE_CHECKING:
    from bus.contract import Bus

_LOOK: Final = 5.0
"""Seconds between looks at the bus's counts."""
_QUIET: Final = 60.0
"""Seconds between two alerts: a disk stays full for hours."""


async def report(bus: Bus, look: float = _LOOK, quiet: float = _QUIET) -> None:
    """Until cancelled. A bus without a disk has nothing to tell."""
    from processors.notices import notice

    clock = asyncio.get_running_loop().time
    before: tuple[int, dict[str, int]] = (0, {})
    told = -quiet
    while True:
        await asyncio.sleep(until_look(look))
        stats = getattr(bus, "stats", None)
        now: tuple[int, dict[str, int]] = (getattr(stats, "full", 0), getattr(stats, "shed", {}))
        if now == before or clock() - told < quiet:
            continue
        shed = {
            topic: many - before[1].get(topic, 0) for topic, many in now[1].items() if many > before[1].get(topic, 0)
        }
        words = ", ".join(f"{many / (1 << 20):.1f} MiB of {topic}" for topic, many in shed.items()) or "nothing yet"
        message = (
            f"the disk of the bus is full or nearly so ({getattr(stats, 'disk_free_bytes', 0) / (1 << 20):.1f} MiB free): the oldest records were "
            f"dropped to go on ({words}); free some space, or give `state` a larger disk"
        )
        data = {"full": str(now[0] - before[0])} | {f"shed.{topic}": str(many) for topic, many in shed.items()}
        try:
            await bus.publish(ALERTS, [notice(os.uname().nodename, "DiskFull", message, data, severity=9)])
        except Temporary:
            continue
        before, told = now, clock()
