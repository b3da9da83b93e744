# SPDX-License-Identifier: Apache-2.0
"""A member of a consumer group: partitions come and go with notice, commits only move forward and only as their owner.

The brokers' classic protocol takes everything from everybody at each change and gives most of it back (the sticky
assignor), so a change is: all is revoked, the reader flushes, commits and releases, all is granted anew under new numbers.
Commits go past aiokafka, under the generation of the grant: its own call repeats for ever while a broker is away.
Neighbours: `reader`, `offsets`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from typing import Any

from aiokafka import TopicPartition, errors
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError

from bus.contract import Delivery, Partition, Start
from bus.kafka.connection import BrokerLink
from bus.kafka.offsets import BEGIN, END, BrokerOffsets
from bus.kafka.reader import KafkaReader
from schemas.errors import HauberkError, Refused, Unavailable
from schemas.topics import Topic

log = logging.getLogger(__name__)

_MARGIN_SECONDS = 5.0
"""The brokers wait for a member this much longer than it waits for its reader."""


class GroupSubscription(KafkaReader):
    """See `contract.Subscription`. `group`: as the brokers know it."""

    def __init__(
        self, link: BrokerLink, offsets: BrokerOffsets, topics: Sequence[Topic], group: str, start: Start
    ) -> None:
        super().__init__(link, offsets, topics)
        self._group = group
        self._start: Start = start
        self._ends: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._granted = 0
        self.joining = True
        self._generation = -1
        self._member = ""
        self._released = asyncio.Event()
        # The library keeps what a member had in its class: one class per member.
        self._assignor = type("StickyOfOne", (StickyPartitionAssignor,), {"member_assignment": None, "generation": -1})

    async def join(self) -> None:
        """Write down where the group begins, then begin to join it; the partitions come while the reader takes."""
        places = [(channel, number) for channel in self._topics for number in await self._link.partitions(channel)]
        missing = await self._missing(places)
        if missing:
            begin = await self._offsets.at(missing, END if self._start == "latest" else BEGIN)
            if self._start == "latest":
                self._ends = begin
            # Looked at again right before: a group without members takes any commit, also one that moves it backwards, and
            # another member may have begun, committed and left meanwhile. What is read twice then is not lost.
            missing = await self._missing(missing)
            # A group with members has that done by them, when they are given these partitions.
            with contextlib.suppress(errors.UnknownMemberIdError):
                await self._offsets.commit(self._group, {place: begin[place] for place in missing})
        await self._ensure()

    async def _missing(self, places: list[Partition]) -> list[Partition]:
        """Those of which the group has committed nothing."""
        known = await self._offsets.committed(self._group)
        return [place for place in places if place not in known]

    def _extra(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "group_id": self._group,
            # What is asked after a change of the group waits behind this one.
            "fetch_max_wait_ms": 500,
            "session_timeout_ms": int(settings.session_seconds * 1000),
            "heartbeat_interval_ms": max(100, int(settings.session_seconds * 100)),
            "rebalance_timeout_ms": int((settings.revoke_seconds + _MARGIN_SECONDS) * 1000),
            "max_poll_interval_ms": int(settings.member_seconds * 1000),
            "partition_assignment_strategy": (self._assignor,),
        }

    def _request_seconds(self) -> float:
        # The answer to a request to join comes when every member has released.
        return self._settings.call_seconds + self._settings.revoke_seconds + _MARGIN_SECONDS

    async def _begin(self) -> None:
        consumer = self._consumer
        consumer.subscribe(list(self._topics), listener=_Changes(self, consumer))

    async def revoked(self, consumer: Any) -> None:
        """Called by the library before it joins again; what it waits for is this."""
        if consumer is not self._consumer:
            return
        self.joining = True
        if not self._grants:
            return
        coordinator = consumer._coordinator
        self._buffer.clear()
        self._behind.clear()
        self._forget_fetched()
        if coordinator.generation > 0:
            self._released.clear()
            self._revoking = set(self._grants)
            self._tell()
            try:
                async with asyncio.timeout(self._settings.revoke_seconds):
                    await self._released.wait()
            except TimeoutError:
                log.warning(
                    "kafka: a reader of group `%s` did not release its partitions within %g s; they are taken from it",
                    self._group, self._settings.revoke_seconds,
                )  # fmt: skip
        if consumer is self._consumer:
            self._lost_all()
            self._tell()

    async def assigned(self, consumer: Any, places: Collection[TopicPartition]) -> None:
        """Called by the library when it has joined: find out where to begin, and begin."""
        if consumer is not self._consumer:
            return
        self._link.stats.rebalances += 1
        coordinator = consumer._coordinator
        generation, member = coordinator.generation, coordinator.member_id
        try:
            await self._place(consumer, [(place.topic, place.partition) for place in places], generation, member)
        except (HauberkError, KafkaError, OSError, TimeoutError) as error:
            self._broken = error
        self._tell()

    async def _place(self, consumer: Any, places: list[Partition], generation: int, member: str) -> None:
        known = await self._offsets.committed(self._group)
        begins, ends = await self._offsets.at(places, BEGIN), await self._offsets.at(places, END)
        fresh: dict[Partition, int] = {}
        for place in places:
            if place not in known:
                # "latest" is as of the subscription; a topic that was made anew is read whole.
                latest = self._ends.get(place, ends[place] + 1)
                fresh[place] = latest if begins[place] <= latest <= ends[place] else begins[place]
        if fresh:
            await self._offsets.commit(self._group, fresh, generation, member)
        if consumer is not self._consumer:
            return
        self._ends.clear()
        self._generation, self._member = generation, member
        # The library begins to fetch by itself while the above is asked.
        self._forget_fetched()
        for place in places:
            topic = self._topics[place[0]]
            mine = (topic.name, place[1])
            offset = known.get(place, fresh.get(place, 0))
            self._skip(topic, place[1], offset, begins[place], ends[place])
            self._committed[mine] = min(offset, self._position[mine])
            self._granted += 1
            self._grants[mine] = self._granted
            self._seek(TopicPartition(*place), self._position[mine])
        self.joining = False

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        if self._link.closed:
            raise Refused("expected an open bus, this one was closed; open another")
        done: dict[Partition, int] = {}
        counts: dict[Partition, int] = {}
        if deliveries is None:
            done = dict(self._position)
        for delivery in deliveries or ():
            mine = (delivery.topic.name, delivery.partition)
            if mine in self._grants:
                done[mine] = max(done.get(mine, 0), delivery.offset + 1)
                counts[mine] = counts.get(mine, 0) + 1
            else:
                self.disowned += 1
        done = {mine: offset for mine, offset in done.items() if offset > self._committed.get(mine, 0)}
        if not done:
            return
        offsets = {(self._channels[name], number): offset for (name, number), offset in done.items()}
        grants = dict(self._grants)
        try:
            await self._offsets.commit(self._group, offsets, self._generation, self._member)
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError):
            # The brokers gave up on this member: whoever has these partitions handles the records again.
            self.disowned += sum(counts.get(mine, 0) for mine in done)
            if grants == self._grants:
                self._lost_all()
                self._released.set()
            # Otherwise it was given partitions anew while the answer was on its way: those stay.
            return
        except (errors.RebalanceInProgressError, errors.UnknownTopicOrPartitionError) as error:
            raise Unavailable(f"expected group `{self._group}` to take a commit, it is changing now", 0.1) from error
        for mine, offset in done.items():
            if self._grants.get(mine) == grants.get(mine):
                self._committed[mine] = max(offset, self._committed.get(mine, 0))

    async def release(self) -> None:
        for mine in self._revoking:
            self._grants.pop(mine, None)
            self._position.pop(mine, None)
        self._revoking.clear()
        self._released.set()
        await asyncio.sleep(0)

    def _named(self, error: BaseException) -> tuple[str, str]:
        of_group = errors.GroupAuthorizationFailedError, errors.InconsistentGroupProtocolError
        return ("", self._group) if isinstance(error, of_group) else super()._named(error)

    def _lost_all(self) -> None:
        self.joining = True
        super()._lost_all()

    async def leave(self) -> None:
        self._released.set()
        await super().leave()


class _Changes(ConsumerRebalanceListener):  # type: ignore[misc]
    """The library's calls, for one consumer of a subscription that may have had others."""

    def __init__(self, subscription: GroupSubscription, consumer: Any) -> None:
        self._subscription = subscription
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._subscription.revoked(self._consumer)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._subscription.assigned(self._consumer, assigned)
