# SPDX-License-Identifier: Apache-2.0
"""One active process among several: whoever owns the one partition of a topic in a group works, the others stand by.

::

    subscribe ─► owned: run a term ─► revoked or lost: end it, release ─► stand by ─► owned: another term ...

The bus does the electing (a lease, a consumer group), so its times hold: a leader that ends hands over at once, one that is killed
when its session or lease is over. A leader that hangs for longer than that may still finish a publish when it wakes up; what it
writes must bear that. Neighbours: `contract` (ownership), `hauberk.stages` (the planner).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from bus.contract import Bus, Subscription
from bus.interruptible import take_or
from bus.rest import until_look
from schemas.errors import HauberkError
from schemas.topics import Topic

log = logging.getLogger(__name__)

State = Literal["joining", "standing by", "active"]

_LOOK: Final[dict[State, float]] = {"joining": 0.02, "standing by": 0.25, "active": 5.0}
"""Seconds between looks at who owns the partition. Records wake a reader, and so does a revocation; a partition that is given does not.
Who is active has nothing to wait for but its loss after it hung, which it finds when it wakes up: its timers are over by then."""


class Election:
    """For the one partition of `topic` (the others, if it has any, decide nothing). `state`: for health and metrics."""

    def __init__(self, bus: Bus, topic: Topic, group: str) -> None:
        self._bus = bus
        self._topic = topic
        self._group = group
        self._problem = ""
        self.state: State = "joining"
        self.terms = 0

    async def run(self, stop: asyncio.Event, term: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """`await term(over)` each time this process is elected, until `stop`; `over` asks it to end. What a term raises is raised."""
        held = _Term(term)
        try:
            while not stop.is_set():
                try:
                    async with self._bus.subscribe((self._topic,), self._group) as place:
                        await self._hold(place, stop, held)
                        # Strictly before the place is given back: the next leader must find no other.
                        await held.end()
                except HauberkError as error:
                    held.check()
                    await held.end()
                    await self._away(error, stop)
        finally:
            self.state = "joining"
            await held.end()

    async def _hold(self, place: Subscription, stop: asyncio.Event, held: _Term) -> None:
        partition = (self._topic.name, 0)
        while not stop.is_set():
            try:
                batch = await take_or(place, 1000, until_look(_LOOK[self.state]), stop, held.ended)
                if batch:
                    await place.commit(batch)
            except HauberkError as error:
                # Who cannot ask is not told that it lost: it goes on until the bus answers.
                await self._away(error, stop)
            else:
                self._problem = ""
            held.check()
            grant = place.owned.get(partition)
            if held.grant is not None and (grant != held.grant or partition in place.revoking):
                await held.end()
            if partition in place.revoking:
                await place.release()
                grant = None
            if grant is not None and held.grant is None:
                held.begin(grant)
                self.terms += 1
            self.state = "active" if held.grant is not None else "standing by"

    async def _away(self, error: HauberkError, stop: asyncio.Event) -> None:
        if str(error) != self._problem:
            log.warning("%s: the bus does not say who leads: %s", self._group, error)
        self._problem = str(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(getattr(error, "retry_after", None) or _LOOK["active"]):
                await stop.wait()


class _Term:
    """The term under way, if there is one: `grant` is its number."""

    def __init__(self, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        self._work = work
        self._over = asyncio.Event()
        self._task: asyncio.Future[None] | None = None
        self.grant: int | None = None
        self.ended = asyncio.Event()

    def begin(self, grant: int) -> None:
        self.grant, self._over = grant, asyncio.Event()
        self._task = asyncio.ensure_future(self._work(self._over))
        self._task.add_done_callback(lambda _: self.ended.set())

    def check(self) -> None:
        """Raise what ended it, if it ended by itself."""
        if self._task is not None and self._task.done():
            self._task.result()
            raise RuntimeError("a term ended that nobody asked to end")

    async def end(self) -> None:
        """Ask it to end, and wait."""
        task, self._task, self.grant = self._task, None, None
        if task is None:
            return
        self._over.set()
        try:
            await task
        finally:
            task.cancel()
            self.ended.clear()
