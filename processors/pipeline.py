# SPDX-License-Identifier: Apache-2.0
"""Frames to records: the synchronous middle of the stage, a plain function of frames, facts and time.

What is to be published lies in `outbox`, alerts, telemetry and summaries apart; `groups` are the frames whose counts the summaries in
it (or already out of it) speak of. Must never touch the bus. Neighbours: `processors.engine` (publishes, commits),
`processors.judge`, `processors.parking`, `processors.commit_tracker`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from bus.contract import Delivery, Record
from bus.paced_log import PacedLog
from processors import rows
from processors.alerts import Alerts
from processors.clocks import Clocks
from processors.commit_tracker import CommitTracker
from processors.frame_numbers import holds, note
from processors.inventory import Inventory
from processors.judge import FrameJudge, JudgedBehaviour, Tally
from processors.losses import ReportedLosses
from processors.names import Names
from processors.parking import Parked, Parking
from processors.quiet import FROM, Needless, QuietDirectories
from processors.summaries import FrameCounts, count, summaries
from processors.telemetry import telemetry
from schemas import frame as frames
from schemas import summary as summary_words
from schemas import telemetry as telemetry_words
from schemas.errors import DecodeError
from schemas.expand import process_of
from schemas.frame import FrameHeader
from schemas.kernel import Loss
from schemas.operations import Access

_SECOND: Final = 1_000_000_000
_NAMED: Final = 1 << 14
"""Behaviours named to `due` that are remembered; then all are named again, and after `_NAME_AGAIN` seconds too."""
_NAME_AGAIN: Final = 60.0
_RUNS: Final = 4096
"""Agent runs whose last frame number is remembered."""

_UNTOLD: Final = int(Access.UNTOLD)
_bits: Final = int.__and__

_log = logging.getLogger(__name__)

Due = Callable[[FrameHeader, list[int], list[int] | None], None]
"""(of a frame's node, behaviours whose events may be alerts or are asked about one by one, behaviours whose events need only be
counted; None: from now on none)."""


class PipelineCounts(msgspec.Struct):
    """Plain counts since start; see `processors.stats.ProcessorStats`."""

    frames: int = 0
    events: int = 0
    telemetry_events: int = 0
    counted_events: int = 0
    told_unknown: int = 0
    unnamed: int = 0
    undefined: int = 0
    unjudged: int = 0
    repeats: int = 0
    holes: int = 0
    lost: dict[str, int] = {}


class Outbox:
    """Records to be published, by topic."""

    def __init__(self) -> None:
        self.alerts: list[Record] = []
        self.telemetry: list[Record] = []
        self.summaries: list[Record] = []


class Pipeline:
    """`read` frames, `settle` now and then, publish the `outbox`. `log`: whether telemetry is made. `due`: told of each
    behaviour once in a while whether it is needed row by row. `logged()`: whether anybody reads it. `needless`: see `processors.quiet`."""

    def __init__(
        self,
        inventory: Inventory,
        judge: FrameJudge,
        parking: Parking,
        alerts: Alerts,
        tracker: CommitTracker,
        clock: Callable[[], float],
        log: bool = True,
        due: Due | None = None,
        names: Names | None = None,
        logged: Callable[[], bool] | None = None,
        needless: Needless | None = None,
    ) -> None:
        self._logged = logged
        self.quiet = None if needless is None else QuietDirectories(inventory, needless)
        self._due = due
        self._named: dict[int, bool] = {}
        self._logging = True
        self._name_again = 0.0
        self._inventory = inventory
        self._judge = judge
        self._parking = parking
        self._alerts = alerts
        self._tracker = tracker
        self._clock = clock
        self._log = log
        self.names = names or Names()
        self._clocks = Clocks(clock)
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._read: dict[tuple[str, str, str], list[int]] = {}
        self._read_from: dict[tuple[str, str, str], tuple[str, int]] = {}
        self._lost = ReportedLosses()
        self._bugs = PacedLog(_log)
        self.outbox = Outbox()
        self.groups: list[list[FrameCounts]] = []
        self.counts = PipelineCounts()

    def read(self, delivery: Delivery) -> None:
        """One frame: count, judge, tell, park."""
        value = delivery.record.value
        if value is None:
            raise DecodeError(f"expected a frame under key `{delivery.record.key!r}`, got a tombstone; nothing to do")
        frame = frames.decode(value)
        run = (frame.header.node, frame.header.boot, frame.header.run)
        if holds(self._read.get(run, []), frame.header.number):
            # Its node had no answer and sent it again. All of it was told, or is in hand.
            self.counts.repeats += 1
            self._tracker.repeated(delivery)
            return
        # Strictly before any row: what was asked for names where the rows go.
        heard = self._inventory.called.learn(frame.header, frame.answers) if frame.answers else 0
        self.release()
        tally = self._judge.tally(frame)
        waits = bool(tally.parked or tally.undefined)
        if waits or any(entry.rows for entry in tally.entries.values()):
            # Everything that can be wrong with the bytes is found before anything is told.
            _ = tally.processes
        header = frame.header
        times = tally.times
        at = times[0] if times else min((row[2] for found in tally.folded.values() for row in found), default=heard)
        unix = at + header.clock_offset_ns
        frame_counts = FrameCounts(header, unix // _SECOND, self._clock(), self.names, self._inventory.called.name)
        if at:
            self._clocks.heard(header, at)
        self._tell(tally, frame_counts)
        # A frame that brings nothing but losses has no time of its own: the notice takes the latest event's. Where none was heard
        # of, and may never be, a node's frame is of when it was published; a recording's is not.
        of_frame = unix if times or tally.folded else 0
        if not of_frame and header.origin == "ring" and not self._clocks.knows(header):
            of_frame = delivery.record.timestamp_ms * 1_000_000
        self._losses(header, of_frame)
        # Strictly now: one that could not be read to its end is handed out again.
        if run in self._numbers:
            note(self._read.setdefault(run, []), header.number)
            self._read_from[run] = (delivery.topic.name, delivery.partition)
        self.counts.frames += 1
        self.counts.events += len(times) + sum(row[1] for found in tally.folded.values() for row in found)
        self._tracker.open(delivery, frame_counts)
        if waits:
            self._parking.add(tally, frame_counts, self._clock())

    @property
    def losses_wait(self) -> bool:
        """Whether losses are to be told by the clock."""
        return self._lost.waiting

    @property
    def numbers(self) -> Mapping[tuple[str, str, str], int]:
        """(node, boot, run) -> number of the newest frame read, the run heard of last at the end."""
        return self._numbers

    def reached(self, header: FrameHeader) -> int:
        """Number of the newest frame of this header's run that was read; -1: none."""
        return self._numbers.get((header.node, header.boot, header.run), -1)

    def released(self, partitions: Collection[tuple[str, int]]) -> None:
        """Other members read `partitions` (topic name, number) now. What they read in between is no hole if one comes back."""
        self._parking.discard(self._tracker.released(partitions))
        for run in [run for run, place in self._read_from.items() if place in partitions]:
            del self._read_from[run]
            self._numbers.pop(run, None)
            self._read.pop(run, None)

    def release(self) -> None:
        """Tell parked rows whose owner is known by now."""
        for part in self._parking.ready(self._inventory, self._judge):
            self._safely(part.frame.header, part.events, lambda: self._again(part))  # noqa: B023

    def settle(self, closing: bool = False) -> None:
        """Tell what has waited long enough and close the groups that are whole. `closing`: no further frame will come."""
        self.release()
        now = self._clock()
        for part in self._parking.over(now):
            self._safely(part.frame.header, part.events, lambda: self._again(part, give_up=True))  # noqa: B023
        self.outbox.alerts += self._alerts.closing(self._clocks.now, closing)
        # Losses before the first event of their node wait for it, to be told at a time that is true.
        for header, unix, counts, owner in self._lost.due(now, self._clocks.knows, closing):
            identity = owner or self._inventory.node_identity(header.node)
            self.outbox.alerts.append(self._alerts.lost(header, identity, unix or self._clocks.unix(header), counts))
        for group in self._tracker.groups(now, closing):
            events = sum(frame_counts.events for frame_counts in group)
            self._safely(group[0].header, events, lambda: self._count(group))  # noqa: B023
            self.groups.append(group)

    def _count(self, group: list[FrameCounts]) -> None:
        said = [Record(summary.key, summary_words.encode(summary)) for summary in summaries(group)]
        self.outbox.summaries += said
        self.counts.counted_events += sum(frame_counts.events for frame_counts in group)

    def _safely(self, header: FrameHeader, events: int, work: Callable[[], None]) -> None:
        """Do what belongs to one node's frames. They were read, so nothing in them should fail here; if it does, these events
        are told as lost and those of other nodes are not touched."""
        try:
            work()
        except Exception:  # noqa: BLE001 - said with its traceback
            self._bugs.say(
                logging.ERROR, f"{events} events of node `{header.node}` could not be reported in full", exc_info=True
            )
            self.counts.unjudged += events
            self._lost.add(header, 0, [("unjudged", events)])

    def discard(self) -> None:
        """Forget what would be published, and count it as told: for benchmarks and dry runs."""
        self.outbox = Outbox()
        for group in self.groups:
            self._tracker.published(group)
        self.groups.clear()
        self._tracker.done()

    def _again(self, part: Parked, give_up: bool = False) -> None:
        """Judge parked rows again; with `give_up` whatever is not known stays so and is told."""
        tally = self._judge.tally(part.frame)
        header = part.frame.header
        if give_up and tally.parked:
            self.counts.told_unknown += sum(tally.count(ident) for ident in tally.parked)
            for behaviour in tally.parked.values():
                self._inventory.give_up(header.node, behaviour)
            tally = self._judge.tally(part.frame)
        self._tell(tally, part.frame_counts)
        if not give_up and (tally.parked or tally.undefined):
            self._parking.add(tally, part.frame_counts, self._clock(), part.deadline)
        elif tally.undefined:
            missing = sum(tally.count(ident) for ident in tally.undefined)
            self.counts.undefined += missing
            self._lost.add(header, part.frame_counts.second * _SECOND, [("undefined", missing)])

    def _tell(self, tally: Tally, frame_counts: FrameCounts) -> None:
        """Alerts, telemetry and counts of what is resolved."""
        logging = self._log and (self._logged is None or self._logged())
        said = telemetry(tally, self._inventory.peer) if logging else None
        apart = {ident for ident, entry in tally.entries.items() if entry.verdict.needs_arguments}
        alerts = list(self._alerts.of(tally))
        if apart:
            alerts += self._per_occurrence(tally, frame_counts, apart)
        count(frame_counts, tally, apart)
        if self._due is not None:
            self._name(tally, logging)
        self._unnamed(tally)
        self.outbox.alerts += alerts
        if said is not None:
            self.counts.telemetry_events += said.header.events
            self.outbox.telemetry.append(Record(said.header.node.encode(), telemetry_words.encode(said)))

    def _name(self, tally: Tally, logging: bool) -> None:
        """Say of what is new whether it is needed row by row: for alerts, for arguments, for the log."""
        assert self._due is not None
        now, named = self._clock(), self._named
        if now >= self._name_again or len(named) >= _NAMED:
            # The kernel forgets behaviours, and what was said of them.
            named.clear()
            self._name_again = now + _NAME_AGAIN
        if logging and not self._logging:
            named.clear()
            self._due(tally.header, [], None)
            if self.quiet is not None:
                self.quiet.forget()
        self._logging = logging
        rows, counted = [], []
        for ident, entry in tally.entries.items():
            if entry.rows:
                if named.get(ident) is not True:
                    rows.append(ident)
            elif ident not in named and not (logging and entry.log):
                counted.append(ident)
        if rows or counted:
            named.update(dict.fromkeys(rows, True))
            named.update(dict.fromkeys(counted, False))
            self._due(tally.header, rows, counted)
            if self.quiet is not None and len(counted) >= FROM:
                self.quiet.look(tally.header.node, map(tally.entries.__getitem__, counted))

    def _per_occurrence(self, tally: Tally, frame_counts: FrameCounts, apart: set[int]) -> list[Record]:
        """Rows whose verdict hangs on the arguments of each."""
        again: dict[tuple[int, tuple[str, ...]], JudgedBehaviour] = {}
        offset = tally.header.clock_offset_ns
        records: list[Record] = []
        for position in rows.positions(tally, apart):
            row = rows.row(tally, position)
            entry = tally.entries[row[2]]
            arguments = process_of(entry.behaviour, tally.processes, row[5], row[4]).judged
            if arguments:
                key = (row[2], arguments)
                found = again.get(key)
                if found is None:
                    found = again[key] = self._judge.with_arguments(entry, arguments)
                entry = found
            records += self._alerts.row(tally, entry, row)
            frame_counts.add(entry, 1, row[3] + offset, row[3] + offset)
        for ident in apart & tally.folded.keys():
            entry = tally.entries[ident]
            for _, many, first, last, sequence, process in tally.folded[ident]:
                row = (0, 0, ident, first, sequence, process, 0, 0, 0, 0, 0, 0)
                records += self._alerts.row(tally, entry, row, many)
                frame_counts.add(entry, many, first + offset, last + offset)
        return records

    def _unnamed(self, tally: Tally) -> None:
        """Events that a container made too many new ones of to be told by name: counted for it, never judged."""
        for ident, entry in tally.entries.items():
            if _bits(entry.raw.access, _UNTOLD) and not entry.raw.resource:
                many = tally.count(ident)
                self.counts.unnamed += many
                times = tally.times
                at = times[-1] if times else max(row[3] for row in tally.folded[ident])
                self._lost.add(tally.header, at + tally.header.clock_offset_ns, [("unnamed", many)], entry.identity)

    def _losses(self, header: FrameHeader, unix: int) -> None:
        """Count and tell what the node says it lost, and frames that never came."""
        run = (header.node, header.boot, header.run)
        last = self._numbers.pop(run, None)
        self._numbers[run] = header.number if last is None else max(last, header.number)
        if len(self._numbers) > _RUNS:
            oldest = next(iter(self._numbers))
            del self._numbers[oldest]
            self._read_from.pop(oldest, None)
            self._read.pop(oldest, None)
        counts = [
            (Loss(index).name.lower(), many) for index, many in enumerate(header.lost) if many and index < len(Loss)
        ]
        for what, many in counts:
            self.counts.lost[what] = self.counts.lost.get(what, 0) + many
        if last is not None and header.number > last + 1:
            holes = header.number - last - 1
            self.counts.holes += holes
            counts.insert(0, ("frames", holes))
        left = dict(counts)
        for cgroup, index, many in header.lost_by:
            what = Loss(index).name.lower() if index < len(Loss) else ""
            owner = self._inventory.owner(header.node, cgroup)
            if owner is not None and left.get(what, 0) >= many > 0:
                left[what] -= many
                self._lost.add(header, unix, [(what, many)], owner)
        if counts := [(what, many) for what, many in left.items() if many]:
            self._lost.add(header, unix, counts)
