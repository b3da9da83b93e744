# SPDX-License-Identifier: Apache-2.0
"""The one connection of a bus to its brokers: made when it is needed, watched, given up and made anew.

::

    absent ──first call──► present ──`away_seconds` of silence, or a deadline passed──► away ──back-off──► present
       └──────────── no broker, wrong credentials: told once, with the reason (`probe`) ──────────┘

Every way back begins at `bootstrap`, so brokers may move, and each has a number (`opened`): readers begin anew when it grows.
Neighbours: `client`, `probe`; `producer`, `offsets` and the readers ask here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from bus.kafka.client import QuietClient
from bus.kafka.failures import missing, said, translated
from bus.kafka.losses import GrouplessLosses
from bus.kafka.probe import why
from bus.kafka.security import arguments
from bus.kafka.settings import KafkaSettings
from bus.kafka.stats import KafkaStats
from schemas.errors import HauberkError, Refused, Unavailable

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Between two looks whether a broker answers, while somebody reads."""
_WHOLE_LOOK = 5
"""Of so many looks one asks for the topics too."""
_PROBE_SECONDS = 3.0
_LAST_LOOK_SECONDS = 0.5
"""Brokers that are there answer within a tenth of it; who pressed Ctrl-C waits for it, and has the whole end within a second."""
_NEVER = 3600.0
_LOOKS = 10
_LOOK_PAUSE = 0.1


class BrokerLink:
    """`opened`: times that a client was started. `given_up`: see `last_look`. `away`: what is the matter, None while all is well. `aloud`: brokers that come and
    go are told in the log; not where the error, which says the same, is what whoever asked gets to read."""

    def __init__(self, settings: KafkaSettings, *, aloud: bool = True) -> None:
        self.settings = settings
        self._level = logging.WARNING if aloud else logging.DEBUG
        self._stats = KafkaStats()
        self.losses = GrouplessLosses(self._stats, settings.prefix)
        self._away_since = 0.0
        self.opened = 0
        self.away: HauberkError | None = None
        self.identity = ""
        self._client: QuietClient | None = None
        self._opening = asyncio.Lock()
        self._next = 0.0
        self._attempt = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._limits: set[asyncio.Timeout] = set()
        self.closed = False
        self.given_up = False
        self.news = asyncio.Event()
        """Set and replaced whenever the state changes."""
        self.readers: set[Callable[[], None]] = set()
        """Called then, and after each whole look."""

    @property
    def stats(self) -> KafkaStats:
        """The counts as of now: one struct for the whole bus, added to by its parts."""
        stats, now = self._stats, time.monotonic()
        stats.away, stats.connects = self.away is not None, self.opened
        stats.problem = "" if self.away is None else str(self.away)
        if self.away is not None:
            stats.away_seconds += now - self._away_since
            self._away_since = now
        return stats

    async def client(self) -> QuietClient:
        """A client that has seen a broker. Raises `Unavailable` at once while the back-off lasts."""
        if (known := self._known()) is not None:
            return known
        async with self._opening:
            if (known := self._known()) is not None:
                return known
            left = self._next - time.monotonic()
            if self.away is not None and left > 0:
                raise self._again(left)
            return await self._open()

    def _known(self) -> QuietClient | None:
        self._check()
        return self._client

    async def _open(self) -> QuietClient:
        # With the probe after it, still within the deadline of whoever asks.
        seconds = min(self.settings.call_seconds, self.settings.publish_seconds) / 3
        client = QuietClient(
            request_timeout_ms=int(self.settings.call_seconds * 1000), metadata_max_age_ms=60_000, **self.arguments()
        )
        try:
            async with self.limited(seconds):
                await client.bootstrap(seconds)
                await client.refresh()
        except (KafkaError, OSError, TimeoutError) as error:
            await client.end()
            found = Unavailable(f"expected a broker of Kafka, got none: {await self._why(error)}")
            self._check()
            if self.given_up:
                raise self._again(_NEVER) from error
            self._went(found)
            raise found from error
        except asyncio.CancelledError:
            self._end(client)
            raise
        if self.closed:
            await client.end()
            self._check()
        if self.identity and client.identity != self.identity:
            log.warning(
                "kafka: another cluster answers at %s (%s, before %s): offsets and records are that one's",
                self.settings.bootstrap, client.identity, self.identity,
            )  # fmt: skip
        if self.away is not None:
            log.log(self._level, "kafka: brokers answer again at %s", self.settings.bootstrap)
            self._stats.away_seconds += time.monotonic() - self._away_since
        self.identity, self.away, self._attempt = client.identity, None, 0
        self.opened += 1
        self._client = client
        self._tell()
        return client

    def arguments(self) -> dict[str, Any]:
        """For a further client of the same brokers. Raises SettingsError."""
        return arguments(self.settings)

    async def ask(self, request: Any, node: int | None = None, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """The answer of `node`, or of any broker. `Unavailable` within `call_seconds`."""
        client = await self.client()
        try:
            async with self.limited(self.settings.call_seconds):
                return await client.send(client.get_random_node() if node is None else node, request, group=group)
        except (KafkaError, OSError, TimeoutError) as error:
            self._check()
            raise Unavailable(f"expected an answer of a broker, got {said(error)}") from error

    async def partitions(self, channel: str, doing: str = "read") -> list[int]:
        """Numbers of the topic's partitions. Raises `Unavailable`, also for a topic that is not there; `doing`: what for, as
        `failures.translated` has it: who may neither read nor write a topic is not told of it."""
        client = await self.client()
        if known := client.cluster.partitions_for_topic(channel):
            return sorted(known)
        try:
            async with self.limited(self.settings.call_seconds):
                await client.add_topic(channel)
                # A topic that was just made is known to each broker a moment later.
                for _ in range(_LOOKS):
                    if client.cluster.partitions_for_topic(channel) or channel in client.cluster.unauthorized_topics:
                        break
                    await client.refresh()
                    await self.pause(_LOOK_PAUSE)
        except (KafkaError, OSError, TimeoutError) as error:
            self._check()
            raise translated(error, doing, channel) from error
        if known := client.cluster.partitions_for_topic(channel):
            return sorted(known)
        if channel in client.cluster.unauthorized_topics:
            raise translated(TopicAuthorizationFailedError(channel), doing, channel)
        raise missing(channel)

    def known_partitions(self, channel: str) -> int:
        """How many the topic has, as the brokers said at the latest whole look (one in five seconds while somebody reads); 0: not known."""
        return 0 if self._client is None else len(self._client.cluster.partitions_for_topic(channel) or ())

    async def leader(self, channel: str, partition: int) -> int | None:
        """The broker that has the partition; None while there is none."""
        from aiokafka.structs import TopicPartition

        client = await self.client()
        number = client.cluster.leader_for_partition(TopicPartition(channel, partition))
        return None if number is None or number < 0 else int(number)

    def lost(self, error: BaseException) -> None:
        """A deadline passed: this client is given up, with everything under way on it."""
        if self._client is not None:
            self._went(
                Unavailable(f"expected an answer of the brokers at {self.settings.bootstrap}, got {said(error)}")
            )

    def watch(self) -> None:
        """Look for life from now on: readers alone would never hear that brokers are away."""
        if self._watch is None and not self.closed:
            self._watch = asyncio.get_running_loop().create_task(self._look())

    async def last_look(self) -> None:
        """The process is asked to end: brokers that do not answer now are given up, and whoever waits for them hears of it at once and
        is told not to call again. What was not taken by them comes again after the next start."""
        client = self._client
        if client is not None and self.away is None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_SECONDS):
                    if await client.refresh():
                        return
        if self.closed:
            return
        self.given_up = True
        self._went(self.away or Unavailable("expected brokers of Kafka to answer at the end, none does"))
        self._next = time.monotonic() + _NEVER
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)

    @contextlib.asynccontextmanager
    async def limited(self, seconds: float, *, least: float = 0.0) -> AsyncIterator[None]:
        """`asyncio.timeout(seconds)`, over at once when brokers are given up; what begins later has `least`."""
        if self.given_up:
            seconds = min(seconds, least)
        async with asyncio.timeout(seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def close(self) -> None:
        """Once."""
        self.closed = True
        self._tell()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
        if self._client is not None:
            await self._client.end()
            self._client = None
        if self._ending:
            await asyncio.wait(self._ending)

    async def _look(self) -> None:
        """A question each second; silence for `away_seconds` is away, and away is looked at after each back-off."""
        heard = time.monotonic()
        for looks in itertools.count():
            try:
                client = await self.client()
                async with asyncio.timeout(self.settings.away_seconds):
                    answered = await (client.answers() if looks % _WHOLE_LOOK else client.refresh())
                if not looks % _WHOLE_LOOK:
                    self._tell_readers()
                if answered:
                    heard = time.monotonic()
                if client.changed:
                    client.changed = False
                    self.lost(ConnectionError("another cluster answers"))
                elif time.monotonic() - heard >= self.settings.away_seconds:
                    self.lost(ConnectionError(await self._why(ConnectionError("silence"))))
            except TimeoutError as error:
                if time.monotonic() - heard >= self.settings.away_seconds:
                    self.lost(error)
            except HauberkError as error:
                heard = time.monotonic()
                if not isinstance(error, Unavailable):
                    self._went(error)
                await asyncio.sleep(max(0.0, self._next - time.monotonic()))
                continue
            except Exception as error:
                # Without this look readers would wait for ever on brokers that are gone.
                log.error("looking for brokers failed in a way it should not; that is a bug", exc_info=error)
                self.lost(error)
            await asyncio.sleep(_LOOK_SECONDS)

    def _went(self, error: HauberkError) -> None:
        if self.closed:
            return
        if self.away is None or str(self.away) != str(error):
            log.log(self._level, "kafka: away: %s", error)
        if self.away is None:
            self._stats.outages += 1
            self._away_since = time.monotonic()
        self.away = error
        wait = _NEVER if self.given_up else self.settings.retry.delay(self._attempt, random.uniform(0.5, 1.0))
        self._next = time.monotonic() + wait
        self._attempt += 1
        if self._client is not None:
            self._end(self._client)
            self._client = None
        self._tell()

    def _again(self, left: float) -> HauberkError:
        assert self.away is not None
        if not isinstance(self.away, Unavailable):
            return self.away
        # How long is for who asks to choose: asking costs nothing meanwhile, and a stop is not to wait for it.
        return Unavailable(str(self.away), left if self.given_up else None)

    async def _why(self, error: BaseException) -> str:
        try:
            seconds = min(self.settings.call_seconds, self.settings.publish_seconds) / 3
            async with self.limited(seconds):
                # Its own end comes first: it knows how far it got.
                return await why(self.settings, min(_PROBE_SECONDS, seconds * 0.8))
        except (KafkaError, OSError, TimeoutError) as other:
            return f"{said(error)}; {said(other)}"

    def _end(self, client: QuietClient) -> None:
        task = asyncio.get_running_loop().create_task(client.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()
        self._tell_readers()

    def _tell_readers(self) -> None:
        for tell in tuple(self.readers):
            tell()

    def _check(self) -> None:
        if self.closed:
            raise Refused("expected an open bus, this one was closed; open another")

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the state changes."""
        news = self.news
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()
