# SPDX-License-Identifier: Apache-2.0
"""What a compacted topic has of ours, and what is on its way there: of each key the newest, nothing that is there already.

Neighbours: `facts_watch`, `policy_watch` (who put it here), `bus.attempts` (waits while the bus is away).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from bus.attempts import Attempts
from bus.backoff import Backoff
from bus.contract import Bus, Headers, Record
from bus.record_times import newest, not_before
from schemas.errors import Refused
from schemas.topics import Topic

log = logging.getLogger(__name__)

MOST: Final = 500
"""Records of one publish."""


class Published:
    """`run` publishes until cancelled. All of one event loop. `refused`: records that the bus will never take, each told in the
    log and to `given_up`; what was there of their keys stays."""

    def __init__(self, bus: Bus, topic: Topic, headers: Headers = ()) -> None:
        self._bus = bus
        self._topic = topic
        self._headers = headers
        self._there: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, bytes | None] = {}
        self._unsure: set[bytes] = set()
        self._newest_ms = 0
        self.given_up: Callable[[bytes, Refused], None] = lambda key, error: None
        self._wake = asyncio.Event()
        self._attempts = Attempts(f"the topic {topic.name}", Backoff(max_seconds=5.0), drain_seconds=0.0)
        self.published = 0
        self.removed = 0
        self.unchanged = 0
        self.refused = 0
        self._alone = 0

    async def load(self) -> dict[bytes, Record]:
        """Read what the topic has; call it before anything is put. Raises what the bus raises."""
        found = await self._bus.latest(self._topic)
        self._there = {key: record.value for key, record in found.items() if record.value is not None}
        self.heard(found.values())
        return found

    def heard(self, records: Iterable[Record]) -> None:
        """Records of others: ours are never older, whatever the clocks say."""
        self._newest_ms = max(self._newest_ms, newest(records))

    def keys(self, prefix: bytes = b"") -> set[bytes]:
        """Keys that are there, or will be when all is published."""
        keys = {key for key in self._there if key.startswith(prefix)}
        for key, value in self._waiting.items():
            if key.startswith(prefix):
                (keys.discard if value is None else keys.add)(key)
        return keys

    def value(self, key: bytes) -> bytes | None:
        """What `key` has, or will have when all is published."""
        return self._waiting[key] if key in self._waiting else self._there.get(key)

    def forget(self, key: bytes) -> None:
        """Somebody else's: never removed by us."""
        self._there.pop(key, None)
        self._waiting.pop(key, None)

    def put(self, key: bytes, value: bytes | None) -> None:
        """The newest of `key`; None removes it."""
        if self.value(key) == value:
            self.unchanged += 1
            return
        self._waiting.pop(key, None)
        if key in self._unsure or self._there.get(key) != value:
            self._waiting[key] = value
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Records that are not on the bus yet."""
        return len(self._waiting)

    async def run(self) -> None:
        """Publish as changes come."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._attempts.insist(self.flush)

    async def flush(self) -> None:
        """Publish what waits. Raises what the bus raises; it waits on then."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[: 1 if self._alone else MOST])
            self._alone = max(0, self._alone - 1)
            before = {key: self._there.get(key) for key in batch}
            # What is asked for while this is on its way is compared with what will be there then.
            for key, value in batch.items():
                del self._waiting[key]
                if value is None:
                    self._there.pop(key, None)
                else:
                    self._there[key] = value
            try:
                records = [Record(key, value, self._headers) for key, value in batch.items()]
                await self._bus.publish(self._topic, not_before(self._newest_ms, records))
            except BaseException as error:
                self._unsure |= batch.keys()
                if isinstance(error, Refused) and len(batch) == 1:
                    self._give_up(before, error)
                    continue
                self._waiting = {**batch, **self._waiting}
                if isinstance(error, Refused):
                    # One of them is refused for good; alone, it cannot hold up the rest.
                    self._alone = len(batch)
                    continue
                raise
            self._unsure -= batch.keys()
            self.removed += sum(value is None for value in batch.values())
            self.published += sum(value is not None for value in batch.values())

    def _give_up(self, before: dict[bytes, bytes | None], error: Refused) -> None:
        """The bus has of these keys what it had `before`."""
        for key, value in before.items():
            if value is None:
                self._there.pop(key, None)
            else:
                self._there[key] = value
            self.refused += 1
            log.error("`%s` is not published, what was known of it stays: %s", key.decode("utf-8", "replace"), error)
            self.given_up(key, error)
