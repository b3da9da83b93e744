# SPDX-License-Identifier: Apache-2.0
"""What the kernel counted as lost, told exactly once: neither repeated nor hidden by a restart of the agent.

The kernel's counters only grow. How far they were told lies in a map beside the pins, written when the frames that told
it are safe, so the next agent goes on from there, also after a kill. Must never reset a counter. Neighbours: `pins`, `rings`.
"""

from __future__ import annotations

import struct
from typing import Final

from schemas.kernel import Loss
from sensors.pins import TOLD, Pins

_U32: Final = struct.Struct("=I").pack
_NOTHING: Final = (0,) * len(Loss)


class Losses:
    """`read`, then `take` into a frame's header, then `told` when that frame is safe. `total`: since this agent began."""

    def __init__(self, pins: Pins) -> None:
        self.total = [0] * len(Loss)
        self._counters, self._map = pins.losses, pins.told
        self._load = pins.losses.info.id
        value = TOLD.unpack(self._map.get(_U32(0)) or bytes(TOLD.size))
        # Counters of another load started from zero again.
        known = value[0] == self._load
        self._written = list(value[1 : 1 + len(Loss)]) if known else list(_NOTHING)
        self._read = list(self._written)
        self._untold: tuple[int, ...] = _NOTHING

    @property
    def waiting(self) -> bool:
        """Whether something was read and not taken."""
        return any(self._untold)

    def read(self) -> None:
        """Read the kernel's counters (about 50 us)."""
        now = [self._counters.sum_u64(_U32(index)) for index in Loss]
        fresh = [max(0, new - old) for new, old in zip(now, self._read, strict=True)]
        if any(fresh):
            self._untold = tuple(a + b for a, b in zip(fresh, self._untold, strict=True))
            self.total = [a + b for a, b in zip(self.total, fresh, strict=True)]
            self._read = now

    def take(self) -> tuple[int, ...]:
        """What was not told yet, indexed by `Loss`; () when nothing was lost."""
        if not self.waiting:
            return ()
        taken, self._untold = self._untold, _NOTHING
        return taken

    def told(self) -> None:
        """What was taken is safe."""
        if not self.waiting and self._read != self._written:
            self._map.put(_U32(0), TOLD.pack(self._load, *self._read, *[0] * (15 - len(Loss))))
            self._written = list(self._read)
