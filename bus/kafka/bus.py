# SPDX-License-Identifier: Apache-2.0
"""The bus on Apache Kafka, for many machines; see `contract`. Opening it asks nothing of the brokers.

Neighbours: `settings`, `connection` (brokers that come and go), `producer`, `group`, `broadcast`, `tables`, `offsets`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from bus.contract import Record, Start, Subscription
from bus.follow import opened
from bus.kafka.batches import check_codec
from bus.kafka.broadcast import BroadcastSubscription
from bus.kafka.connection import BrokerLink
from bus.kafka.forgetting import otherwise_forgotten
from bus.kafka.group import GroupSubscription
from bus.kafka.offsets import BrokerOffsets
from bus.kafka.producer import BatchProducer
from bus.kafka.security import arguments
from bus.kafka.settings import KafkaSettings
from bus.kafka.stats import KafkaStats
from bus.kafka.tables import SharedTables
from schemas.errors import Refused
from schemas.topics import BY_NAME, Topic


class KafkaBus:
    """See `contract.Bus`."""

    def __init__(self, settings: KafkaSettings, *, aloud: bool = True) -> None:
        self.settings = settings
        self.link = BrokerLink(settings, aloud=aloud)
        self.producer = BatchProducer(self.link)
        self._offsets = BrokerOffsets(self.link)
        self.tables = SharedTables(self.link, self._offsets)
        self._closing = False
        self._readers: set[GroupSubscription | BroadcastSubscription] = set()

    @classmethod
    async def open(cls, settings: KafkaSettings, *, aloud: bool = True) -> KafkaBus:
        """No broker is needed. `aloud`: see `BrokerLink`. SettingsError for what can be seen to be wrong without one."""
        arguments(settings)
        check_codec(settings.compression)
        return cls(settings, aloud=aloud)

    @property
    def stats(self) -> KafkaStats:
        """The counts as of now."""
        return self.link.stats

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        self._check()
        await self.producer.publish(topic, records)

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[Subscription]:
        self._check()
        if group is None and start != "latest" and all(topic.compacted for topic in topics):
            self.link.watch()
            view = await self.tables.view(topics, keys)
            try:
                yield view
            finally:
                self.tables.leave(view)
            return
        subscription: GroupSubscription | BroadcastSubscription
        if group is None:
            subscription = BroadcastSubscription(self.link, self._offsets, topics, start)
        else:
            subscription = GroupSubscription(self.link, self._offsets, topics, self.settings.prefix + group, start)
        self._readers.add(subscription)
        self.link.watch()
        try:
            await subscription.join()
            yield subscription
        finally:
            self._readers.discard(subscription)
            await subscription.leave()

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        if not topic.compacted:
            raise Refused(f"expected a compacted topic, got `{topic.name}`; read it with a subscription")
        async with opened(self, (topic,)) as (_, found):
            return {key: record for key, record in found[topic.name].items() if record.value is not None}

    def damaged(self) -> int:
        return 0

    async def end(self, topic: Topic) -> dict[int, int]:
        self._check()
        return await self._offsets.ends(topic.named(self.settings.prefix))

    async def count(self, topic: Topic) -> int:
        self._check()
        channel = topic.named(self.settings.prefix)
        begins, ends = await self._offsets.begins(channel), await self._offsets.ends(channel)
        return sum(end - begins.get(number, end) for number, end in ends.items())

    async def lag(self, group: str) -> dict[str, int]:
        self._check()
        names = {topic.named(self.settings.prefix): name for name, topic in BY_NAME.items()}
        known = await self._offsets.committed(self.settings.prefix + group, "look at")
        lags: dict[str, int] = {}
        for channel in {channel for channel, _ in known if channel in names}:
            ends = await self._offsets.ends(channel)
            lags[names[channel]] = sum(max(0, end - known.get((channel, number), end)) for number, end in ends.items())
        return lags

    async def groups(self) -> dict[str, dict[str, int]]:
        self._check()
        names = {topic.named(self.settings.prefix): name for name, topic in BY_NAME.items()}
        found: dict[str, dict[str, int]] = {}
        for group in await self._offsets.groups():
            if not group.startswith(self.settings.prefix):
                continue
            sums = found.setdefault(group.removeprefix(self.settings.prefix), {})
            for (channel, _), offset in (await self._offsets.committed(group, "look at")).items():
                if channel in names:
                    sums[names[channel]] = sums.get(names[channel], 0) + offset
        return found

    async def forget(self, group: str) -> None:
        self._check()
        await self._offsets.forget(self.settings.prefix + group)

    async def otherwise_forgotten(self, topics: Sequence[Topic]) -> dict[str, str]:
        """Topic on the brokers -> what is wrong with how it forgets. Raises `Unavailable`, `NotGranted` where this account may ask of none."""
        self._check()
        return await otherwise_forgotten(self.link, topics)

    async def last_look(self) -> None:
        """See `BrokerLink`: at the end of a process nobody waits for brokers that are away."""
        await self.link.last_look()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        await self.producer.close()
        self.link.closed = True
        await self.tables.close()
        await self.link.close()
        for reader in self._readers:
            reader._tell()

    def _check(self) -> None:
        if self._closing:
            raise Refused("expected an open bus, this one was closed; open another")
