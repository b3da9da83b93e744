# SPDX-License-Identifier: Apache-2.0
"""A reader of everything, without a group: all partitions, for good. Neighbours: `reader`; `tables`, for
compacted topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import TopicPartition

from bus.contract import Delivery, Gap, Partition, Start
from bus.kafka.connection import BrokerLink
from bus.kafka.offsets import BEGIN, END, BrokerOffsets
from bus.kafka.reader import KafkaReader
from schemas.topics import Topic

_WAIT_SECONDS: Final = 2.0
_SET_SECONDS: Final = 0.5
"""The library notices within so long that a place was set."""


class BroadcastSubscription(KafkaReader):
    """See `contract.Subscription`. After brokers were away it goes on where it was. `wanted` (topic, number,
    how many it has): of a topic's partitions, which; `kept`: where to begin."""

    def __init__(
        self,
        link: BrokerLink,
        offsets: BrokerOffsets,
        topics: Sequence[Topic],
        start: Start,
        wanted: Callable[[Topic, int, int], bool] = lambda topic, number, count: True,
        kept: Mapping[Partition, int] | None = None,
    ) -> None:
        super().__init__(link, offsets, topics)
        self._start: Start = start
        self._wanted = wanted
        self._kept: dict[Partition, int] = dict(kept or {})
        self.remade = 0
        """Partitions whose offsets began anew."""
        self.lost: Callable[[Gap], None] = link.losses.take
        """Called with each gap when it is found."""
        self._counts: dict[str, int] = {}

    def _extra(self) -> dict[str, Any]:
        # Nothing is asked behind a question that waits, and what it reads is set once: little is asked where nothing comes.
        longest = min(_WAIT_SECONDS, self._settings.call_seconds / 3)
        return {"fetch_max_wait_ms": int(longest * 1000), "consumer_timeout_ms": int(_SET_SECONDS * 1000)}

    async def join(self) -> None:
        await self._ensure()

    async def _ensure(self) -> None:
        if any(self._link.known_partitions(channel) > count for channel, count in self._counts.items()):
            # The topic has more partitions now. Opened anew this goes on where it was, and reads the new ones from their beginning.
            self._drop()
        await super()._ensure()

    async def _begin(self) -> None:
        numbers = {channel: await self._link.partitions(channel) for channel in self._topics}
        self._counts = {channel: len(found) for channel, found in numbers.items()}
        places = [
            (channel, number)
            for channel, topic in self._topics.items()
            for number in numbers[channel]
            if self._wanted(topic, number, self._counts[channel])
        ]
        begins, ends = await self._offsets.at(places, BEGIN), await self._offsets.at(places, END)
        consumer = self._consumer
        consumer.assign([TopicPartition(*place) for place in places])
        for place in places:
            topic = self._topics[place[0]]
            mine = (topic.name, place[1])
            first = ends[place] if self._start == "latest" and not self._kept else begins[place]
            self._skip(topic, place[1], self._kept.get(mine, first), begins[place], ends[place])
            self._grants[mine] = 1
            self._seek(TopicPartition(*place), self._position[mine])

    def _skip(self, topic: Topic, number: int, offset: int, begin: int, end: int) -> None:
        self.remade += offset > end
        super()._skip(topic, number, offset, begin, end)

    def _lose(self, gap: Gap) -> None:
        super()._lose(gap)
        self.lost(gap)

    def _lost_all(self) -> None:
        # Where it was: everything before the buffer was handed out.
        self._kept |= self._position
        super()._lost_all()

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        return

    async def release(self) -> None:
        return
