# SPDX-License-Identifier: Apache-2.0
"""Hot: a chunk of the occurrences ring and the definitions it uses become frames. No loop over events in Python.

The distinct ids come from a set over one strided column (about 45 ns an event); everything else is per chunk or per
distinct id. A frame over `limit_bytes` is split in halves, each with its own definitions, so each stays self-contained.

Folding. Under pressure, rows of an id that repeats very often are counted instead of kept: the first `keep` rows of it
stay as they are, the rest becomes one row of `FOLDED`: exact count, first and last time, first sequence and process.
What is lost is the time, pids and return value of the repeats; never their number. So are, at any time, rows of ids of which the
processor of this process has said that nobody needs them one by one (`only`). Neighbours: `definitions`, `rings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from itertools import compress
from typing import Annotated, Final, Protocol

import msgspec

from schemas.frame import FOLDED, Frame, FrameHeader
from schemas.kernel import OCCURRENCE, RING_HEADER, STRIDE
from sensors.node.definitions import Closure, Definitions

WORDS: Final = STRIDE // 8
ID: Final = (RING_HEADER + OCCURRENCE.offsets["id"]) // 8
TIME: Final = (RING_HEADER + OCCURRENCE.offsets["time"]) // 8
SEQUENCE: Final = (RING_HEADER + OCCURRENCE.offsets["sequence"]) // 8
PROCESS: Final = (RING_HEADER + OCCURRENCE.offsets["process"]) // 8
PID: Final = (RING_HEADER + OCCURRENCE.offsets["pid"]) // 4
PPID: Final = (RING_HEADER + OCCURRENCE.offsets["ppid"]) // 4
"""In u32."""
FEW: Final = 32
"""Up to this many busy ids are searched for one by one; more are found in three passes over the chunk, whatever it holds."""


class FrameSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How chunks become frames."""

    limit_bytes: Annotated[
        int,
        msgspec.Meta(description="Largest frame, in bytes before compression.", examples=[524288], ge=4096, le=1 << 50),
    ] = 512 * 1024
    fold_from: Annotated[
        int,
        msgspec.Meta(
            description="Repeats of a behaviour in one chunk from which folding starts.",
            examples=[8],
            ge=2,
            le=(1 << 31) - 1,
        ),
    ] = 8
    keep: Annotated[
        int,
        msgspec.Meta(
            description="Rows of a folded behaviour kept whole in each frame; one when very many are folded.",
            examples=[8],
            ge=1,
            le=(1 << 31) - 1,
        ),
    ] = 8


class Stamp(Protocol):
    """Makes a frame's header from what only the frame knows; numbers frames and hands out losses."""

    def __call__(self, *, events: int, undefined: int) -> FrameHeader: ...


class Fold:
    """Chunks of one frame, with the repeats of busy behaviours counted. Feed `add`, then read `rows` and `folded`. `only`: ids
    that may be folded; None: all."""

    def __init__(self, settings: FrameSettings, few: int = FEW, only: Set[int] | None = None) -> None:
        self._only = only
        self._from, self._keep, self._few = settings.fold_from, settings.keep, few
        self._parts: list[bytes] = []
        self._kept: Counter[int] = Counter()
        # id -> [count, first time, last time, first sequence, process of the first]
        self._counted: dict[int, list[int]] = {}
        self.size = 0
        self.behaviours: set[int] = set()

    @property
    def rows(self) -> bytes:
        """The rows kept, in order."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @property
    def folded(self) -> bytes:
        """The `FOLDED` rows."""
        return b"".join(FOLDED.pack(ident, *row) for ident, row in self._counted.items())

    @property
    def processes(self) -> set[int]:
        """Processes named by folded rows."""
        return {row[4] for row in self._counted.values()}

    @property
    def events(self) -> int:
        """Rows kept and occurrences counted."""
        return self.size // STRIDE + sum(row[0] for row in self._counted.values())

    def add(self, chunk: bytes) -> None:
        """Take in a chunk of rows."""
        words = memoryview(chunk).cast("Q")
        ids = words[ID::WORDS].tolist()
        counts = Counter(ids)
        self.behaviours.update(counts)
        floor, counted = self._from, self._counted
        heavy = {ident: count for ident, count in counts.items() if count >= floor or ident in counted}
        if self._only is not None:
            heavy = {ident: count for ident, count in heavy.items() if ident in self._only}
        if not heavy:
            self._append(chunk)
            return
        kept = []
        if sum(heavy.values()) != len(ids):
            light = counts.keys() - heavy
            kept = list(compress(range(len(ids)), map(light.__contains__, ids)))
        search = self._search if len(heavy) <= self._few else self._sweep
        search(ids, heavy, kept, words)
        kept.sort()
        self._append(b"".join([chunk[at * STRIDE : (at + 1) * STRIDE] for at in kept]))

    def _search(self, ids: list[int], heavy: dict[int, int], kept: list[int], words: memoryview) -> None:
        # Id by id: cheap when they are few and busy, as in a flood.
        backwards = ids[::-1]
        for ident, count in heavy.items():
            room = min(self._keep - self._kept[ident], count)
            at = -1
            for _ in range(room):
                at = ids.index(ident, at + 1)
                kept.append(at)
            self._kept[ident] += room
            if count > room:
                last = len(ids) - 1 - backwards.index(ident)
                self._count(ident, count - room, ids.index(ident, at + 1), last, words)

    def _sweep(self, ids: list[int], heavy: dict[int, int], kept: list[int], words: memoryview) -> None:
        # All at once: a dict made from the ids keeps the last position of each, made backwards the first.
        last = dict(zip(ids, range(len(ids)), strict=True))
        first = _first(ids)
        fresh = [ident for ident in heavy if not self._kept[ident]]
        if fresh:
            rest = ids.copy()
            for ident in fresh:
                kept.append(first[ident])
                rest[first[ident]] = -1
                self._kept[ident] = 1
            first = _first(rest)
        new = set(fresh)
        for ident, count in heavy.items():
            left = count - (ident in new)
            if left:
                self._count(ident, left, first[ident], last[ident], words)

    def _count(self, ident: int, count: int, first: int, last: int, words: memoryview) -> None:
        row = self._counted.get(ident)
        until = words[last * WORDS + TIME]
        if row is None:
            base = first * WORDS
            self._counted[ident] = [
                count, words[base + TIME], until, words[base + SEQUENCE], words[base + PROCESS],
            ]  # fmt: skip
        else:
            row[0] += count
            row[2] = max(row[2], until)

    def _append(self, rows: bytes) -> None:
        if rows:
            self._parts.append(rows)
            self.size += len(rows)


def _first(ids: list[int]) -> dict[int, int]:
    return dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))


def columns(rows: bytes) -> tuple[set[int], set[int]]:
    """Distinct behaviour ids and process ids of a table of rows."""
    words = memoryview(rows).cast("Q")
    return set(words[ID::WORDS].tolist()), set(words[PROCESS::WORDS].tolist())


def frames(
    rows: bytes, closure: Closure, definitions: Definitions, stamp: Stamp, limit: int, folded: bytes = b"", counted: int = 0
) -> list[Frame]:  # fmt: skip
    """Frames of `rows` with `closure`, which must be the closure of exactly these rows (and of `folded`).

    `counted`: occurrences in `folded`. Over `limit` bytes the rows are halved and each half is closed anew; a single row
    with its definitions may exceed the limit (four paths of 4096 bytes at most).
    """
    count = len(rows) // STRIDE
    if count > 1 and len(rows) + len(closure.run) + len(folded) > limit:
        middle = count // 2 * STRIDE
        made: list[Frame] = []
        if folded:
            made += _folded_alone(folded, definitions, stamp, counted)
        for half in (rows[:middle], rows[middle:]):
            made += frames(half, definitions.closure(*columns(half)), definitions, stamp, limit)
        return made
    header = stamp(events=count + counted, undefined=closure.missing.total)
    return [Frame(header=header, occurrences=rows, definitions=closure.run, folded=folded)]


def _folded_alone(folded: bytes, definitions: Definitions, stamp: Stamp, counted: int) -> list[Frame]:
    table = list(FOLDED.iter_unpack(folded))
    closure = definitions.closure({row[0] for row in table}, {row[5] for row in table})
    header = stamp(events=counted, undefined=closure.missing.total)
    return [Frame(header=header, occurrences=b"", definitions=closure.run, folded=folded)]
