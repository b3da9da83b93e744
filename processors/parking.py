# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be told yet: their container is not in the inventory, or the definition of their id did not come.

They wait, cut out of their frame with its definitions, until the answer comes, the time is over or the room is full; then
they are told with what is known. Nothing leaves here without being told or counted. Neighbours: `processors.inventory`
(the answer), `processors.commit_tracker` (keeps the frame uncommitted meanwhile), `processors.engine`.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection
from typing import Annotated

import msgspec

from processors import rows
from processors.inventory import Inventory
from processors.judge import FrameJudge, Tally
from processors.summaries import FrameCounts
from schemas.behaviour import Behaviour
from schemas.frame import FOLDED, Frame


class ParkingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on events that wait for an identity."""

    max_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=315_360_000, description="Seconds to wait for an identity.", examples=[5.0])
    ] = 5.0
    max_events: Annotated[
        int, msgspec.Meta(ge=0, le=(1 << 31) - 1, description="Events that may wait.", examples=[1000000])
    ] = 1_000_000
    max_bytes: Annotated[
        int,
        msgspec.Meta(ge=0, le=1 << 50, description="Bytes of rows and definitions that may wait.", examples=[67108864]),
    ] = 64 << 20


class Parked(msgspec.Struct, gc=False):
    """Rows of one frame that wait. `frame` holds only them. `behaviours`: of unknown owner; `undefined`: ids."""

    frame: Frame
    frame_counts: FrameCounts
    deadline: float
    events: int
    size: int
    behaviours: tuple[Behaviour, ...]
    undefined: tuple[int, ...]


class Parking:
    """In the order of arrival. `waiting`, `bytes`: events and bytes held now; `total`: events that ever waited."""

    def __init__(self, settings: ParkingSettings) -> None:
        self._settings = settings
        self._held: list[Parked] = []
        self._epoch = -1
        self.waiting = 0
        self.bytes = 0
        self.total = 0

    def add(self, tally: Tally, frame_counts: FrameCounts, now: float, deadline: float | None = None) -> None:
        """Hold what `tally` could not resolve. `deadline`: kept when the rows waited before."""
        wanted = {*tally.parked, *tally.undefined}
        folded = b"".join(FOLDED.pack(*row) for ident in wanted for row in tally.folded.get(ident, ()))
        frame = Frame(
            header=tally.header,
            occurrences=rows.cut(tally, wanted),
            definitions=tally.frame.definitions,
            folded=folded,
        )
        events = sum(tally.count(ident) for ident in wanted)
        size = len(frame.occurrences) + len(frame.definitions) + len(folded)
        if deadline is None:
            deadline = now + self._settings.max_seconds
            self.total += events
        part = Parked(
            frame=frame,
            frame_counts=frame_counts,
            deadline=deadline,
            events=events,
            size=size,
            behaviours=tuple(tally.parked.values()),
            undefined=tuple(tally.undefined),
        )
        insort(self._held, part, key=_deadline)
        frame_counts.open += 1
        self.waiting += events
        self.bytes += size

    def ready(self, inventory: Inventory, judge: FrameJudge) -> list[Parked]:
        """What can be resolved at least in part now, in order, taken out."""
        if not self._held or (self._epoch == inventory.epoch and not any(part.undefined for part in self._held)):
            return []
        self._epoch = inventory.epoch
        found = [part for part in self._held if _resolvable(part, inventory, judge)]
        return self._take(found)

    def give_up(self) -> None:
        """Nobody will say any more who they are: `over` gives all that is held now."""
        for part in self._held:
            part.deadline = -math.inf

    def discard(self, frames: Collection[FrameCounts]) -> None:
        """Rows of frames that another member reads now: it tells them."""
        self._take([part for part in self._held if part.frame_counts in frames])

    def over(self, now: float) -> list[Parked]:
        """What has waited long enough, or must go because the room is full (oldest first), taken out."""
        found = []
        events, size = self.waiting, self.bytes
        for part in self._held:
            if part.deadline > now and events <= self._settings.max_events and size <= self._settings.max_bytes:
                break
            found.append(part)
            events -= part.events
            size -= part.size
        return self._take(found)

    def _take(self, found: list[Parked]) -> list[Parked]:
        if found:
            gone = {id(part) for part in found}
            self._held = [part for part in self._held if id(part) not in gone]
            for part in found:
                part.frame_counts.open -= 1
                self.waiting -= part.events
                self.bytes -= part.size
        return found


def _deadline(part: Parked) -> float:
    return part.deadline


def _resolvable(part: Parked, inventory: Inventory, judge: FrameJudge) -> bool:
    header = part.frame.header
    return any(inventory.find(header.node, behaviour) is not None for behaviour in part.behaviours) or any(
        judge.knows(header, ident) for ident in part.undefined
    )
