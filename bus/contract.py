# SPDX-License-Identifier: Apache-2.0
"""What a bus promises, whichever one it is: read this first.

Bytes travel; their codecs live in `schemas`. Topics come from `schemas.topics` and nowhere else. Delivery is at least
once and in order per key: a record is handed out again until its group has committed past it, so every reader must
bear repeats (event ids are deterministic for that reason). A call that waits for a far side ends within the bus's own
deadline, with an answer or with `Unavailable`. Neighbours: `memory`, `bus.embedded.bus` (and Kafka) keep the promise, `pump` drives a stage with it, `spool`
keeps it while the far side is away. The same test suite runs on all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, Protocol

import msgspec

from schemas.topics import Topic

Headers = tuple[tuple[str, bytes], ...]
Partition = tuple[str, int]
"""(topic name, number of the partition)."""
Start = Literal["earliest", "latest", "committed"]
PATIENT: Final = "bus.patient"
"""Name of a header, its value is empty: the record may lie at its reader until others come, for as long as the settings of the bus
allow (`patience`). Where a batch costs its reader round trips, one of a single record costs nearly as much as one of ten."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """What is published. `value` None is a tombstone: on a compacted topic it deletes the key.

    `timestamp_ms`: milliseconds since the epoch; 0 lets the bus stamp it at publish. Where a far side keeps the log it stamps those of
    topics with `log_time` itself, whatever was said.
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
    """One reader's place in some topics. For one task at a time; leave the `async with` to give the place back.

    Partitions are given to a member of a group and may be taken away again. Nothing is called back: a reader looks at
    `revoking` and `owned` after each `take`, in its own task, so that neither can change while it handles a batch::

        batch = await subscription.take(500, 1.0)
        handle(batch)
        if subscription.revoking:               # another member is to have these
            flush(); await subscription.commit(done)
            await subscription.release()
        forget what belongs to partitions that are not in `owned` any more, or have another number there
    """

    @property
    def position(self) -> Mapping[Partition, int]:
        """Offset of the next record that `take` will hand out, of each partition in `owned`."""
        ...

    @property
    def owned(self) -> Mapping[Partition, int]:
        """The partitions that this reader has now, each with the number of the grant: another number means that it was lost
        and given anew, and that its records come again from the committed offset. Empty for a member that stands by; a
        broadcast reader has all partitions for good. A partition that vanished was released or lost: the reader ran
        past `revoking`'s time, did not call `take` for longer than the bus allows, or the far side gave up on it."""
        ...

    @property
    def revoking(self) -> frozenset[Partition]:
        """Partitions of `owned` that another member waits for. `take` hands out nothing more of them and returns early once
        when one is added. The reader finishes what it has of them, commits and calls `release`, within a time that is
        the bus's setting (`revoke_seconds`); after that they are lost."""
        ...

    @property
    def joining(self) -> bool:
        """Whether the far side has yet to say what this reader gets: at first, and while its group changes. A partition that is not
        in `owned` then may be in a moment; otherwise it is another member's."""
        ...

    @property
    def disowned(self) -> int:
        """Deliveries whose commit was dropped because their partition was lost: another member handles them again."""
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

        Waits without blocking the loop. Returns as soon as there is something that is not `PATIENT`; it does not wait to fill the list, and
        it stops early at the bus's byte cap. In order within a partition; no order between partitions. Cancelling is
        safe: what was not returned is handed out by the next call. Silence means nothing arrived, or another member
        of the group holds these partitions. Raises `Unavailable` when the far side is away, within the bus's deadline;
        call again later.

        `max_records` 0 hands out nothing and keeps the place: how a reader pauses that has as much in hand as it may
        A reader that neither takes nor pauses loses its
        partitions after the bus's own time.
        """
        ...

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        """Everything up to and including `deliveries` is done (None: everything taken so far), per partition.

        Returns when the group will not see them again after a crash of this process. An older offset than the
        committed one changes nothing, and an offset never moves backwards. What belongs to a partition that this
        reader does not own is dropped and counted in `disowned`; the rest is committed. A broadcast reader (group
        None) keeps no offsets: this does nothing. Not retried here. Raises `Temporary`, within the bus's deadline; the
        records are then handed out again after the next start.
        """
        ...

    async def release(self) -> None:
        """Let go of `revoking`: the next member begins at the committed offset. Nothing to let go of is no error."""
        ...


class Bus(Protocol):
    """A set of topics. Every method may be called in parallel; all belong to the event loop the bus was opened on. Opening one
    needs no far side: a node enforces its last plan without."""

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        """Append `records` in order, all or none per partition, and return when they are as durable as the topic asks.

        Waits without blocking the loop. Two calls in parallel may land in either order; one after the other keeps
        its order per key. Nothing is retried here: the caller decides (the pump does, for stages). After an error
        the records may yet have been written, so publishing again may repeat them, as at-least-once allows.

        Raises:
            Backpressure: more waits to be written than the cap; nothing was taken.
            DiskFull: no room where the log lies; nothing was taken.
            Unavailable: the far side did not answer.
            Unserved: it answered, and this topic cannot be written now: it is not there, or not granted. Others may be.
            Refused: a record is larger than the bus takes, or the bus is closed.
        """
        ...

    def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read `topics`, sharing offsets under the name `group`; groups never see or slow each other.

        A group's committed offset always wins. `start` says where a group without one begins: "latest" at the end
        as of now, "earliest" and "committed" at the oldest record kept; that place is committed before the first
        record is handed out. `group` None is a broadcast reader: it sees every record from `start` on, keeps no
        offsets and holds nothing back from being forgotten. Within a group each partition goes to one member at a
        time. Whether a new member gets its share at once (memory, Kafka) or stands by until one leaves or dies
        (embedded) is the bus's choice; in either case every partition has an owner soon after.
        `keys`: what a broadcast reader cares about; it may be spared the rest, partitions of which are then in neither
        `owned` nor `position`.
        Who closes: the caller, by leaving the `async with`; uncommitted records go to the next member.
        """
        ...

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        """The newest value of each key of a compacted topic, tombstoned keys left out: for one look. Whoever needs it to stay
        true follows (`bus.follow`). `Refused` for other topics."""
        ...

    def damaged(self) -> int:
        """Files or records that this bus found damaged and put aside since it was opened: what it hands out may be less
        than what was published. 0 where the far side sees to that."""
        ...

    async def end(self, topic: Topic) -> dict[int, int]:
        """Partition -> offset the next record will get: what "caught up" means for a reader at start."""
        ...

    async def count(self, topic: Topic) -> int:
        """How many records are kept. Of a compacted topic a broker knows only how many there were at most: offsets have holes."""
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
