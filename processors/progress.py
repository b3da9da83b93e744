# SPDX-License-Identifier: Apache-2.0
"""Publishes how far this processor has read the frames of each node, so that nodes of other processes can follow.

Offsets do not say it: they are committed a second later, and not at all while a frame has rows that wait for an identity.
Nothing depends on a single record, so a bus that is away costs only that one. Neighbours: `pipeline` (who reads),
`sensors.node.following` (who follows).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from bus.contract import Bus, Record
from schemas.errors import HauberkError
from schemas.progress import PERIOD, Progress, encode
from schemas.topics import PROGRESS

log = logging.getLogger(__name__)

Numbers = Mapping[tuple[str, str, str], int]
"""(node, boot, run) -> number of the newest frame read, the run heard of last at the end."""


class Reporting:
    """`run` until cancelled. `numbers()`: how far everything is read."""

    def __init__(self, bus: Bus, group: str, numbers: Callable[[], Numbers]) -> None:
        self._bus, self._group, self._numbers = bus, group, numbers
        self._said: dict[str, Progress] = {}

    async def run(self) -> None:
        """Publish what has moved, every PERIOD seconds."""
        while True:
            await asyncio.sleep(PERIOD)
            await self.report()

    async def report(self) -> None:
        """Publish what has moved since it was published last."""
        moved = self.moved()
        if not moved:
            return
        try:
            await self._bus.publish(PROGRESS, [Record(one.key, encode(one)) for one in moved])
        except HauberkError as error:
            log.debug("progress was not published: %s", error)
            return
        for one in moved:
            self._said[one.node] = one

    def moved(self) -> list[Progress]:
        """Of each node the latest run, where something was read."""
        newest = {
            node: Progress(node=node, group=self._group, boot=boot, run=run, number=number)
            for (node, boot, run), number in self._numbers().items()
        }
        self._said = {node: one for node, one in self._said.items() if node in newest}
        return [one for node, one in newest.items() if self._said.get(node) != one]
