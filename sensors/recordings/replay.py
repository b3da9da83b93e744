# SPDX-License-Identifier: Apache-2.0
"""A recording as a source: the same path as the kernel's rings, without root, at its own pace, faster, or at once.

Frames get a new run id and number, so that readers do not take them for repeats of the recorded run; everything else
stays as recorded unless `rebase` moves the times to now. Must never change a row. Neighbours: `recording`, `sensors.source`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from bus.contract import Record
from schemas import frame as frame_words
from schemas import identity
from schemas.decoding import LATEST_NS
from schemas.errors import DecodeError, Permanent
from schemas.frame import Frame
from sensors.recordings.recording import BlockKind, RecordedEntry, RecordingReader
from sensors.source import Batch


class ReplaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a recording is played."""

    path: Annotated[str, msgspec.Meta(description="The recording.", examples=["examples/recordings/host.hbrk"])] = (
        "examples/recordings/host.hbrk"
    )
    speed: Annotated[
        float,
        msgspec.Meta(
            description="1 plays in real time, 10 ten times as fast, 0 at once.",
            examples=[1.0, 10.0],
            ge=0,
            le=1_000_000,
        ),
    ] = 1.0
    rebase: Annotated[
        bool, msgspec.Meta(description="Move recorded times so that the first is now.", examples=[True])
    ] = True
    repeat: Annotated[
        int,
        msgspec.Meta(description="How often to play it; 0 plays without end.", examples=[1], ge=0, le=(1 << 31) - 1),
    ] = 1
    skip_damaged: Annotated[
        bool, msgspec.Meta(description="Leave damaged blocks out and count them instead of stopping.", examples=[False])
    ] = False
    node: Annotated[
        str, msgspec.Meta(description="Node name to play it under; empty keeps the recorded one.", examples=["node-1"])
    ] = ""
    batch_bytes: Annotated[
        int, msgspec.Meta(description="Frames handed out per drain, in bytes.", examples=[4194304], ge=1, le=1 << 50)
    ] = 4 << 20


class Replay:
    """A `Source` over a recording. `clock()` is in seconds and only differences count. DecodeError as `RecordingReader` says.

    `unreadable`: entries in whole blocks that are no frame or identity, left out; `problem`: what was wrong with the first.
    """

    def __init__(self, settings: ReplaySettings, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.skipped = 0
        self.truncated = 0
        self.unreadable = 0
        self.problem = ""
        self._run = run
        self._clock = clock
        self._number = 0
        self._played = 0
        self._reader = RecordingReader(settings.path, skip_damaged=settings.skip_damaged)
        self.header = self._reader.header
        self._entries: Iterator[RecordedEntry] = iter(self._reader)
        self._next: RecordedEntry | None = None
        self._start = self._first_ns = self._shift = 0.0
        self.finished = False
        try:
            self._advance()
        except BaseException:
            self._reader.close()
            raise
        self._begin()

    def drain(self) -> Batch:
        """Entries that are due by now."""
        frames: list[Frame] = []
        inventory: list[Record] = []
        size = 0
        while not self.finished and self._next is not None and size < self.settings.batch_bytes:
            entry = self._next
            if not self._due(entry):
                break
            try:
                if entry.kind is BlockKind.FRAMES and entry.value is not None:
                    frames.append(self._restamp(entry.value))
                    size += len(entry.value)
                elif entry.kind is BlockKind.INVENTORY:
                    inventory.append(self._rename(entry))
            except Permanent as error:
                self.unreadable += 1
                self.problem = self.problem or str(error)
            self._advance()
            if frames and inventory:
                # The identity comes before the frames that follow it: hand both out, inventory is published first.
                break
        more = self._next is not None and self._due(self._next)
        return Batch(frames=tuple(frames), inventory=tuple(inventory), more=more)

    def release(self) -> None:
        """Nothing to do: the file stays."""

    def close(self) -> None:
        """Close the file."""
        self.finished = True
        self._reader.close()

    def _advance(self) -> None:
        self._next = next(self._entries, None)
        if self._next is not None:
            return
        self.skipped += self._reader.skipped
        self.truncated = self._reader.truncated
        self._reader.close()
        self._played += 1
        if self.settings.repeat and self._played >= self.settings.repeat:
            self.finished = True
            return
        self._reader = RecordingReader(self.settings.path, skip_damaged=self.settings.skip_damaged)
        self._entries = iter(self._reader)
        self._next = next(self._entries, None)
        self.finished = self._next is None
        self._begin()

    def _begin(self) -> None:
        self._start = self._clock()
        if self._next is not None:
            self._first_ns = self._next.time_ns
            self._shift = time.time_ns() - self._next.time_ns if self.settings.rebase else 0

    def _due(self, entry: RecordedEntry) -> bool:
        speed = self.settings.speed
        return speed == 0 or (entry.time_ns - self._first_ns) / 1e9 <= (self._clock() - self._start) * speed

    def _restamp(self, value: bytes) -> Frame:
        frame = frame_words.decode(value)
        offset = frame.header.clock_offset_ns + int(self._shift)
        if not 0 <= offset <= LATEST_NS:
            raise DecodeError(
                f"expected a clock between the years 1970 and 2116 once moved to now, got {offset} ns in frame "
                f"{frame.header.number}; `rebase` off keeps the recorded one"
            )
        header = msgspec.structs.replace(
            frame.header,
            node=self.settings.node or frame.header.node,
            run=self._run,
            number=self._number,
            clock_offset_ns=offset,
            origin="recording",
        )
        self._number += 1
        return msgspec.structs.replace(frame, header=header)

    def _rename(self, entry: RecordedEntry) -> Record:
        node = self.settings.node
        if not node:
            return Record(key=entry.key, value=entry.value)
        key = node.encode() + b"/" + entry.key.partition(b"/")[2]
        if entry.value is None:
            return Record(key=key, value=None)
        who = msgspec.structs.replace(identity.decode(entry.value), node=node)
        return Record(key=key, value=identity.encode(who))
