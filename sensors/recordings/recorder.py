# SPDX-License-Identifier: Apache-2.0
"""Writes what travels on the bus into a recording: identities first, then frames as they come. What `hauberk record` runs.

A broadcast reader: it holds nobody back and keeps no offsets. What was published before it began is not recorded,
except the identities that are valid now. Neighbours: `recording` (the file), `replay` (the way back).
"""

from __future__ import annotations

import asyncio
import platform
import time
from typing import Any

from bus.contract import Bus
from bus.follow import whole
from schemas.topics import EVENTS_RAW, INVENTORY
from sensors.recordings.recording import BlockKind, RecordingWriter


def describe(command: str = "") -> dict[str, Any]:
    """The header of a recording: kernel, machine, date (UTC), and what was run."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
    }


class Recorder:
    """`header`: `describe()` when None. `started` is set when nothing published from then on is missed. `frames`, `bytes`, `identities` count what is in the
    file. Raises DecodeError or OSError of `RecordingWriter`, and what the bus raises when it goes away."""

    def __init__(self, bus: Bus, path: str, header: dict[str, Any] | None = None, *, limit_bytes: int = 0) -> None:
        self.frames = self.bytes = self.identities = 0
        self.started = asyncio.Event()
        self._bus = bus
        self._path = path
        self._header = describe() if header is None else header
        self._limit = limit_bytes
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to write what there is and return."""
        self._stop.set()

    async def run(self) -> None:
        """Record until `stop`, or until the file's entries reach `limit_bytes` before compression (0: no limit)."""
        async with self._bus.subscribe([INVENTORY, EVENTS_RAW], None, "latest") as reader:
            with RecordingWriter(self._path, self._header) as writer:
                for key, record in (await whole(self._bus, INVENTORY, self._stop)).items():
                    if record.value is not None:
                        writer.add(BlockKind.INVENTORY, time.time_ns(), key, record.value)
                        self.identities += 1
                self.started.set()
                while not self._full():
                    stopping = self._stop.is_set()
                    deliveries = await reader.take(256, 0.0 if stopping else 0.2)
                    for delivery in deliveries:
                        frame = delivery.topic is EVENTS_RAW
                        record = delivery.record
                        writer.add(
                            BlockKind.FRAMES if frame else BlockKind.INVENTORY, time.time_ns(), record.key, record.value
                        )
                        self.frames += frame
                        self.identities += not frame
                        self.bytes += record.size
                    if stopping and not deliveries:
                        return

    def _full(self) -> bool:
        return bool(self._limit) and self.bytes >= self._limit
