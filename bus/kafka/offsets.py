# SPDX-License-Identifier: Apache-2.0
"""What the brokers know of offsets: where partitions begin and end, what groups have committed. Each call has a deadline.

Names of topics and groups are those on the broker, with their prefix. Neighbours: `connection` (how it is asked), `group`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiokafka import errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.admin import DeleteGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.offset import OffsetRequest

from bus.contract import Partition
from bus.kafka.connection import BrokerLink
from bus.kafka.failures import translated
from schemas.errors import Unavailable

END: Final = -1
BEGIN: Final = -2
_STALE: Final = (
    errors.NotLeaderForPartitionError,
    errors.LeaderNotAvailableError,
    errors.ReplicaNotAvailableError,
    errors.GroupCoordinatorNotAvailableError,
    errors.NotCoordinatorForGroupError,
    errors.GroupLoadInProgressError,
)
_WAIT: Final = 0.1
"""A group's coordinator or a partition's leader that is just being chosen answers within seconds."""


class BrokerOffsets:
    """Questions and one order (`forget`). Everything raises `Unavailable`."""

    def __init__(self, link: BrokerLink) -> None:
        self._link = link
        self._coordinators: dict[str, int] = {}
        # A broker that has just started takes seconds to make the topic in which groups are kept.
        self._tries = max(10, int(link.settings.call_seconds / _WAIT))

    async def at(self, places: Iterable[Partition], when: int) -> dict[Partition, int]:
        """`when`: END, the offset that the next record will get, or BEGIN, that of the oldest one kept."""
        left = set(places)
        found: dict[Partition, int] = {}
        for _ in range(self._tries):
            by_leader: dict[int, dict[str, list[tuple[int, int]]]] = {}
            for channel, number in left:
                leader = await self._link.leader(channel, number)
                if leader is not None:
                    by_leader.setdefault(leader, {}).setdefault(channel, []).append((number, when))
            for leader, asked in by_leader.items():
                answer = await self._link.ask(OffsetRequest(-1, 0, list(asked.items())), leader)
                for channel, parts in answer.topics:
                    for number, code, _, offset, *_ in parts:
                        error = errors.for_code(code)
                        if error is errors.NoError:
                            found[channel, number] = offset
                        elif error not in _STALE:
                            raise translated(error(), "read", channel)
            left -= found.keys()
            if not left:
                return found
            await self._stale()
        channel, number = next(iter(left))
        raise Unavailable(f"expected a broker to have partition {number} of topic `{channel}`, none does for now")

    async def ends(self, channel: str) -> dict[int, int]:
        places = [(channel, number) for number in await self._link.partitions(channel)]
        return {number: offset for (_, number), offset in (await self.at(places, END)).items()}

    async def begins(self, channel: str) -> dict[int, int]:
        places = [(channel, number) for number in await self._link.partitions(channel)]
        return {number: offset for (_, number), offset in (await self.at(places, BEGIN)).items()}

    async def committed(self, group: str, doing: str = "read") -> dict[Partition, int]:
        """Of every partition that the group has an offset of; empty for an unknown group."""
        answer = await self._of_group(
            group, lambda: OffsetFetchRequest(group, None), lambda found: found.error_code, doing=doing
        )
        return {
            (channel, number): offset
            for channel, parts in answer.topics
            for number, offset, _, code in parts
            if code == 0 and offset >= 0
        }

    async def commit(
        self, group: str, offsets: Mapping[Partition, int], generation: int = -1, member: str = ""
    ) -> None:
        """As a member, or, without one, for a group that nobody is in. Raises what the brokers say, a KafkaError, for a member
        or a generation that is not (any more)."""
        topics: dict[str, list[tuple[int, int, str]]] = {}
        for (channel, number), offset in offsets.items():
            topics.setdefault(channel, []).append((number, offset, ""))

        def code(answer: Any) -> int:
            return next((code for _, parts in answer.topics for _, code in parts if code), 0)

        await self._of_group(
            group, lambda: OffsetCommitRequest(group, generation, member, -1, list(topics.items())), code,
            raised=(
                errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError,
                errors.UnknownTopicOrPartitionError,
            ),
        )  # fmt: skip

    async def groups(self) -> list[str]:
        """Names of all groups that the brokers show us."""
        client = await self._link.client()
        found: set[str] = set()
        for broker in client.cluster.brokers():
            for _ in range(self._tries):
                answer = await self._link.ask(ListGroupsRequest(), broker.nodeId)
                if errors.for_code(answer.error_code) not in _STALE:
                    break
                await self._link.pause(_WAIT)
            found |= {name for name, *_ in answer.groups}
        return sorted(found)

    async def forget(self, group: str) -> None:
        """An unknown group is no error; `Unavailable` while members are in it."""

        def code(answer: Any) -> int:
            return next((code for _, code in answer.results if code), 0)

        try:
            await self._of_group(
                group, lambda: DeleteGroupsRequest([group]), code,
                raised=(errors.GroupIdNotFound, errors.NonEmptyGroup), doing="forget",
            )  # fmt: skip
        except errors.GroupIdNotFound:
            return
        except errors.NonEmptyGroup as error:
            raise Unavailable(f"expected group `{group}` to be empty, members are in it; stop them first") from error

    async def coordinator(self, group: str, doing: str = "read") -> int:
        """The broker that keeps the group. `doing`: as `failures.translated` has it."""
        if group in self._coordinators:
            return self._coordinators[group]
        for _ in range(self._tries):
            answer = await self._link.ask(FindCoordinatorRequest(group, CoordinationType.GROUP))
            error = errors.for_code(answer.error_code)
            if error is errors.NoError:
                self._coordinators[group] = answer.coordinator_id
                return int(answer.coordinator_id)
            if error not in _STALE:
                raise translated(error(), doing, group=group)
            await self._link.pause(_WAIT)
        raise Unavailable(f"expected a broker to keep group `{group}`, none does for now")

    async def _of_group(
        self, group: str, request: Any, code: Any, raised: tuple[type[Exception], ...] = (), doing: str = "read"
    ) -> Any:
        for _ in range(self._tries):
            node = await self.coordinator(group, doing)
            try:
                answer = await self._link.ask(request(), node, ConnectionGroup.COORDINATION)
            except Unavailable:
                self._coordinators.pop(group, None)
                raise
            error = errors.for_code(code(answer))
            if error is errors.NoError:
                return answer
            if error in raised:
                raise error()
            if error not in _STALE:
                raise translated(error(), doing, group=group)
            self._coordinators.pop(group, None)
            await self._stale()
        raise Unavailable(f"expected a broker to keep group `{group}`, none does for now")

    async def _stale(self) -> None:
        client = await self._link.client()
        await self._link.pause(_WAIT)
        client.force_metadata_update()
