# SPDX-License-Identifier: Apache-2.0
"""The spool of a node's process: what it reports while a bus that is elsewhere is away, and the alert that tells what was shed.

Neighbours: `bus.spool` (who does it), `single_stage` (whose node has one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.registry import elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.contract import Bus, Record
    from bus.registry import BusSettings
    from bus.spool_lines import Shed
    from bus.spool_settings import SpoolSettings


async def spooled(bus: Bus, settings: BusSettings, spool: SpoolSettings, node: str) -> Bus:
    """`bus` with a spool before it when it can be away; as it is otherwise. Closing the answer closes both."""
    if not elsewhere(settings):
        return bus
    from bus.spool import SpooledBus

    return await SpooledBus.open(bus, spool, notice=teller(node))


def teller(node: str) -> Callable[[Shed], Record]:
    """The alert `SpoolShed` of `node`."""

    def tell(shed: Shed) -> Record:
        # Imported here: a node that sheds nothing does not carry what alerts need.
        from processors.notices import notice

        if shed.reason == "damaged":
            what, mend = "cannot be read any more", "check the disk below `spool.directory`"
        else:
            what = "were shed before they could be sent"
            mend = "give `spool.max_bytes` or `spool.max_age` more room, or see why the bus was away"
        message = f"{shed.records} records of `{shed.topic}` that this node kept while the bus was away {what}: {shed.why}; {mend}"
        data = {"topic": shed.topic, "records": str(shed.records), "first": str(shed.first), "reason": shed.reason}
        return notice(node, "SpoolShed", message, data, severity=9)

    return tell
