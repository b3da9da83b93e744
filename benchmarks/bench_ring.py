# SPDX-License-Identifier: Apache-2.0
"""Ring to frame on one core: rows are laid into a ring's memory, taken, closed over their definitions and encoded.

`run(scale)` returns {name: {value, unit, n, how}}. Time is this process's CPU time, so that neighbours on a shared machine
do not count. Nothing here needs root; the live twin is `bench_flood`.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from typing import Any

from kernel.ring import PAGE, TAKE_BYTES, Ring, anonymous
from schemas import frame as words
from schemas.frame import FrameHeader
from schemas.kernel import BEHAVIOUR, OCCURRENCE, PROCESS, STRIDE, DefinitionKind
from sensors.node.definitions import Definitions
from sensors.node.frames import Fold, FrameSettings, columns, frames
from sensors.recordings.recording import BlockKind, RecordingReader

CHUNK = 384 * 1024 // STRIDE


class Synthetic:
    """A ring that always holds the same chunk of rows: refilling it is moving one counter."""

    def __init__(self, behaviours: int, processes: int) -> None:
        random.seed(7)
        self.size = 1 << 20
        self.consumer, self.memory = anonymous(self.size)
        self.rows = self.size // STRIDE
        # As the kernel's keyed hash makes them: spread over 64 bits.
        names = [random.getrandbits(64) | 1 for _ in range(behaviours + 1)]
        picks = [min(int(random.paretovariate(0.7)), behaviours) for _ in range(self.rows)]
        self.definitions = Definitions(64 << 20)
        for ident in range(1, behaviours + 1):
            body = struct.pack("=5Q", 1, 1, 2, 2 + ident, 0) + bytes(BEHAVIOUR.size - 40)
            self.definitions.define(DefinitionKind.BEHAVIOUR, names[ident], body)
            self.definitions.define(DefinitionKind.STRING, 2 + ident, f"/usr/lib/example/{ident}.so".encode())
        for ident in (1, 2):
            self.definitions.define(DefinitionKind.STRING, ident, b"/usr/bin/example")
        for ident in range(1, processes + 1):
            body = struct.pack("=5Q", ident, 1, 2, 0, 0) + bytes(PROCESS.size - 40)
            self.definitions.define(DefinitionKind.PROCESS, ident, body)
        table = b"".join(
            struct.pack("=II", OCCURRENCE.size, 0)
            + OCCURRENCE.struct.pack(names[pick], n, n, random.randint(1, processes), 1, 1, 1, 1, 0, 0)
            for n, pick in enumerate(picks)
        )
        self.memory[PAGE : PAGE + self.size] = table
        self.memory[PAGE + self.size : PAGE + 2 * self.size] = table
        self.ring = Ring(self.consumer, self.memory, self.size)
        self.produced = 0

    def fill(self) -> None:
        """Everything given back is full again."""
        (consumed,) = struct.unpack_from("=Q", self.consumer)
        self.produced = consumed + self.size
        struct.pack_into("=Q", self.memory, 0, self.produced)


def stamp(*, events: int, undefined: int) -> FrameHeader:
    """A header as the live source makes it."""
    return FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=0, events=events, undefined=undefined)


def whole(source: Synthetic) -> int:
    """One chunk from ring to encoded frame; events."""
    chunk = source.ring.take_table(CHUNK * STRIDE)
    made = frames(chunk, source.definitions.closure(*columns(chunk)), source.definitions, stamp, 512 * 1024)
    for frame in made:
        words.encode(frame)
    source.ring.release()
    return len(chunk) // STRIDE


def folding(source: Synthetic) -> int:
    """A full ring into one folded frame; events."""
    fold = Fold(FrameSettings())
    events = 0
    while chunk := source.ring.take_table(TAKE_BYTES):
        fold.add(chunk)
        events += len(chunk) // STRIDE
    rows = fold.rows
    closure = source.definitions.closure(fold.behaviours, fold.processes | columns(rows)[1])
    made = frames(rows, closure, source.definitions, stamp, 512 * 1024, fold.folded, fold.events - len(rows) // STRIDE)
    for frame in made:
        words.encode(frame)
    source.ring.release()
    return events


def measure(step: Callable[[Synthetic], int], source: Synthetic, events: int) -> tuple[float, int]:
    """(events a second of CPU time, events): the best of five rounds of at least `events` / 5."""
    best, done = 0.0, 0
    for _ in range(5):
        here, spent = 0, 0.0
        while here < max(events // 5, 1):
            source.fill()
            started = time.process_time()
            here += step(source)
            spent += time.process_time() - started
        done += here
        best = max(best, here / max(spent, 1e-9))
    return best, done


def recorded(path: str, events: int) -> tuple[float, int]:
    """(events a second, events) for the rows of a recording, taken apart and closed again with their own definitions."""
    tables: list[tuple[bytes, Definitions]] = []
    with RecordingReader(path) as reader:
        for entry in reader:
            if entry.kind is BlockKind.FRAMES and entry.value is not None:
                frame = words.decode(entry.value)
                definitions = Definitions(64 << 20)
                for ident, kind, body in words.definitions(frame.definitions):
                    definitions.define(DefinitionKind(kind), ident, body)
                tables.append((frame.occurrences, definitions))
    done, started = 0, time.process_time()
    while done < events and tables:
        for rows, definitions in tables:
            for made in frames(rows, definitions.closure(*columns(rows)), definitions, stamp, 512 * 1024):
                words.encode(made)
            done += len(rows) // STRIDE
    return done / max(time.process_time() - started, 1e-9), done


def run(scale: float) -> dict[str, dict[str, Any]]:
    """`scale` 1.0: 10 M events a figure; 0.001 for one iteration."""
    events = int(10_000_000 * scale)
    found: dict[str, dict[str, Any]] = {}

    def say(name: str, value: float, n: int, how: str) -> None:
        found[name] = {"value": round(value), "unit": "events/s", "n": n, "how": how}

    for behaviours, processes in ((50, 5), (2000, 200)):
        source = Synthetic(behaviours, processes)
        value, n = measure(whole, source, events)
        say(
            f"ring_to_frame_{behaviours}",
            value,
            n,
            f"{behaviours} behaviours, {processes} processes, chunks of {CHUNK} rows, CPU time",
        )
        value, n = measure(folding, source, events)
        say(f"ring_to_folded_frame_{behaviours}", value, n, f"{behaviours} behaviours folded, 1 MiB ring, CPU time")
    recordings = os.path.join(os.path.dirname(__file__), "..", "examples", "recordings")
    for name in sorted(os.listdir(recordings)) if os.path.isdir(recordings) else ():
        if name.endswith(".hbrk"):
            value, n = recorded(os.path.join(recordings, name), events // 10)
            say(f"recording_to_frame_{name[:-5]}", value, n, f"frames of {name} closed again, small chunks, CPU time")
    for behaviours in (50, 2000):
        for name, size, how in sizes(Synthetic(behaviours, behaviours // 10)):
            found[f"{name}_{behaviours}"] = {
                "value": round(size, 2),
                "unit": "bytes/event",
                "n": CHUNK,
                "how": f"{how}, {behaviours} behaviours",
            }
    return found


def sizes(source: Synthetic) -> list[tuple[str, float, str]]:
    """(name, bytes an event, how) of one chunk: as rows, and counted."""
    source.fill()
    chunk = source.ring.take_table(CHUNK * STRIDE)
    events = len(chunk) // STRIDE
    fold = Fold(FrameSettings())
    fold.add(chunk)
    rows = fold.rows
    closure = source.definitions.closure(*columns(chunk))
    plain = frames(chunk, closure, source.definitions, stamp, 1 << 30)
    closure = source.definitions.closure(fold.behaviours, fold.processes | (columns(rows)[1] if rows else set()))
    folded = frames(rows, closure, source.definitions, stamp, 1 << 30, fold.folded, fold.events - len(rows) // STRIDE)
    how = "encoded frames of one chunk with their definitions"
    return [
        ("frame_bytes", sum(len(words.encode(one)) for one in plain) / events, f"{how}, each event a row"),
        ("folded_frame_bytes", sum(len(words.encode(one)) for one in folded) / events, f"{how}, repeats counted"),
    ]


if __name__ == "__main__":
    for title, figure in run(0.2).items():
        print(f"{title:32} {figure['value']:>12,} {figure['unit']}  n={figure['n']:,}  {figure['how']}")
