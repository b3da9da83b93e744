# SPDX-License-Identifier: Apache-2.0
"""The live source: the two rings and the maps that the loader has pinned, drained into frames.

Occurrences are taken first and definitions second, so every id in a chunk is defined, but for the races of `parking`.
Space is given back to the kernel only when the frames are safe (`release`). Must never wait and never load anything.
Neighbours: `pins` (what is open), `definitions`, `frames`, `late_rows`, `losses`, `definition_log`, `agent`.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from typing import Final

from kernel.ring import TAKE_BYTES
from schemas.frame import Frame, FrameHeader
from schemas.kernel import STRIDE, DefinitionKind
from schemas.wakeup import Sleep
from sensors.node.boot import boot_id, clock_offset_ns
from sensors.node.definition_log import DefinitionLog
from sensors.node.definitions import Definitions
from sensors.node.frames import Fold, columns, frames
from sensors.node.heard import Heard
from sensors.node.late_rows import LateRows
from sensors.node.losses import KernelLosses
from sensors.node.pins import Pins
from sensors.node.places import look_around
from sensors.node.ring_settings import RingSettings as RingSettings
from sensors.node.ring_settings import RingStats as RingStats
from sensors.node.wanted import Wanted
from sensors.source import Batch

log = logging.getLogger(__name__)

_FRAMES_FOLDED: Final = 4
"""Frames of one drain when folding does not help (every behaviour new): what memory pays."""
_FOLD_FROM: Final = 64 * STRIDE
"""Bytes of a chunk from which counting pays."""
_MANY_NEW: Final = 64 * 1024
"""Bytes in the ring of definitions from which rows are taken `_FEW_ROWS` bytes at a time: each of them may have to be judged, some 50
us each, and what is judged first may spare the kernel the names of the rest (kernel/programs/quiet.c)."""
_FEW_ROWS: Final = 512 * STRIDE
_PIECE: Final = 128 * 1024
_LOSSES_EVERY: Final = 0.1
_OBSERVE_EVERY: Final = 1.0
_CGROUPS_SEEN: Final = 1 << 16

OnCgroup = Callable[[int, str | None, bool], None]
"""(cgroup id, path or None when it was only seen in use, whether it is gone). Called inside `drain`; must not wait."""


class RingSource:
    """A `Source` over pins. KernelError when a pin is missing or of another build; SettingsError for `state_dir`.

    Plain counters, read by the agent: `events rows folded undefined lost`; `stats` has them for metrics. `run` names
    this agent's run. `wanted`: what the processor of this process needs one by one, and by name.
    """

    finished = False

    def __init__(
        self, pin_dir: str, node: str, run: str, settings: RingSettings, on_cgroup: OnCgroup | None = None
    ) -> None:
        self.settings = settings
        self.events = self.rows = self.folded = self.undefined = self.unlogged = 0
        self._node, self._run = node, run
        self._boot = boot_id()
        self._architecture = platform.machine()
        self._on_cgroup = on_cgroup
        self._cgroups: set[int] = set()
        self._number = 0
        self._resting = False
        self._heard = Heard()
        self._losses_at, self._observed_at = 0.0, float("-inf")
        self._parked_from = self._barrier = 0
        self._pins = Pins(pin_dir)
        self.wanted = Wanted(self._pins)
        self._occurrences, self._ring = self._pins.occurrences, self._pins.definitions
        self._definitions = Definitions(
            settings.definitions_bytes, self._pins.forget, self._saw, self._cgroup, self._pins.living
        )
        self._parking = LateRows(self._pins, self._definitions, self._learn)
        self._log: DefinitionLog | None = None
        try:
            self._losses = KernelLosses(self._pins)
            self._recall(settings.state_dir)
            look_around(self._definitions.place)
            self.exclude(os.getpid())
        except BaseException:
            self._pins.close()
            raise

    @property
    def definitions_bytes(self) -> int:
        """Memory that definitions take now."""
        return self._definitions.held_bytes

    @property
    def lost(self) -> list[int]:
        """Losses this agent has read, indexed by `Loss`."""
        return self._losses.total

    @property
    def stats(self) -> RingStats:
        """The counts as of now."""
        return RingStats(
            rows=self.rows,
            folded=self.folded,
            undefined=self.undefined,
            unlogged=self.unlogged,
            discarded=self._occurrences.discarded + self._ring.discarded,
        )

    @property
    def parked(self) -> int:
        """Rows that wait here for their definitions."""
        return len(self._parking.rows) // STRIDE

    @property
    def fill(self) -> float:
        """0..1: how much of the occurrences ring the kernel cannot reuse."""
        return self._occurrences.held / self._occurrences.size

    def exclude(self, pid: int) -> None:
        """Have the kernel ignore what process `pid` (host tgid) does, until `close`."""
        self._pins.exclude(pid)

    @property
    def calls(self) -> int:
        """A descriptor that is readable when the kernel calls: a ring is half full, or it was asked to (`rest`). `heard` makes it
        quiet again."""
        return self._pins.calls.fileno()

    def heard(self) -> None:
        """The call was heard."""
        self._pins.calls.poll(0)

    def rest(self, how: Sleep) -> bool:
        """Have the kernel call when something comes, until the next drain. False when that has happened already, or when rows
        wait here."""
        if self._parking.rows:
            return False
        self._resting = True
        self._pins.sleep(how)
        if how is Sleep.DOZING:
            return not self._pins.haste()
        return self._occurrences.empty and self._ring.empty

    def in_hand(self, events: int) -> None:
        """Leave word that so many events are in this process's hands alone."""
        self._pins.in_hand(events)

    def take_over(self) -> int:
        """Count as lost what a killed agent had in its hands. Once in a process: `reopen` finds its own."""
        return self._pins.take_over()

    def observe(self) -> None:
        """Have the kernel report events from now on. `drain` does so too, and goes on asking."""
        self._observed_at = time.monotonic()
        if self._pins.observe():
            # What began meanwhile was not announced, and would be met as known.
            self._pins.forget_all()
            log.warning(
                "these rings were not drained for a minute, so nothing was observed until now; enforcement went on, "
                "and the calls meanwhile are counted as lost (`unread`)"
            )

    def spare(self, step: int) -> None:
        """Have the kernel announce fewer new names: the budget halved `step` times."""
        self._pins.spare(step)

    def drain(self) -> Batch:
        """Frames of what lies in the ring, at most `drain_bytes` of rows (all of it when folding)."""
        settings = self.settings
        if self._resting:
            self._resting = False
            self._pins.sleep(Sleep.AWAKE)
        hasty = bool(self._parking.rows) or self._pins.haste()
        # Strictly before anything is taken: what comes from here on and is not taken is noted.
        self._pins.calm()
        fill = self.fill
        folding = settings.fold == "always" or (settings.fold == "pressure" and fill >= settings.pressure)
        now = time.monotonic()
        if now - self._observed_at >= _OBSERVE_EVERY:
            # Also at the first drain of all: from here on there is somebody to empty the rings.
            self.observe()
        if fill >= 0.25 or now - self._losses_at >= _LOSSES_EVERY:
            self._losses_at = now
            self._losses.read()
        self._parking.hurry = fill >= 0.25
        made: list[Frame] = []
        more = self._drain_folding(made) if folding else self._drain_rows(made)
        self._heard.into(made, self._stamp, settings.frames.limit_bytes)
        if self._losses.waiting and not made:
            made = [Frame(header=self._stamp(events=0, undefined=0), occurrences=b"", definitions=b"")]
        hasty = hasty or self._pins.haste() or any(any(frame.header.lost) for frame in made)
        return Batch(frames=tuple(made), more=more, fill=fill, hasty=hasty)

    def release(self) -> None:
        """Give the drained space back to the kernel and remember which losses were told."""
        # Parked rows are in nobody's hands yet: their space, and all after it, stays.
        self._occurrences.release(self._parked_from if self._parking.rows else None)
        self._losses.published()

    def finish(self) -> Batch:
        """The last drain: also what was waiting for definitions goes out."""
        patience, self._parking.patience = self._parking.patience, 0.0
        self._losses_at = 0.0
        try:
            return self.drain()
        finally:
            self._parking.patience = patience

    def close(self) -> None:
        """Give fds and mappings back; pins and what lies in the rings stay."""
        self._pins.close()
        if self._log is not None:
            self._log.close()

    def _drain_rows(self, made: list[Frame]) -> bool:
        left = self.settings.drain_bytes
        limit = self.settings.frames.limit_bytes
        # A quarter is left for definitions; more of them than that, and the frame is split.
        room = limit * 3 // 4
        if self._ring.waiting > _MANY_NEW:
            left = min(left, _FEW_ROWS)
        parked = self._parking.take()
        while left > 0:
            if not parked and not self._parking.rows:
                self._parked_from = self._occurrences.position
            wanted = min(room, left, TAKE_BYTES)
            chunk = self._occurrences.take_table(wanted)
            if not chunk and not parked:
                self._learn()
                return not self._occurrences.emptied
            # Producers go on, but chasing them would make frames of a few rows.
            left = 0 if self._occurrences.emptied else left - len(chunk)
            rows = parked + chunk
            parked = b""
            behaviours, processes = columns(rows)
            self._learn(behaviours)
            if not self._fold_countable(rows, made):
                closure = self._definitions.closure(behaviours, processes)
                if closure.missing.total:
                    rows, closure = self._parking.sort_out(rows, closure)
                if rows:
                    made += frames(rows, closure, self._definitions, self._stamp, limit)
                    self.rows += len(rows) // STRIDE
            self._settle()
        if not self._occurrences.emptied:
            return True
        self._learn()
        return False

    def _fold_countable(self, rows: bytes, made: list[Frame]) -> bool:
        """Make frames of `rows` with what may be counted folded. False when there is nothing to gain, or something is missing."""
        if self.settings.fold == "never" or len(rows) < _FOLD_FROM or not self.wanted.countable:
            return False
        fold = Fold(self.settings.frames, only=self.wanted.countable)
        fold.add(rows)
        kept, folded = fold.rows, fold.folded
        if not folded:
            return False
        processes = fold.processes | (columns(kept)[1] if kept else set())
        closure = self._definitions.closure(fold.behaviours, processes)
        if closure.missing.total:
            return False
        count = len(kept) // STRIDE
        counted = fold.events - count
        limit = self.settings.frames.limit_bytes
        made += frames(kept, closure, self._definitions, self._stamp, limit, folded, counted)
        self.rows += count
        self.folded += counted
        return True

    def _drain_folding(self, made: list[Frame]) -> bool:
        left = self._occurrences.size
        limit = self.settings.frames.limit_bytes
        fold = Fold(self.settings.frames)
        if parked := self._parking.take():
            fold.add(parked)
        while left > 0:
            chunk = self._occurrences.take_table(TAKE_BYTES)
            if chunk:
                fold.add(chunk)
                self._learn(fold.behaviours)
            if self._occurrences.emptied:
                break
            left -= len(chunk)
            if fold.size >= limit // 2:
                self._close_fold(fold, made)
                fold = Fold(self.settings.frames)
                if len(made) >= _FRAMES_FOLDED:
                    return True
        if fold.events:
            self._close_fold(fold, made)
        return left <= 0

    def _close_fold(self, fold: Fold, made: list[Frame]) -> None:
        rows, folded = fold.rows, fold.folded
        behaviours, processes = fold.behaviours, fold.processes
        if rows:
            processes |= columns(rows)[1]
        closure = self._definitions.closure(behaviours, processes)
        if closure.missing.total:
            closure = self._parking.look(rows, closure, behaviours, processes)
            self._parking.give_up(rows, closure, behaviours)
        count = len(rows) // STRIDE
        counted = fold.events - count
        made += frames(
            rows, closure, self._definitions, self._stamp, self.settings.frames.limit_bytes, folded, counted
        )  # fmt: skip
        self.rows += count
        self.folded += counted
        self._settle()

    def _learn(self, wanted: set[int] | None = None) -> None:
        # Only until `wanted` are known, when a backlog is worked off: the ring keeps what later rows will need, in order,
        # and this memory need not. Once around at most: under a flood of new ids producers may be as fast as this loop.
        end = self._ring.position + self._ring.size
        while self._ring.position < end and not (wanted is not None and self._definitions.knows(wanted)):
            before = self._ring.position
            self._take_in(self._ring.take_records(_PIECE))
            # A piece may be all discarded, with more behind it.
            if self._ring.position == before:
                return

    def _settle(self) -> None:
        rotations = self._definitions.rotations
        self._definitions.settle(behind=self._occurrences.position < self._barrier)
        if self._definitions.rotations != rotations:
            # Rows up to here may use what the kernel was just told to forget.
            self._barrier = self._occurrences.position + self._occurrences.waiting
            if self._log is not None:
                self._logged(lambda log: log.rewrite(self._definitions.records()), 0)

    def _take_in(self, records: list[bytes]) -> None:
        records = self._heard.sort_out(records)
        self._definitions.learn(records)
        if self._log is not None:
            # Strictly before the release: what the ring no longer holds must be on file.
            if self._log.size > 4 * self.settings.definitions_bytes:
                self._logged(lambda log: log.rewrite(self._definitions.records()), len(records))
            else:
                self._logged(lambda log: log.append(records), len(records))
        self._ring.release()

    def _logged(self, write: Callable[[DefinitionLog], None], count: int) -> None:
        # A full disk costs only what a kill would: ids that have to be announced again.
        try:
            if self._log is not None:
                write(self._log)
        except OSError:
            self.unlogged += count

    def _cgroup(self, kind: DefinitionKind, ident: int, body: bytes) -> None:
        gone = kind is DefinitionKind.CGROUP_GONE
        if gone:
            self._cgroups.discard(ident)
        else:
            self._cgroups.add(ident)
        if self._on_cgroup is not None:
            self._on_cgroup(ident, os.fsdecode(body) if body else None, gone)

    def _saw(self, cgroup: int) -> None:
        if cgroup in self._cgroups:
            return
        if len(self._cgroups) >= _CGROUPS_SEEN:
            self._cgroups.clear()
        self._cgroups.add(cgroup)
        if self._on_cgroup is not None:
            self._on_cgroup(cgroup, None, False)

    def _stamp(self, *, events: int, undefined: int) -> FrameHeader:
        lost, by = self._losses.take()
        header = FrameHeader(
            node=self._node, boot=self._boot, run=self._run, number=self._number,
            clock_offset_ns=clock_offset_ns(), events=events, lost=lost, undefined=undefined,
            architecture=self._architecture, lost_by=by,
        )  # fmt: skip
        self._number += 1
        self.events += events
        self.undefined += undefined
        return header

    def _recall(self, state_dir: str) -> None:
        # What was announced before this agent: from the file, or the kernel is made to say everything again.
        if state_dir:
            self._log = DefinitionLog(os.path.join(state_dir, "definitions"), f"{self._boot} {self._pins.load}")
            if self._log.known:
                self._definitions.learn(self._log.read())
                return
        self._pins.forget_all()
