# SPDX-License-Identifier: Apache-2.0
"""What a bus promises, whichever one it is: read this first.

Bytes travel; their codecs live in `schemas`. Topics come from `schemas.topics` and nowhere else. Delivery is at least
once and in order per key: a record is handed out again until its group has committed past it, so every reader must
bear repeats (event ids are deterministic for that reason). Neighbours: `memory`, `embedded` (and Kafka) keep the
promise, `pump` drives a stage with it, `spool` keeps it while the far side is away. The same test suite runs on all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

from schemas.topics import Topic

Headers = tuple[tuple[str, bytes], ...]
Start = Literal["earliest", "latest", "committed"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """What is published. `value` None is a tombstone: on a compacted topic it deletes the key.

    `timestamp_ms`: milliseconds since the epoch; 0 lets the bus stamp it at publish.
    """

    key: bytes
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = 0

    @property
    def size(self) -> int:
        """Bytes of key, value and headers: what every byte cap in this room counts."""
        size = len(self.key) + (0 if self.value is None else len(self.value))
        for name, value in self.headers:
            size += len(name) + len(value)
        return size


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A record and where it lay. Offsets of a partition only grow; they need not be without holes."""

    topic: Topic
    partition: int
    offset: int
    record: Record


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Records `first`..`last` (offsets, inclusive) that this subscription will never see, and why.

    Retention dropped them before the group came by, or a segment was unreadable (then the count is an upper bound).
    """

    topic: str
    partition: int
    first: int
    last: int
    why: str

    @property
    def records(self) -> int:
        return self.last - self.first + 1


class Subscription(Protocol):
    """One reader's place in some topics. For one task at a time; leave the `async with` to give the place back."""

    @property
    def position(self) -> Mapping[tuple[str, int], int]:
        """(topic name, partition) -> offset of the next record `take` will hand out."""
        ...

    @property
    def skipped(self) -> int:
        """Records lost to this reader so far: retention ran past it, or a segment was unreadable. Never reset."""
        ...

    @property
    def gaps(self) -> Sequence[Gap]:
        """The latest gaps, oldest first, at most 100. `skipped` counts all of them."""
        ...

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        """The next records, at least one unless `max_wait` seconds passed without any: then an empty list.

        Waits without blocking the loop. Returns as soon as there is something; it does not wait to fill the list, and
        it stops early at the bus's byte cap. In order within a partition; no order between topics. Cancelling is
        safe: what was not returned is handed out by the next call. Silence means nothing arrived, or another member
        of the group holds these partitions. Raises `Unavailable` when the far side is away; call again later.
        """
        ...

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        """Everything up to and including `deliveries` is done (None: everything taken so far), per partition.

        Returns when the group will not see them again after a crash of this process. An older offset than the
        committed one changes nothing. A broadcast reader (group None) keeps no offsets: this does nothing. Not
        retried here. Raises `Temporary`; the records are then handed out again after the next start.
        """
        ...


class Bus(Protocol):
    """A set of topics. Every method may be called in parallel; all belong to the event loop the bus was opened on."""

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        """Append `records` in order, all or none, and return when they are as durable as the topic asks.

        Waits without blocking the loop. Two calls in parallel may land in either order; one after the other keeps
        its order per key. Nothing is retried here: the caller decides (the pump does, for stages). After an error
        the records may yet have been written, so publishing again may repeat them, as at-least-once allows.

        Raises:
            Backpressure: more waits to be written than the cap; nothing was taken.
            DiskFull: no room where the log lies; nothing was taken.
            Unavailable: the far side did not answer.
            Refused: a record is larger than the bus takes, or the bus is closed.
        """
        ...

    def subscribe(
        self, topics: Sequence[Topic], group: str | None, start: Start = "committed"
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read `topics`, sharing offsets under the name `group`; groups never see or slow each other.

        A group's committed offset always wins. `start` says where a group without one begins: "latest" at the end
        as of now, "earliest" and "committed" at the oldest record kept. `group` None is a broadcast reader: it sees
        every record from `start` on, keeps no offsets and holds nothing back from being forgotten. Within a group
        each partition goes to one member; others stand by and take over when it leaves or dies.
        Who closes: the caller, by leaving the `async with`; uncommitted records go to the next member.
        """
        ...

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        """The newest value of each key of a compacted topic, tombstoned keys left out. `Refused` for other topics."""
        ...

    async def end(self, topic: Topic) -> dict[int, int]:
        """Partition -> offset the next record will get: what "caught up" means for a reader at start."""
        ...

    async def lag(self, group: str) -> dict[str, int]:
        """Topic name -> records published that the group has not committed. Empty for an unknown group."""
        ...

    async def groups(self) -> dict[str, dict[str, int]]:
        """Group -> topic name -> committed offset (summed over partitions)."""
        ...

    async def forget(self, group: str) -> None:
        """Drop a group and its offsets, so that it no longer holds records back. Unknown groups are no error."""
        ...

    async def close(self) -> None:
        """Finish what was published, release everything. Whoever opened the bus closes it; twice is once."""
        ...
