# SPDX-License-Identifier: Apache-2.0
"""Publishes how far this processor has read the frames of each node, and which behaviours may be alerts, for nodes elsewhere.

Offsets do not say it: they are committed a second later, and not at all while a frame has rows that wait for an identity.
Nothing depends on a single record, so a bus that is away costs only that one. Neighbours: `pipeline` (who reads),
`sensors.node.following` (who follows).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import msgspec

from bus.contract import Bus, Record
from schemas.errors import HauberkError
from schemas.frame import FrameHeader
from schemas.progress import MOST_CALLS, PERIOD, Progress, encode
from schemas.topics import PROGRESS

log = logging.getLogger(__name__)

_PENDING: Final = 1 << 14
"""Behaviours of one node that wait to be said; what is over is named again within a minute."""

Numbers = Mapping[tuple[str, str, str], int]
"""(node, boot, run) -> number of the newest frame read, the run heard of last at the end."""


class Reporting:
    """`run` until cancelled. `numbers()`: how far everything is read."""

    def __init__(self, bus: Bus, group: str, numbers: Callable[[], Numbers]) -> None:
        self._bus, self._group, self._numbers = bus, group, numbers
        self._said: dict[str, Progress] = {}
        self._calls: dict[str, dict[int, None]] = {}

    def due(self, header: FrameHeader, rows: list[int], counted: list[int] | None) -> None:
        """See `pipeline.Due`: what may be alerts is said with the next record of its node."""
        del counted  # Who reads frames elsewhere is to have each event.
        if rows:
            pending = self._calls.setdefault(header.node, {})
            pending.update(dict.fromkeys(rows[: _PENDING - len(pending)]))

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
            self._said[one.node] = msgspec.structs.replace(one, calls=())
            pending = self._calls.get(one.node, {})
            for ident in one.calls:
                pending.pop(ident, None)

    def moved(self) -> list[Progress]:
        """Of each node the latest run, where something was read or may be an alert."""
        newest = {
            node: Progress(node=node, group=self._group, boot=boot, run=run, number=number)
            for (node, boot, run), number in self._numbers().items()
        }
        self._said = {node: one for node, one in self._said.items() if node in newest}
        self._calls = {node: calls for node, calls in self._calls.items() if calls and node in newest}
        moved = []
        for node, one in newest.items():
            calls = tuple(islice(self._calls.get(node, ()), MOST_CALLS))
            if calls or self._said.get(node) != one:
                moved.append(msgspec.structs.replace(one, calls=calls))
        return moved
