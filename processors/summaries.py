# SPDX-License-Identifier: Apache-2.0
"""Exact counts per workload, minute and behaviour: what the frames of one second added.

`FrameCounts` are one frame's counts. Those of one agent run are published in order and only when whole, parked rows included, in groups
cut by the data's own seconds: a replay that starts at a committed frame makes the same records, and a store that knows a
record's frames ignores the repeat. Neighbours: `processors.commit_tracker` (order and groups), `schemas.summary`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from processors.called import CALLED
from processors.judge import JudgedBehaviour, Tally
from processors.names import Names
from schemas.behaviour import Behaviour
from schemas.frame import FrameHeader
from schemas.identity import Identity
from schemas.summary import BUCKET_SECONDS, Summary, SummaryEntry

_SECOND: Final = 1_000_000_000
_BUCKET: Final = BUCKET_SECONDS * _SECOND
_SLACK: Final = _SECOND
"""Rows lie in the order of their reservation, which follows the time stamp at once; a second of slack is generous."""
EXACT_ROWS: Final = 8192
"""Up to this many rows `first` and `last` are exact; in a larger frame they are the frame's own, 250 ms wide at most."""


class CalledBehaviour(NamedTuple):
    """A connection to an address that its workload had a name for: rows of their own, so that counts by name are exact."""

    entry: JudgedBehaviour
    name: str


Cell = dict[JudgedBehaviour | CalledBehaviour, list[int]]
"""Judged behaviour -> [count, first, last], Unix ns."""
NameOf = Callable[[Identity, Behaviour, int], str]
"""(whose, behaviour, Unix ns): what the workload called the address then; "" when it had no name for it."""


class FrameCounts:
    """The counts of one frame. `open`: parts of it that are still parked."""

    __slots__ = ("called", "cells", "events", "header", "identities", "names", "open", "received", "second")

    def __init__(
        self,
        header: FrameHeader,
        second: int,
        received: float,
        names: Names | None = None,
        called: NameOf | None = None,
    ) -> None:
        self.header = header
        self.names = names or Names()
        self.called = called
        self.second = second
        self.received = received
        self.open = 0
        self.events = 0
        self.cells: dict[tuple[str, int], Cell] = {}
        self.identities: dict[str, Identity] = {}

    def add(self, entry: JudgedBehaviour, count: int, first: int, last: int) -> None:
        """`count` events of `entry` between Unix ns `first` and `last`, both in one bucket."""
        uid = entry.identity.uid
        self.identities[uid] = entry.identity
        key = (uid, first // _BUCKET)
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = {}
        name = ""
        if self.called is not None and entry.raw.operation in CALLED:
            name = self.called(entry.identity, entry.raw, first)
        listed = self.names.entry(key, entry, count, name)
        _merge(cell, CalledBehaviour(entry, name) if name and listed is entry else listed, count, first, last)
        self.events += count

    def renamed(self, entry: JudgedBehaviour, first: int, last: int) -> bool:
        """Whether the workload had another name for the address of `entry` at Unix ns `last` than at `first`."""
        if self.called is None or entry.raw.operation not in CALLED or first == last:
            return False
        return self.called(entry.identity, entry.raw, first) != self.called(entry.identity, entry.raw, last)


def count(frame_counts: FrameCounts, tally: Tally, apart: set[int]) -> None:
    """Add every judged event of `tally` to `frame_counts`, except ids in `apart` (judged per occurrence, added by the caller)."""
    offset, entries = tally.header.clock_offset_ns, tally.entries
    times = tally.times
    if times:
        low, high = sorted((times[0] + offset, times[-1] + offset))
        if (low - _SLACK) // _BUCKET != (high + _SLACK) // _BUCKET:
            _across(frame_counts, tally, apart, offset)
        elif len(times) <= EXACT_ROWS:
            last = dict(zip(tally.ids, times, strict=True))
            first = dict(zip(tally.ids[::-1], times[::-1], strict=True))
            for ident, many in tally.counts.items():
                entry = entries.get(ident)
                if entry is not None and ident not in apart:
                    start, end = first[ident] + offset, last[ident] + offset
                    start, end = (start, end) if start <= end else (end, start)
                    if not _renamed(frame_counts, tally, ident, start, end):
                        frame_counts.add(entry, many, start, end)
        else:
            for ident, many in tally.counts.items():
                if ident in entries and ident not in apart and not _renamed(frame_counts, tally, ident, low, high):
                    frame_counts.add(entries[ident], many, low, high)
    for ident, found in tally.folded.items():
        entry = entries.get(ident)
        if entry is not None and ident not in apart:
            for _, many, start, end, _, _ in found:
                # A folded count cannot be split: it belongs to the bucket it began in.
                frame_counts.add(entry, many, start + offset, end + offset)


def _renamed(frame_counts: FrameCounts, tally: Tally, ident: int, low: int, high: int) -> bool:
    """Whether the address of `ident` changed its name between these times; then its rows are added, each by its own time."""
    entry = tally.entries[ident]
    if not frame_counts.renamed(entry, low, high):
        return False
    offset = tally.header.clock_offset_ns
    for row, at in zip(tally.ids, tally.times, strict=True):
        if row == ident:
            frame_counts.add(entry, 1, at + offset, at + offset)
    return True


def _across(frame_counts: FrameCounts, tally: Tally, apart: set[int], offset: int) -> None:
    """A frame that touches two buckets: counted per row."""
    buckets = [(at + offset) // _BUCKET for at in tally.times]
    found = Counter(zip(tally.ids, buckets, strict=True))
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    for ident, bucket, at in zip(tally.ids, buckets, tally.times, strict=True):
        first.setdefault((ident, bucket), at)
        last[ident, bucket] = at
    for key, many in found.items():
        entry = tally.entries.get(key[0])
        if entry is not None and key[0] not in apart:
            start, end = sorted((first[key] + offset, last[key] + offset))
            if not frame_counts.renamed(entry, start, end):
                frame_counts.add(entry, many, start, end)
                continue
            for row, bucket, at in zip(tally.ids, buckets, tally.times, strict=True):
                if (row, bucket) == key:
                    frame_counts.add(entry, 1, at + offset, at + offset)


def _merge(cell: Cell, entry: JudgedBehaviour | CalledBehaviour, many: int, first: int, last: int) -> None:
    found = cell.get(entry)
    if found is None:
        cell[entry] = [many, first, last]
        return
    found[0] += many
    if first < found[1]:
        found[1] = first
    if last > found[2]:
        found[2] = last


def summaries(frames: list[FrameCounts]) -> Iterable[Summary]:
    """One record per workload and bucket for consecutive frames of one run."""
    cells: dict[tuple[str, int], Cell] = {}
    identities: dict[str, Identity] = {}
    for frame_counts in frames:
        identities |= frame_counts.identities
        for key, cell in frame_counts.cells.items():
            into = cells.setdefault(key, {})
            for entry, (many, first, last) in cell.items():
                _merge(into, entry, many, first, last)
    header = frames[0].header
    for (uid, bucket), cell in cells.items():
        yield Summary(
            node=header.node,
            run=f"{header.boot}/{header.run}",
            first_frame=header.number,
            last_frame=frames[-1].header.number,
            bucket=bucket * BUCKET_SECONDS,
            identity=identities[uid],
            entries=tuple(_entry(entry, *numbers) for entry, numbers in cell.items()),
        )


def _entry(counted: JudgedBehaviour | CalledBehaviour, many: int, first: int, last: int) -> SummaryEntry:
    entry, name = counted if isinstance(counted, CalledBehaviour) else (counted, "")
    if entry.plain is None:
        entry.plain = msgspec.structs.replace(entry.behaviour, id=0, pid_ns=0, mnt_ns=0)
    verdict = entry.verdict
    return SummaryEntry(
        behaviour=msgspec.structs.replace(entry.plain, detail=name) if name else entry.plain,
        status=entry.outcome.status,
        policy=verdict.policy or "",
        rule=verdict.rule,
        count=many,
        first=first,
        last=last,
    )
