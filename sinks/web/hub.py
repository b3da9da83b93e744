# SPDX-License-Identifier: Apache-2.0
"""The live half of the page: asks the store once for everybody, and hands each browser its own short queue.

One poll a second while anybody looks, none when nobody does. A browser that does not keep up loses the oldest of what waits
for it and is told how much; it never holds up another. Asks the store in threads, because all of its calls block.
Neighbours: `feed` makes the messages, `page` speaks HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from schemas.errors import DecodeError, HauberkError
from sinks.store.store import Query, Reading, StoredAlert
from sinks.web import feed

POLL_SECONDS: Final = 1.0
SHARE: Final = 10.0
"""Counting that took t seconds is not done again for ten times t, so a large store costs a tenth of a core at most; alerts
are asked for each second all the same."""
HEARTBEAT_SECONDS: Final = 15.0
WAITING_MOST: Final = 50
"""Messages that wait for one browser."""
ALERTS_MOST: Final = 500
"""Alerts in one message: what a page begins with, and the most one poll tells."""
HISTORY_SECONDS: Final = 1800
STEP_SECONDS: Final = 60
TAIL_SECONDS: Final = 180
"""Counts arrive some seconds after their events: the last three minutes are told again when they change."""
WHOLE_EVERY: Final = 60
"""Each sixtieth time the half hour is counted: a sink that was behind fills in what is older than the tail."""

_T = TypeVar("_T")


class Questions:
    """Asks a store. A reader of its own for each question, in a thread: opening one takes a third of a millisecond, holds
    nothing while nobody asks, and sees a store that was moved away and begun anew."""

    def __init__(self, opening: Callable[[], Reading]) -> None:
        self._opening = opening
        # Two, so that a long question does not hold up what is live.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="hauberk-page")

    async def ask(self, question: Callable[[Reading], _T]) -> _T:
        """What `question` answers. Raises what `Reading` raises."""

        def asked() -> _T:
            reader = self._opening()
            try:
                return question(reader)
            except (msgspec.DecodeError, ValueError, KeyError) as error:
                raise DecodeError(f"store: expected values that this version knows in its rows, got {error}") from error
            finally:
                reader.close()

        return await asyncio.get_running_loop().run_in_executor(self._threads, asked)

    def close(self) -> None:
        """Nothing is asked any more; what is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Client:
    """What waits for one browser."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._ended = False
        self._ready = asyncio.Event()

    def put(self, message: bytes) -> None:
        """At the end of the queue; the oldest goes when it is full."""
        if len(self._waiting) >= WAITING_MOST:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(message)
        self._ready.set()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._ready.set()

    async def next(self, seconds: float = HEARTBEAT_SECONDS) -> bytes | None:
        """All that waits, what was dropped told first; a comment after `seconds` of silence; None at the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return b": still here\n\n"
        if self._ended:
            return None
        self._ready.clear()
        parts, dropped = list(self._waiting), self._dropped
        self._waiting.clear()
        self._dropped = 0
        return b"".join([feed.message("gap", {"updates": dropped}), *parts] if dropped else parts)


class Hub:
    """The connected browsers. `most`: browsers at a time."""

    def __init__(self, questions: Questions, most: int, clock: Callable[[], float] = time.time) -> None:
        self._questions = questions
        self._most = most
        self._clock = clock
        self._clients: set[Client] = set()
        self._polling: asyncio.Task[None] | None = None
        self._newest = 0
        self._told: feed.Steps | None = None
        self._trouble = ""
        self._counted = 0
        self._due = 0.0
        self.polls = 0

    @property
    def clients(self) -> int:
        """How many look now."""
        return len(self._clients)

    def join(self) -> Client | None:
        """One more; None when there are `most` already. It gets what is new from now on: ask `opening` after this, so that
        nothing falls in between."""
        if len(self._clients) >= self._most:
            return None
        client = Client()
        self._clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        """One less. The last one ends the polling."""
        self._clients.discard(client)
        if not self._clients and self._polling is not None:
            self._polling.cancel()
            self._polling = None

    async def opening(self, after: int | None) -> bytes:
        """What a browser begins with: the half hour, and the newest alerts or, when it says which it has, those after it."""

        def question(reader: Reading) -> tuple[feed.Steps, list[StoredAlert], bool]:
            since = int(self._clock()) - HISTORY_SECONDS
            history = feed.steps(reader.series(Query(since=since), STEP_SECONDS))
            newest = reader.alerts(Query(limit=1))
            known = after is not None and bool(newest) and newest[0].ident >= after
            return history, reader.alerts(Query(limit=ALERTS_MOST), after=after if known and after else 0), known

        try:
            history, alerts, known = await self._questions.ask(question)
        except HauberkError as error:
            self._poll()
            return feed.message("trouble", {"why": str(error)})
        if self._polling is None or self._polling.done():
            self._newest = alerts[0].ident if alerts else (after or 0) if known else 0
            self._poll()
        parts = [] if known else [feed.message("reset", {})]
        parts.append(feed.message("activity", {"now": self._clock(), "points": history}))
        parts += [*_missed(alerts, after or 0 if known else 0), *_alerts(alerts)]
        return b"".join(parts)

    def close(self) -> None:
        """End every stream."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        for client in self._clients:
            client.end()

    def _poll(self) -> None:
        if self._clients and (self._polling is None or self._polling.done()):
            self._polling = asyncio.create_task(self._run(), name="page")

    def _tell(self, message: bytes) -> None:
        for client in self._clients:
            client.put(message)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                self._trouble = ""
            except HauberkError as error:
                # Once, not each second.
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._tell(feed.message("trouble", {"why": self._trouble}))
            self.polls += 1
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        after, due = self._newest, self._counted == 0 or time.monotonic() >= self._due

        def question(reader: Reading) -> tuple[feed.Steps | None, float, list[StoredAlert], int]:
            started = time.monotonic()
            since = int(self._clock()) - (TAIL_SECONDS if self._counted % WHOLE_EVERY else HISTORY_SECONDS)
            tail = feed.steps(reader.series(Query(since=since), STEP_SECONDS)) if due else None
            took = time.monotonic() - started
            fresh = reader.alerts(Query(limit=ALERTS_MOST), after=after)
            newest = fresh or reader.alerts(Query(limit=1))
            return tail, took, fresh, newest[0].ident if newest else 0

        tail, took, fresh, newest = await self._questions.ask(question)
        if newest < after:
            # Another store stands in its place: numbers begin again.
            self._newest, self._told, self._counted = 0, None, 0
            self._tell(feed.message("reset", {}))
            return
        self._newest = newest
        if due:
            self._counted += 1
            self._due = time.monotonic() + SHARE * took
        if tail is None:
            # Not counted this time: that it answers again is told all the same.
            tail = self._told if self._trouble else None
        if tail is not None and (tail != self._told or self._trouble):
            self._told = tail
            self._tell(feed.message("activity", {"now": self._clock(), "points": tail}))
        if fresh:
            for message in [*_missed(fresh, after), *_alerts(fresh)]:
                self._tell(message)


def _missed(alerts: list[StoredAlert], after: int) -> list[bytes]:
    """Numbers grow by one: what is between `after` and the oldest that fitted was left out."""
    missed = alerts[-1].ident - after - 1 if after and len(alerts) >= ALERTS_MOST else 0
    return [feed.message("gap", {"alerts": missed})] if missed > 0 else []


def _alerts(alerts: list[StoredAlert]) -> list[bytes]:
    return [feed.message("alerts", alerts, alerts[0].ident)] if alerts else []
