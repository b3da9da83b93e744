# SPDX-License-Identifier: Apache-2.0
"""Which frames are told in full, in which groups their counts are published, and how far offsets may be committed.

::

    taken ─► open (parts are parked) ─► whole ─► group of one data second, in order per run ─► published ─► commit

A group is the unit of a summary record. Offsets are committed only up to a place where no group is cut in two, so a replay
makes the same groups again. Neighbours: `processors.summaries`, `processors.engine` (its `committable` is `done`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from bus.contract import Delivery, Record
from processors.summaries import FrameCounts

Place = tuple[str, int, int]
LINGER: Final = 1.5
"""Seconds after the last frame of a run before its group is closed without a frame of the next second. More than a second
and a frame's own width (250 ms), so that a frame that comes later begins in another second."""


def place_of(delivery: Delivery) -> Place:
    return (delivery.topic.name, delivery.partition, delivery.offset)


_NO_RECORD: Final = Record(b"", None)


class _Taken:
    """Where a delivery lay; `group` numbers the group it was told in; 0 until then, -1 for a dead one or a repeat."""

    __slots__ = ("delivery", "group")

    def __init__(self, delivery: Delivery) -> None:
        # Without its record: while one frame waits for a container's name, all that came after it are kept here.
        self.delivery = Delivery(delivery.topic, delivery.partition, delivery.offset, _NO_RECORD)
        self.group = 0


class CommitTracker:
    """`taken` when handed out, `open` when read, `groups` when whole, `published` when their counts are, `done` when committing."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, int], deque[_Taken]] = {}
        self._taken: dict[Place, _Taken] = {}
        self._counts: dict[Place, FrameCounts] = {}
        self._places: dict[FrameCounts, Place] = {}
        self._runs: dict[tuple[str, str, str], deque[FrameCounts]] = {}
        self._group = 0

    @property
    def open_frames(self) -> int:
        """Frames read and not told in full yet."""
        return len(self._counts)

    def taken(self, deliveries: list[Delivery]) -> None:
        """The bus handed these out, in order per partition."""
        for delivery in deliveries:
            place = place_of(delivery)
            if place not in self._taken:
                item = self._taken[place] = _Taken(delivery)
                self._queues.setdefault(place[:2], deque()).append(item)

    def knows(self, delivery: Delivery) -> bool:
        """Whether this delivery was read before: the pump hands a batch out again when publishing failed."""
        place = place_of(delivery)
        item = self._taken.get(place)
        return place in self._counts or (item is not None and item.group > 0)

    def open(self, delivery: Delivery, frame_counts: FrameCounts) -> None:
        """A frame was read; its counts are in `frame_counts`."""
        place = place_of(delivery)
        self.taken([delivery])
        self._counts[place] = frame_counts
        self._places[frame_counts] = place
        header = frame_counts.header
        self._runs.setdefault((header.node, header.boot, header.run), deque()).append(frame_counts)

    def dead(self, delivery: Delivery) -> bool:
        """The pump buries this one: it holds nothing back. Whether that is news: in halves of a batch it comes again."""
        self.taken([delivery])
        item = self._taken[place_of(delivery)]
        news, item.group = item.group != -1, -1
        return news

    def repeated(self, delivery: Delivery) -> None:
        """What is in this one was read before, from a lower offset: it holds nothing back."""
        self.taken([delivery])
        self._taken[place_of(delivery)].group = -1

    def groups(self, now: float, everything: bool = False) -> list[list[FrameCounts]]:
        """Groups that are whole and closed, taken out of their runs. `everything`: do not wait for the next second."""
        found = []
        for run, queue in list(self._runs.items()):
            while queue:
                group = []
                for frame_counts in queue:
                    if frame_counts.open or frame_counts.second != queue[0].second:
                        break
                    group.append(frame_counts)
                if not group:
                    break
                if len(group) == len(queue):
                    closed = everything or now - group[-1].received >= LINGER
                else:
                    closed = queue[len(group)].second != group[0].second
                if not closed:
                    break
                for _ in group:
                    queue.popleft()
                found.append(group)
            if not queue:
                del self._runs[run]
        return found

    def published(self, group: list[FrameCounts]) -> None:
        """The counts of `group` are published."""
        self._group += 1
        for frame_counts in group:
            # A frame of a partition that another member has now is not known here any more.
            place = self._places.pop(frame_counts, None)
            if place is not None:
                del self._counts[place]
                self._taken[place].group = self._group

    def released(self, partitions: Collection[tuple[str, int]]) -> set[FrameCounts]:
        """Other members have `partitions` (topic name, number) now: forget their frames. Their counts that were not published."""
        for partition in partitions:
            for item in self._queues.pop(partition, ()):
                del self._taken[place_of(item.delivery)]
        gone = {frame_counts for frame_counts, place in self._places.items() if place[:2] in partitions}
        for frame_counts in gone:
            del self._counts[self._places.pop(frame_counts)]
        for run, queue in list(self._runs.items()):
            kept = deque(frame_counts for frame_counts in queue if frame_counts not in gone)
            if kept:
                self._runs[run] = kept
            else:
                del self._runs[run]
        return gone

    def done(self) -> list[Delivery]:
        """The last delivery per partition, without its record, up to which everything is told and no group is cut; forgotten
        here."""
        last = []
        for queue in self._queues.values():
            cut = self._cut(queue)
            if cut:
                for _ in range(cut):
                    item = queue.popleft()
                    del self._taken[place_of(item.delivery)]
                last.append(item.delivery)
        return last

    @staticmethod
    def _cut(queue: deque[_Taken]) -> int:
        reach: dict[int, int] = {}
        for index, item in enumerate(queue):
            if item.group > 0:
                reach[item.group] = index
        cut = far = 0
        for index, item in enumerate(queue):
            if item.group == 0:
                break
            far = max(far, reach.get(item.group, index))
            if far == index:
                cut = index + 1
        return cut
