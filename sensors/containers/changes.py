# SPDX-License-Identifier: Apache-2.0
"""Identities on their way to the bus: of each the newest, in the order of their changes, and none lost while the bus is away.

Neighbours: `sensors.containers.inventory` (who puts them here), `schemas.identity`.
"""

from __future__ import annotations

import asyncio

from bus.attempts import Attempts
from bus.backoff import Backoff
from bus.contract import Bus, Record
from schemas.identity import Identity, encode
from schemas.topics import INVENTORY
from sensors.misread import Misread


class IdentityChanges:
    """What changed of `node` and is not published yet; None: the identity's end. All of one event loop."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node
        self._wake = asyncio.Event()
        self._attempts = Attempts("the inventory", Backoff(max_seconds=5.0), drain_seconds=0.0)
        self.waiting: dict[str, Identity | None] = {}
        self.misread = Misread()
        """Annotations of containers (labels of Docker, the settings' workloads) that are not understood."""

    def put(self, uid: str, one: Identity | None) -> None:
        """The newest of `uid`, behind everything that waits."""
        self.waiting.pop(uid, None)
        self.waiting[uid] = one
        self.misread.look(uid.encode(), one.workload if one else "", one.annotations if one and not one.ended else None)
        self._wake.set()

    def put_first(self, changes: dict[str, Identity | None]) -> None:
        """In front of everything that waits; what waited of the same is forgotten."""
        rest = {uid: one for uid, one in self.waiting.items() if uid not in changes}
        self.waiting = {**changes, **rest}
        self._wake.set()

    async def run(self) -> None:
        """Publish as changes come, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._attempts.insist(self.flush)

    async def flush(self) -> None:
        """Publish all that waits. It waits on when the bus cannot take it."""
        changes, self.waiting = self.waiting, {}
        if not changes:
            return
        records = [
            Record(f"{self._node}/{uid}".encode(), None if one is None else encode(one)) for uid, one in changes.items()
        ]
        try:
            await self._bus.publish(INVENTORY, records)
        except BaseException:
            self.waiting = {**changes, **self.waiting}
            raise
