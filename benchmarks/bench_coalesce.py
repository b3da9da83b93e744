# SPDX-License-Identifier: Apache-2.0
"""Frames a second and bytes per event that a sensor publishes at steady rates, to a bus in its process and to one elsewhere.

Rows and definitions are those of a recording, one cycle of it after the other, laid out in real time as the kernel would and drained
by the real agent, definitions and frames. Of what comes, some is new and calls the agent, as in the kernel: twice a second ten
at once, as when a process starts (`calm`), or one each 10 ms, as where they start all the time (`busy`). Bytes are those of a Kafka batch (zstd). CPU is this thread's,
the agent's and the encoding's. `delay` is from a new behaviour's row to the publication of its frame. No root, no broker.
Neighbours: sensors/node/agent.py (what is measured), bench_kafka (what a frame costs behind it).
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path
from typing import Any

from bus.contract import Record
from bus.kafka.batches import CODECS, encoded
from schemas import frame as words
from schemas.frame import FrameHeader
from schemas.kernel import STRIDE, DefinitionKind
from schemas.wakeup import Sleep
from sensors.node.agent import Agent, AgentSettings
from sensors.node.definitions import Definitions
from sensors.node.frames import ID, TIME, WORDS, columns, frames
from sensors.recordings.recording import BlockKind, RecordingReader
from sensors.source import Batch

RATES = (100, 2_000, 20_000)
RECORDING = Path(__file__).parent.parent / "examples/recordings/host.hbrk"
NEW = {"calm": (2, 10), "busy": (100, 1)}
"""How often a second, and how many at once."""


class RecordedRing:
    """A `FrameSource` whose rows come at `rate` a second from now on; `fresh` (place -> due) are the rows that call. `new`: see NEW."""

    finished = False

    def __init__(self, rate: int, seconds: float, new: tuple[int, int]) -> None:
        self.definitions = Definitions(64 << 20)
        rows, behaviours = b"", dict[int, bytes]()
        with RecordingReader(str(RECORDING)) as reader:
            for entry in reader:
                if entry.kind is BlockKind.FRAMES and entry.value is not None:
                    frame = words.decode(entry.value)
                    for ident, kind, body in words.definitions(frame.definitions):
                        self.definitions.define(DefinitionKind(kind), ident, body)
                        if kind == DefinitionKind.BEHAVIOUR:
                            behaviours[ident] = body
                    rows += frame.occurrences
        cycle = struct.unpack(f"={len(rows) // 8}Q", rows)
        many = len(rows) // STRIDE
        table = bytearray()
        total = int(rate * seconds)
        every, burst = max(1, rate // new[0]), new[1]
        self.due: list[float] = []
        self.fresh: dict[int, float] = {}
        for number in range(total):
            row = list(cycle[number % many * WORDS : (number % many + 1) * WORDS])
            due = number / rate
            if number >= every // 4 and (at := (number - every // 4) % every) < burst:
                # A process starts: what it does was not seen before, and comes within milliseconds.
                due = (number - at) / rate + at * 0.001
                ident = row[ID] ^ (number << 40)
                self.definitions.define(DefinitionKind.BEHAVIOUR, ident, behaviours[row[ID]])
                row[ID] = ident
                self.fresh[number] = due
            row[TIME] = number
            table += struct.pack(f"={WORDS}Q", *row)
            self.due.append(due)
        order = sorted(range(total), key=self.due.__getitem__)
        self._table = b"".join([table[at * STRIDE : (at + 1) * STRIDE] for at in order])
        self.fresh = {place: self.due[at] for place, at in enumerate(order) if at in self.fresh}
        self.due.sort()
        self._taken = self._number = 0
        self.delays: list[float] = []
        self._calls, self._bell = os.pipe()
        os.set_blocking(self._calls, False)
        self._timer: asyncio.TimerHandle | None = None
        self.began = time.monotonic()

    @property
    def calls(self) -> int:
        return self._calls

    @property
    def over(self) -> bool:
        return self._taken >= len(self.due)

    def heard(self) -> None:
        os.read(self._calls, 4096)

    def rest(self, how: Sleep) -> bool:
        now = time.monotonic() - self.began
        wanted = (place for place in self.fresh) if how is Sleep.DOZING else iter((self._taken,))
        at = next((self.due[place] for place in wanted if place >= self._taken and place < len(self.due)), None)
        if at is None:
            return True
        if at <= now:
            return False
        self._timer = asyncio.get_running_loop().call_later(at - now, os.write, self._bell, b"!")
        return True

    def drain(self) -> Batch:
        if self._timer is not None:
            self._timer.cancel()
        now, first = time.monotonic() - self.began, self._taken
        while self._taken < len(self.due) and self.due[self._taken] <= now:
            self._taken += 1
        rows = self._table[first * STRIDE : self._taken * STRIDE]
        if not rows:
            return Batch()
        made: list[words.Frame] = []
        for at in range(0, len(rows), 384 * 1024 // STRIDE * STRIDE):
            part = rows[at : at + 384 * 1024 // STRIDE * STRIDE]
            made += frames(part, self.definitions.closure(*columns(part)), self.definitions, self._stamp, 512 * 1024)
        return Batch(frames=tuple(made))

    def _stamp(self, *, events: int, undefined: int) -> FrameHeader:
        self._number += 1
        return FrameHeader(
            node="node-1", boot="b", run="r", number=self._number, clock_offset_ns=0, events=events, undefined=undefined
        )

    def release(self) -> None:
        for place in [place for place in self.fresh if place < self._taken]:
            self.delays.append(time.monotonic() - self.began - self.fresh.pop(place))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._calls)
        os.close(self._bell)


class Counting:
    """Takes what is published as the producer would encode it."""

    def __init__(self) -> None:
        self.frames = self.bytes = 0

    async def publish(self, topic: Any, records: list[Record]) -> None:
        for record in records:
            self.frames += 1
            self.bytes += len(encoded([record], CODECS["zstd"], (1, 0), 0, 1))


async def published(
    rate: int, seconds: float, new: tuple[int, int], *, elsewhere: bool
) -> tuple[float, float, float, float]:
    """(frames a second, bytes per event, share of a core, 99th percentile of the delay in seconds)."""
    source, bus = RecordedRing(rate, seconds, new), Counting()
    agent = Agent(source, bus, AgentSettings(), elsewhere=elsewhere)  # type: ignore[arg-type]
    source.began = time.monotonic()
    spent = time.thread_time()
    task = asyncio.create_task(agent.run())
    while not source.over:  # noqa: ASYNC110 - rows come by the clock
        await asyncio.sleep(0.02)
    agent.stop()
    await task
    spent = time.thread_time() - spent
    source.close()
    delays = sorted(source.delays)
    late = delays[min(len(delays) - 1, len(delays) * 99 // 100)] if delays else 0.0
    return bus.frames / seconds, bus.bytes / len(source.due), spent / seconds, late


def run(scale: float) -> dict[str, dict[str, Any]]:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes a minute."""
    found: dict[str, dict[str, Any]] = {}
    seconds = max(0.25, 5 * scale)
    for rate in RATES:
        for kind, new in NEW.items():
            for word, elsewhere in (("here", False), ("far", True)):
                many, size, core, late = asyncio.run(published(rate, seconds, new, elsewhere=elsewhere))
                how = f"{rate} events a second of {RECORDING.name} for {seconds:g} s, {new[1]} new behaviours {new[0]} times a second"
                for what, value, unit in (
                    ("frames", many, "frames/s"), ("bytes", size, "bytes/event"), ("core", core * 100, "% of a core"),
                    ("delay", late * 1e3, "ms p99"),
                ):  # fmt: skip
                    name = f"coalesce_{kind}_{word}_{rate}_{what}"
                    found[name] = {"value": round(value, 2), "unit": unit, "n": int(rate * seconds), "how": how}
    return found
