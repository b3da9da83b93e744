# SPDX-License-Identifier: Apache-2.0
"""One process per node name: says on `nodes` who goes by this one's, and hears whoever went by it before.

::

    start ─► subscribe to what comes ─► say who I am ─► an older process answers: `taken` is set, this one must end
                                     └► a younger one says who it is: answer

A process that was killed answers nobody, so the next is not held up. Nobody waits for a bus that is away: when it is back both
hear each other, and the younger one ends. Enforcement does not depend on it. Neighbours: `schemas.claim` (the value),
`hauberk.single_stage` (who ends).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import Final

from bus.attempts import Attempts, Stopped
from bus.backoff import Backoff
from bus.contract import Bus, Record
from bus.interruptible import take_or
from bus.paced_log import PacedLog
from schemas.claim import NodeClaim, decode, encode
from schemas.errors import DecodeError
from schemas.topics import NODES
from sensors.containers.node_identity import word

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 1.0
"""How long a start waits for an older process: its answer takes a poll and a publish. A later one ends this process too."""


class NameClaim:
    """`run` until `stop`. `taken`: set once an older process of this name answered; `other`: that one. `bus`: not a spool's, whose
    next process would hear this one answer."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._attempts = Attempts("the claim of this node's name", Backoff(max_seconds=5.0), drain_seconds=0.0)
        self.mine = NodeClaim(
            node=node, run=os.urandom(8).hex(), host=os.uname().nodename,
            boot=word("/proc/sys/kernel/random/boot_id"), started_ns=time.time_ns(),
        )  # fmt: skip
        self._lines = PacedLog(log)
        self.other: NodeClaim | None = None
        self.taken = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._attempts.stop()

    async def run(self) -> None:
        """Say it, then answer whoever says the same, until the name is `taken`."""
        with contextlib.suppress(Stopped):
            await self._attempts.insist(self._follow)

    async def free(self) -> bool:
        """Whether nobody answered within ANSWER_SECONDS; also when the bus does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.taken.wait()
        return not self.taken.is_set()

    @property
    def problem(self) -> str:
        """Who has the name, as one sentence; "" when nobody else has."""
        if self.other is None:
            return ""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.other.started_ns / 1e9))
        return (
            f"expected a node name that no other process goes by, got `{self.mine.node}`, which a process on host "
            f"`{self.other.host}` has had since {since}; give one of the two another name with `node`"
        )

    async def _follow(self) -> None:
        stopping = self._attempts.stopping
        async with self._bus.subscribe((NODES,), None, "latest") as subscription:
            await self._say()
            while not stopping.is_set() and not self.taken.is_set():
                for delivery in await take_or(subscription, 1000, 60.0, stopping):
                    await self._hear(delivery.record)

    async def _say(self) -> None:
        await self._bus.publish(NODES, [Record(self.mine.node.encode(), encode(self.mine))])

    async def _hear(self, record: Record) -> None:
        if record.key != self.mine.node.encode() or record.value is None:
            return
        try:
            one = decode(record.value)
        except DecodeError as error:
            self._lines.say(logging.WARNING, f"a record of `{NODES.name}` was left out: {error}")
            return
        if one.run == self.mine.run:
            return
        if one.order < self.mine.order:
            self.other = one
            self.taken.set()
        else:
            self._lines.say(
                logging.ERROR, f"another process claims the name of this node from host `{one.host}`; it is told to end"
            )
            await self._say()
