# SPDX-License-Identifier: Apache-2.0
"""What processors of other processes say of this node's frames (`progress`): how far they are read, and which events are waited for.

The slowest group counts. One that reports nothing for FORGOTTEN seconds while others read is not waited for: processors that were
stopped for good must not keep this node from naming what is new. Nobody heard of means nobody is behind. Neighbours: `backlog`
(who asks), `processors.progress` (who publishes).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from bus.attempts import Attempts, Stopped
from bus.backoff import Backoff
from bus.contract import Bus, Delivery
from bus.interruptible import take_or
from bus.paced_log import PacedLog
from schemas.errors import DecodeError, KernelError
from schemas.frame import FrameHeader
from schemas.progress import Progress, decode
from schemas.topics import PROGRESS

log = logging.getLogger(__name__)

FORGOTTEN: Final = 30.0
"""Seconds of silence after which a group is not followed: longer than a restart, shorter than an upgrade."""
_GROUPS: Final = 64
"""Groups followed; who publishes more is not believed."""


class Following:
    """`run` until `stop`. `read(header)` any time: see `backlog.Read`. `call_for`: told of behaviours that may be alerts."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        clock: Callable[[], float] = time.monotonic,
        call_for: Callable[[Sequence[int]], None] = lambda idents: None,
    ) -> None:
        self._call_for = call_for
        self._left_out = PacedLog(log)
        self._bus, self._node, self._clock = bus, node, clock
        self._groups: dict[str, tuple[Progress, float]] = {}
        self._attempts = Attempts("following the processors", Backoff(max_seconds=5.0), drain_seconds=0.0)

    def stop(self) -> None:
        """Ask `run` to return."""
        self._attempts.stop()

    async def run(self) -> None:
        """Follow what is published from now on."""
        with contextlib.suppress(Stopped):
            await self._attempts.insist(self._follow)

    async def _follow(self) -> None:
        stopping = self._attempts.stopping
        async with self._bus.subscribe((PROGRESS,), None, "latest") as subscription:
            while not stopping.is_set():
                self._hear(await take_or(subscription, 1000, 60.0, stopping))

    def read(self, header: FrameHeader) -> int:
        """Number of the newest frame of this header's run that every group has read; -1: none. The header's own when nobody
        is followed."""
        late = self._clock() - FORGOTTEN
        self._groups = {name: one for name, one in self._groups.items() if one[1] >= late}
        mine = (header.boot, header.run)
        return min(
            (one.number if (one.boot, one.run) == mine else -1 for one, _ in self._groups.values()),
            default=header.number,
        )

    def _hear(self, batch: list[Delivery]) -> None:
        now = self._clock()
        for delivery in batch:
            if delivery.record.value is None:
                continue
            try:
                one = decode(delivery.record.value)
            except DecodeError as error:
                self._left_out.say(logging.WARNING, f"a record of `{PROGRESS.name}` was left out: {error}")
                continue
            if one.node == self._node and (one.group in self._groups or len(self._groups) < _GROUPS):
                self._groups[one.group] = (one, now)
                # Rings that are being opened anew: what cannot be marked is sent all the same, a moment later.
                with contextlib.suppress(KernelError):
                    if one.calls:
                        self._call_for(one.calls)
