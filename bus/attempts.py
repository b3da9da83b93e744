# SPDX-License-Identifier: Apache-2.0
"""Tries until it works, splits what is refused, and gives up only when a stop leaves no time: the one place that retries.

::

    action(part) ─► done
       │ Temporary: the same part again, after a back-off with full jitter
       │ some put off: these again; some refused: these to `bury`
       │ Permanent: halves, until only the bad item is left; that one goes to `bury`, the rest is done, in order
       └ anything else: as Temporary a few times, then as Permanent (a bug in one item must not stop the others)

Neighbours: `pump` (deliveries of a stage), `sinks.delivery.consumer` (items of a batch), `dead_letters` (what `bury` writes).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from bus.backoff import Backoff
from bus.interruptible import Signal
from schemas.errors import HauberkError, Permanent, Reason, Temporary

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Stopped(Exception):
    """A stop leaves no time for another try: what is in hand stays uncommitted and comes again after the next start."""


class Remainder(msgspec.Struct, frozen=True, gc=False):
    """What of a part is not done: indexes to try `again`, in order, and `refused` ones with the reason.
    `retry_after`: seconds the far side asked for."""

    again: Sequence[int] = ()
    refused: Sequence[tuple[int, Exception]] = ()
    retry_after: float | None = None


class AttemptStats(msgspec.Struct):
    """`failure`: why it waits now, "" when it does not. `last_error` stays."""

    retries: int = 0
    backing_off: bool = False
    failure: str = ""
    last_error: str = ""
    last_error_reason: str = ""


Action = Callable[[list[T]], Awaitable[Remainder | None]]
Bury = Callable[[list[tuple[T, Exception, int]]], Awaitable[None]]
"""Takes items that are given up, each with the reason and the number of tries of the part it was in."""


class Attempts:
    """Of one stage or sink, `who` in log lines. After `stop`, failures are retried only while the last success (or the stop)
    is less than `drain_seconds` ago; then `Stopped` is raised. `bugs`: tries before an unforeseen error counts as permanent;
    `on_pause`: awaited before each wait."""

    def __init__(
        self,
        who: str,
        backoff: Backoff,
        drain_seconds: float,
        bugs: int = 3,
        stats: AttemptStats | None = None,
        random_part: Callable[[], float] = random.random,
        on_pause: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._on_pause = on_pause
        self.stats = stats or AttemptStats()
        self.stopping = Signal()
        self._who = who
        self._backoff = backoff
        self._drain_seconds = drain_seconds
        self._bugs = bugs
        self._random_part = random_part
        self._since = 0.0
        self._cut = False
        self._limit: asyncio.Timeout | None = None

    def stop(self, *, cut: bool = True) -> None:
        """From now on `left` runs. `cut`: what is limited ends within `drain_seconds`; otherwise it has its own time, because
        a far side that is slow is not told from one that hangs. Returns at once."""
        if not self.stopping.is_set():
            self._since = time.monotonic()
            self.stopping.set()
        self._cut = cut
        if cut and self._limit is not None:
            latest = asyncio.get_running_loop().time() + self._drain_seconds
            self._limit.reschedule(min(self._limit.when() or latest, latest))

    @property
    def left(self) -> float:
        """Seconds in which another try is worth its time: without end until `stop`."""
        return self._since + self._drain_seconds - time.monotonic() if self.stopping.is_set() else math.inf

    def progress(self) -> None:
        """Something was done: a stop waits for who gets on."""
        self._since = time.monotonic()
        if self.stats.failure:
            # As loud as the outage was.
            log.warning("%s works again", self._who)
        self.stats.failure = ""

    def note(self, error: Exception) -> None:
        """Remember `error` as the last one."""
        self.stats.last_error = f"{type(error).__name__}: {error}"
        self.stats.last_error_reason = reason_of(error).value

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """`asyncio.timeout(seconds)`, cut to `drain_seconds` from a `stop` with `cut` on."""
        if self._cut:
            seconds = min(seconds, self._drain_seconds)
        try:
            async with asyncio.timeout(seconds) as self._limit:
                yield
        finally:
            self._limit = None

    async def insist(self, action: Callable[[], Awaitable[R]]) -> R:
        """The result of `action`, called again after a back-off for as long as it raises `Temporary`."""
        attempt = 0
        while True:
            try:
                result = await action()
            except Temporary as error:
                await self.pause(attempt, error)
                attempt += 1
            else:
                # What works at once is no progress: a look that finds nothing must not keep a stop waiting.
                if attempt:
                    self.progress()
                return result

    async def work(self, items: Sequence[T], action: Action[T], bury: Bury[T]) -> None:
        """Have `action` do all `items`, in order: each is done or buried. Raises `Stopped`."""
        # A stack of parts instead of recursion: halves of halves, in order.
        parts = [list(items)] if items else []
        while parts:
            given_up = await self._try(parts.pop(), action, bury)
            if given_up is None:
                continue
            part, error, attempts = given_up
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                await bury([(part[0], error, attempts)])

    async def _try(self, part: list[T], action: Action[T], bury: Bury[T]) -> tuple[list[T], Exception, int] | None:
        """Try until it works (None) or cannot: what is left, the permanent error, tries."""
        attempts = failures = bugs = 0
        while True:
            attempts += 1
            try:
                left = await action(part)
            except Stopped:
                raise
            except Permanent as error:
                self.note(error)
                return part, error, attempts
            except Temporary as error:
                problem: Exception = error
            except Exception as error:
                log.error("%s failed in a way it should not; that is a bug", self._who, exc_info=error)
                problem = error
                bugs += 1
                if bugs >= self._bugs:
                    self.note(error)
                    return part, error, attempts
            else:
                if left is None:
                    self.progress()
                    return None
                if left.refused:
                    await bury([(part[index], why, attempts) for index, why in left.refused])
                if not left.again:
                    self.progress()
                    return None
                if len(left.again) < len(part):
                    self._since, failures = time.monotonic(), 0
                part = [part[index] for index in left.again]
                problem = Temporary(f"{self._who}: {len(part)} items were put off", left.retry_after)
            await self.pause(failures, problem)
            failures += 1

    async def pause(self, attempt: int, error: Exception) -> None:
        """Wait after failure number `attempt` + 1. Raises `Stopped` when a stop leaves less than the wait."""
        if not self.stats.failure:
            log.warning("%s waits, nothing is lost: %s", self._who, error)
        self.note(error)
        self.stats.failure = str(error) or type(error).__name__
        self.stats.retries += 1
        asked = error.retry_after if isinstance(error, Temporary) else None
        delay = self._backoff.delay(attempt, self._random_part(), asked)
        self.stats.backing_off = True
        try:
            if self._on_pause is not None:
                await self._on_pause()
            if not self.stopping.is_set():
                began = time.monotonic()
                try:
                    async with asyncio.timeout(delay):
                        await self.stopping.wait()
                except TimeoutError:
                    return
                # One try more at once, never sooner than the far side asked.
                delay = (asked or 0.0) - (time.monotonic() - began)
            if delay > self.left:
                raise Stopped from error
            await asyncio.sleep(max(delay, 0.0))
        finally:
            self.stats.backing_off = False


def reason_of(error: Exception) -> Reason:
    """The closed word for `error`."""
    return error.reason if isinstance(error, HauberkError) else Reason.INTERNAL
