# SPDX-License-Identifier: Apache-2.0
"""The claim of a node's name as a stage: asked while the programs are loaded, kept while the node runs, and the end of the node
when another process had the name before.

Neighbours: `sensors.node.claim` (who says and hears it), `single_stage` (whose node it is).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from bus.spool import SpooledBus
from hauberk.stages import until
from hauberk.supervision import TELLING
from schemas.errors import HauberkError, SettingsError
from schemas.topics import ALERTS
from sensors.node.claim import NameClaim

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.supervision import Supervision


class Claiming:
    """Begins at once. `check` before the other stages start; `stage` for the runner."""

    def __init__(self, bus: Bus, node: str, supervision: Supervision, stop: asyncio.Event) -> None:
        self._bus = bus
        self._supervision = supervision
        self._stop = stop
        # Not through the spool: the next process would drain an older claim, and take it for a living process.
        self.claim = NameClaim(bus.inner if isinstance(bus, SpooledBus) else bus, node)
        self._running = asyncio.create_task(self.claim.run())

    async def check(self) -> None:
        """SettingsError when another process goes by this name."""
        if not await self.claim.free():
            await self._tell()
            raise SettingsError(self.claim.problem)

    async def stage(self, stop: asyncio.Event) -> None:
        """Keep the name. Once it turns out to be another's, the whole process is asked to end, with that error."""
        if self._running.done() and not self.claim.taken.is_set():
            self._running = asyncio.create_task(self.claim.run())

        async def end() -> None:
            self.claim.stop()

        await until(stop, self._running, end)
        if self.claim.taken.is_set():
            await self._tell()
            self._supervision.fatal = SettingsError(self.claim.problem)
            self._stop.set()

    def cancel(self) -> None:
        """For a start that fails before the stages run."""
        self._running.cancel()

    async def _tell(self) -> None:
        from processors.notices import notice

        mine, other = self.claim.mine, self.claim.other
        data = {"host": mine.host, "run": mine.run, "other": other.host if other else ""}
        record = notice(
            mine.node, "NodeNameTaken", f"a second node was refused: {self.claim.problem}", data, severity=9
        )
        with contextlib.suppress(HauberkError, TimeoutError):
            async with asyncio.timeout(TELLING):
                await self._bus.publish(ALERTS, [record])
