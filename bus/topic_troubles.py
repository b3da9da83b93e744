# SPDX-License-Identifier: Apache-2.0
"""Which topics wait by themselves while the bus takes others: each with a back-off of its own, told once when it begins and ends.

::

    `Unserved`: the bus answered ─────────────────────────────► the topic waits by itself
    any other error: the bus may be away ──► another topic gets through, this one still does not ──┘

Who looks whether a bus is back looks with the oldest records. One that says nothing about a topic would fail that look for ever, so
after `DOUBT` the looks take turns. Neighbour: `spool`, which asks here before it publishes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from bus.backoff import Backoff
from schemas.errors import Temporary, Unserved

log = logging.getLogger(__name__)

DOUBT: Final = 30.0
"""Seconds, two of the longest usual looks, for which an error that names no topic is believed to be about the whole bus."""


class TopicTroubles:
    """`said`: topic name -> why its records wait by themselves; `now`: 1 for each of these, 0 when that is over; `tries`: how often
    that was found so; `looked`: topics that were tried since it is in doubt whether the whole bus is away."""

    def __init__(self, retry: Backoff, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry = retry
        self._clock = clock
        self._due: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._doubted: set[str] = set()
        self._away_since: float | None = None
        self.looked: set[str] = set()
        self.said: dict[str, str] = {}
        self.now: dict[str, int] = {}
        self.tries: dict[str, int] = {}

    def failed(self, name: str, error: Exception) -> bool:
        """Whether `error` of a publication is the matter of topic `name` alone, which waits from now on; otherwise the whole bus may
        be away."""
        if isinstance(error, Unserved) or (name in self._doubted and self._away_since is None):
            self.hold(name, error)
            return True
        self._doubted.add(name)
        if self._away_since is not None and self._clock() - self._away_since >= DOUBT:
            self.looked.add(name)
        return False

    def hold(self, name: str, error: Exception) -> None:
        """Records of topic `name` wait for its own back-off."""
        attempt = self._attempts.get(name, 0)
        asked = error.retry_after if isinstance(error, Temporary) else None
        self._attempts[name] = attempt + 1
        self._due[name] = self._clock() + self._retry.delay(attempt, asked=asked)
        said = f"{type(error).__name__}: {error}"
        if name not in self.said:
            log.warning("records of `%s` wait by themselves in the spool, other topics go on: %s", name, said)
        self.said[name] = said
        self.now[name] = 1
        self.tries[name] = self.tries.get(name, 0) + 1

    def served(self, name: str) -> None:
        """The bus took a record of topic `name`."""
        self._doubted.discard(name)
        if self.said.pop(name, None) is not None:
            log.warning("records of `%s` go on", name)
            del self._due[name], self._attempts[name]
            self.now[name] = 0

    def waiting(self) -> dict[str, float]:
        """Topic name -> seconds for which nothing of it is tried yet."""
        now = self._clock()
        return {name: due - now for name, due in self._due.items() if due > now}

    def waits(self, name: str) -> bool:
        return self._due.get(name, 0.0) > self._clock()

    def away(self, is_away: bool) -> None:
        """Whether the whole bus counts as away."""
        if not is_away:
            self._away_since = None
            self.looked.clear()
        elif self._away_since is None:
            self._away_since = self._clock()
