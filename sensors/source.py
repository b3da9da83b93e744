# SPDX-License-Identifier: Apache-2.0
"""The contract of a raw stream, read first: the kernel's rings on a live node, or a recording. The agent knows only this.

Drain, publish, release: what `drain` handed out is still the source's to give again until `release`. A crash in between
repeats it (event ids are deterministic, readers drop repeats); nothing is lost. Must never do I/O towards the bus.
Neighbours: `sensors.node.rings`, `sensors.recordings.replay` (the two sources), `sensors.node.agent` (the engine).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from bus.contract import Record
from schemas.frame import Frame


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What one drain found. `inventory`: records for `inventory.v1` that belong to the stream (recordings only).
    `more`: the source has more right now; drain again without waiting. `fill`: 0..1, how full the source is. `hasty`: there may be
    something in it that cannot wait."""

    frames: tuple[Frame, ...] = ()
    inventory: tuple[Record, ...] = ()
    more: bool = False
    fill: float = 0.0
    hasty: bool = True

    def __bool__(self) -> bool:
        return bool(self.frames or self.inventory)


EMPTY = Batch()


class FrameSource(Protocol):
    """A raw stream. One task calls it; nothing here waits."""

    @property
    def finished(self) -> bool:
        """Nothing will ever come again. Always False for the kernel."""
        ...

    def drain(self) -> Batch:
        """What came since the last drain. KernelError or DecodeError when the stream is not readable any more."""
        ...

    def release(self) -> None:
        """Everything handed out so far is safe elsewhere."""
        ...

    def close(self) -> None:
        """Give memory and fds back; what was not released stays for the next reader."""
        ...
