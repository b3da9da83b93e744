# SPDX-License-Identifier: Apache-2.0
"""What of the spool lies on disk: one segmented log per topic, the place up to which each was drained, and what was shed.

Everything here runs in the spool's own thread, but for the numbers that the loop reads. What was shed counts as told only once
the place in its log is saved behind it: a process that is killed in between finds the hole again. Neighbours: `spool` (the
loop's half), `bus.embedded.segments` (the log).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from bus.contract import Record
from bus.disk import LEAST_SEGMENT, capped
from bus.embedded.database import PAGE_BYTES, Corrupt
from bus.embedded.offsets import Offsets
from bus.embedded.segments import SegmentedLog
from bus.permissions import private_directory
from schemas.errors import DiskFull, HauberkError
from schemas.topics import BY_NAME, Topic

logger = logging.getLogger(__name__)

SHED_ORDER: Final = (
    ("events.raw", "telemetry"),
    ("summaries",),
    ("inventory", "policies", "enforcement.desired", "enforcement.status", "progress", "nodes", "dead"),
    ("alerts",),
)
"""Shed from left to right. State (inventory, policies, plans, receipts) is small and published again; alerts are neither.
A topic that is not named here goes with the state."""
_NAMED: Final = frozenset(name for names in SHED_ORDER for name in names)
_GROUP: Final = "spool"
Row = tuple[int, Record]
"""(offset, record)."""


DAMAGED: Final = "files of the spool were damaged, lie aside as `*.corrupt`, and held so many at most"


class Shed(msgspec.Struct, frozen=True):
    """`records` of `topic` that were shed and nobody was told of yet; `first`: offset in the spool, the same for a repeat. `reason`:
    "damaged" where they could not be read any more."""

    topic: str
    records: int
    first: int
    why: str
    reason: Literal["shed", "damaged"] = "shed"


class SpoolLine:
    """One topic's queue on disk: everything below `position` is done with, below `sent` the bus has it; `under_way` counts
    publishers that are writing to it.

    `gaps`: (first, past, why) of what was shed and may yet turn out to be in the batch under way; `untold`: what was shed for good,
    `damaged`: what could not be read. `unused`: offsets that no record was given, because those go on far above a damaged segment.
    """

    def __init__(self, topic: Topic, log: SegmentedLog, position: int, end: int) -> None:
        self.topic = topic
        self.log = log
        self.position = self.sent = position
        self.end = end
        self.under_way = 0
        self.draining = False
        self.gaps: list[tuple[int, int, str]] = []
        self.untold: Shed | None = None
        self.damaged: Shed | None = None
        self.unused: list[tuple[int, int]] = []

    def records(self, first: int, past: int) -> int:
        """How many records `first`..`past` - 1 are."""
        unused = sum(max(0, min(past, high) - max(first, low)) for low, high in self.unused)
        return max(0, past - first - unused)

    @property
    def waiting(self) -> int:
        """Records that are not done with."""
        return self.records(self.position, self.end)

    @property
    def to_tell(self) -> bool:
        """Whether there is a loss that nobody was told of."""
        return self.untold is not None or self.damaged is not None

    @property
    def behind(self) -> bool:
        return self.under_way > 0 or self.position < self.end

    @property
    def busy(self) -> bool:
        """Whether the drain has anything to do here."""
        return self.next < self.end or self.to_tell

    @property
    def next(self) -> int:
        """The offset to drain next. What was sent but not saved, because a loss could not be told, is not sent again."""
        return max(self.position, self.sent)


class SpoolLines:
    """The lines in `root`. `shed` counts records by topic name, `damaged` those of them that could not be read, and `size` the bytes on disk, as of the last look. `unreadable`: topics
    whose files could not be read, for who asks next to take out."""

    def __init__(self, root: Path, max_bytes: int, max_age: float, clock: Callable[[], float]) -> None:
        private_directory(root)
        self._root = root
        # Half of the disk at most, as the embedded bus: what is over goes before there is no room for the newest.
        self._max_bytes = capped(max_bytes, root, 2)
        self._max_age = max_age
        self._clock = clock
        # A 32nd of the cap: shedding goes by whole segments, and must not throw away half the spool at once.
        self._segment_bytes = max(LEAST_SEGMENT, self._max_bytes // 32)
        self._offsets = Offsets(root)
        self._lines: dict[str, SpoolLine] = {}
        self._grown = 0
        self._why = ""
        self.shed: dict[str, int] = {}
        self.damaged: dict[str, int] = {}
        self.unreadable: dict[str, HauberkError] = {}
        self.size = 0
        self.full = 0

    def __iter__(self) -> Iterator[SpoolLine]:
        return iter(list(self._lines.values()))

    def get(self, topic: Topic) -> SpoolLine | None:
        """The line of `topic`, if it has one. From any thread."""
        return self._lines.get(topic.name)

    def find(self) -> None:
        """Open what an earlier process left."""
        for name, topic in BY_NAME.items():
            if (self._root / name).exists():
                self.open(topic)
        self.tidy()

    def open(self, topic: Topic) -> SpoolLine:
        """The line of `topic`, made when it has none."""
        line = self._lines.get(topic.name)
        if line is None:
            log = SegmentedLog(
                self._root / topic.name, durable=False, segment_bytes=self._segment_bytes, segment_age=600.0
            )
            position = self._place(topic) or 0
            log.raise_floor(position)
            low, end = log.span()
            if low > position and self._offsets.quarantined:
                logger.error(
                    "the place of `%s` in the spool was damaged: what is left is sent, perhaps again; whether anything before it was lost "
                    "and not told, nobody knows",
                    topic.name,
                )
                position = low
            line = self._lines[topic.name] = SpoolLine(topic, log, position, end)
            if low > position:
                # Shed by a process that was killed before it could tell.
                self._why = "it was over its cap when the process before this one ended"
                self._lost(line, low)
        return line

    def _place(self, topic: Topic) -> int | None:
        try:
            return self._offsets.of(_GROUP, topic.name)
        except Corrupt:
            # It was put aside, and begins anew.
            return self._offsets.of(_GROUP, topic.name)

    def append(self, line: SpoolLine, records: list[Record]) -> int:
        """Write `records`; the offset after the last. DiskFull only when shedding made no room."""
        while True:
            try:
                first = line.log.append(records)
                break
            except DiskFull:
                self.full += 1
                self._why = "the disk was full"
                # Somebody else may have filled it: then the spool is far below its cap, and still has to give.
                if not self._make_room(self._max_bytes // 8, least=self._segment_bytes):
                    raise
        if first > line.end:
            line.unused.append((line.end, first))
        line.end = first + len(records)
        # A transaction takes two pages at least, however small the record is.
        self._grown += max(2 * PAGE_BYTES, sum(record.size for record in records))
        # Looking at every file for each record would cost more than writing it.
        if self._grown * 4 >= self._segment_bytes:
            self._grown = 0
            line.log.rotate(self._clock())
            for one in self:
                # Nobody else empties the write-ahead logs here, and they count too.
                one.log.checkpoint(self._segment_bytes // 2)
            self._make_room(0)
        return first + len(records)

    def tidy(self) -> None:
        """Shed what is too old, also while nothing is written."""
        for line in self:
            line.log.rotate(self._clock())
        self._make_room(0)

    def oldest(
        self, passed_over: Collection[str] = (), *, telling: bool = True
    ) -> tuple[SpoolLine, int, list[Row], int] | None:
        """(line, offset of the first, rows, offset after the last) of the line whose head is the oldest; it is `draining` until
        `published` or `settle`. `passed_over`: topics that are left alone; `telling`: a line that has but a loss to tell counts too."""
        chosen = gone = None
        oldest = 0
        for line in self:
            if line.topic.name in passed_over or not (line.next < line.end or (line.to_tell and telling)):
                continue
            head = self._read(line, 1, 1) if line.next < line.end else []
            if head is None:
                continue
            self._unread(line, head)
            if not head:
                # Gone altogether: nothing to publish, only a place to move and a loss to tell. Last: `alerts` may be away.
                gone = line
                continue
            at = head[0][1].timestamp_ms
            if chosen is None or at < oldest:
                chosen, oldest = line, at
        if chosen is None:
            return None if gone is None else (gone, gone.end, [], gone.end)
        found = self._read(chosen, 1000, self.batch_bytes)
        if not found:
            return None
        self._unread(chosen, found)
        # Up to the first record that cannot be read: that one is met by the next call.
        found = [row for index, row in enumerate(found) if row[0] == found[0][0] + index]
        chosen.draining = True
        return chosen, found[0][0], found, found[-1][0] + 1

    def _unread(self, line: SpoolLine, found: list[Row]) -> None:
        """What lies before `found`, all that there is from `line.next` on, was there and cannot be read."""
        past = found[0][0] if found else line.end
        if past > line.next:
            self._gone(line, past, DAMAGED)

    def _read(self, line: SpoolLine, most: int, max_bytes: int) -> list[Row] | None:
        """From `line.next` on; None when its file cannot be read now, which is nothing to the other lines."""
        try:
            return line.log.read(line.next, most, max_bytes).found
        except DiskFull:
            # There is no room for any reader then.
            raise
        except HauberkError as error:
            self.unreadable[line.topic.name] = error
            return None

    batch_bytes = 1 << 20

    def published(self, line: SpoolLine, first: int, past: int, *, more: bool = False) -> None:
        """Records `first`..`past` - 1 were written, so they were not lost, whatever was shed meanwhile. `more` of the batch follow."""
        line.gaps = [
            part
            for low, high, why in line.gaps
            for part in ((low, min(high, first), why), (max(low, past), high, why))
            if part[0] < part[1]
        ]
        line.sent = max(line.sent, past)
        if not more:
            self.settle(line)

    def settle(self, line: SpoolLine) -> None:
        """Nothing of `line` is under way any more: what was shed of it is lost."""
        line.draining = False
        gaps, line.gaps = line.gaps, []
        name = line.topic.name
        for low, high, why in gaps:
            records = line.records(low, high)
            if not records:
                continue
            self.shed[name] = self.shed.get(name, 0) + records
            if why == DAMAGED:
                self.damaged[name] = self.damaged.get(name, 0) + records
                line.damaged = _with(line.damaged, Shed(name, records, low, why, "damaged"))
            else:
                line.untold = _with(line.untold, Shed(name, records, low, why))

    def to_tell(self, line: SpoolLine) -> tuple[list[Shed], int]:
        """What is to be told, and the place up to which everything is published or in it: for `advance`, once it was told."""
        sheds = [shed for shed in (line.untold, line.damaged) if shed is not None]
        line.untold = line.damaged = None
        return sheds, line.next

    def not_told(self, line: SpoolLine, sheds: list[Shed]) -> None:
        """Together with what was shed meanwhile, next time."""
        for shed in sheds:
            if shed.reason == "damaged":
                line.damaged = _with(shed, line.damaged)
            else:
                line.untold = _with(shed, line.untold)

    def advance(self, line: SpoolLine, position: int) -> None:
        """Everything below `position` is published, or lost and told. What was shed since lies behind it."""
        line.position = max(line.position, position)
        line.unused = [part for part in line.unused if part[1] > line.position]
        saved = [(_GROUP, line.topic.name, position)]
        try:
            self._offsets.commit(saved, durable=False)
            self._drop_drained(line)
        except DiskFull:
            # The other way round frees what is drained: a process that is killed in between tells a loss that was none. Where that
            # is not enough the place is kept in memory, and a kill has what was sent since sent again.
            self.full += 1
            with suppress(DiskFull):
                self._drop_drained(line)
                self._offsets.commit(saved, durable=False)
        if not line.busy:
            self.size = sum(one.log.size() for one in self)

    def _drop_drained(self, line: SpoolLine) -> None:
        with suppress(DiskFull):
            # A successor takes room; without one the segment stays.
            line.log.rotate(self._clock(), force=line.position >= line.end and line.log.size() > self._segment_bytes)
        line.log.drop(line.position, 0, 1 << 62)

    def close(self) -> None:
        for line in self:
            line.log.close()
        self._offsets.close()

    def _make_room(self, extra: int, least: int = 0) -> int:
        """Drop what was drained or is too old, then shed in order until the cap (less `extra`) holds and `least` bytes are free of
        it. Bytes that were freed."""
        before = sum(line.log.size() for line in self)
        oldest_ms = int((self._clock() - self._max_age) * 1000)
        why, self._why = self._why, f"it was older than {self._max_age:g} s"
        for line in self:
            line.log.drop(line.position, oldest_ms, 1 << 62)
            self._look(line)
        self._why = why if extra else f"the spool was over its {self._max_bytes >> 20} MiB"
        self.size = sum(line.log.size() for line in self)
        over = max(self.size - self._max_bytes + extra, least - (before - self.size))
        for names in SHED_ORDER:
            for line in self:
                name = line.topic.name
                if name not in names and not (name not in _NAMED and "inventory" in names):
                    continue
                if over <= 0:
                    return before - self.size
                if len(line.log.bases()) == 1:
                    with suppress(DiskFull):
                        line.log.rotate(self._clock(), force=True)
                _, freed = line.log.drop(line.position, 0, max(0, line.log.size() - over))
                self._look(line)
                over -= freed
                self.size -= freed
        return before - self.size

    def _look(self, line: SpoolLine) -> None:
        bases = line.log.bases()
        if bases and bases[0] > line.next:
            self._lost(line, bases[0])

    def _lost(self, line: SpoolLine, past: int) -> None:
        """Everything from `line.next` to `past` is gone: by damage where a file was put aside, otherwise for the reason of now."""
        for low, high in line.log.damaged():
            if high > line.next and low < past:
                self._gone(line, low, self._why)
                self._gone(line, min(high, past), DAMAGED)
        self._gone(line, past, self._why)

    def _gone(self, line: SpoolLine, past: int, why: str) -> None:
        # No record was given an offset from the end on.
        past = min(past, line.end)
        if past <= line.next:
            return
        line.gaps.append((line.next, past, why))
        line.position = past
        if not line.draining:
            self.settle(line)


def _with(first: Shed | None, later: Shed | None) -> Shed | None:
    """Both as one."""
    if first is None or later is None:
        return first or later
    return Shed(first.topic, first.records + later.records, first.first, later.why, first.reason)
