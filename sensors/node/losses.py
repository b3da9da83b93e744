# SPDX-License-Identifier: Apache-2.0
"""What the kernel counted as lost, told exactly once: neither repeated nor hidden by a restart of the agent.

The kernel's counters only grow. How far they were told lies in a map beside the pins, written when the frames that told
it are safe, so the next agent goes on from there, also after a kill. Must never reset a counter. Neighbours: `pins`, `rings`.
"""

from __future__ import annotations

import struct
from typing import Final

from schemas.kernel import BUDGET, OWN_LOSSES, Loss
from sensors.node.pins import TOLD, Pins

_U32: Final = struct.Struct("=I").pack
_U64: Final = struct.Struct("=Q").unpack
_OWN: Final = struct.Struct(f"={len(OWN_LOSSES)}Q").unpack_from
_NOTHING: Final = (0,) * len(Loss)

By = tuple[tuple[int, int, int], ...]
"""(cgroup id, `Loss`, how many), as `schemas.frame.FrameHeader.lost_by` has it."""


class KernelLosses:
    """`read`, then `take` into a frame's header, then `published` when that frame is on the bus. `total`: since this agent began."""

    def __init__(self, pins: Pins) -> None:
        self.total = [0] * len(Loss)
        self._counters, self._map, self._budgets = pins.losses, pins.reported, pins.budgets
        # What containers lost before this agent is told as the node's: nobody knows which part of it was told.
        self._own = self._by_cgroup()
        self._untold_by: dict[tuple[int, Loss], int] = {}
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
            if any(fresh[loss] for loss in OWN_LOSSES):
                self._read_own()

    def take(self) -> tuple[tuple[int, ...], By]:
        """What was not told yet, indexed by `Loss`, and whose it was as far as that is known; () when nothing was lost."""
        if not self.waiting:
            return (), ()
        taken, self._untold = self._untold, _NOTHING
        # Counters of containers are read after those of the node and may be ahead of them: the rest is told next time.
        left, by = list(taken), []
        for (cgroup, loss), count in list(self._untold_by.items()):
            if many := min(count, left[loss]):
                left[loss] -= many
                by.append((cgroup, int(loss), many))
                if many == count:
                    del self._untold_by[cgroup, loss]
                else:
                    self._untold_by[cgroup, loss] -= many
        return taken, tuple(by)

    def published(self) -> None:
        """What was taken is on the bus."""
        if not self.waiting and self._read != self._written:
            self._map.put(_U32(0), TOLD.pack(self._load, *self._read, *[0] * (15 - len(Loss))))
            self._written = list(self._read)

    def _by_cgroup(self) -> dict[int, tuple[int, ...]]:
        at = BUDGET.offsets["lost"]
        found = ((_U64(key)[0], _OWN(value, at)) for key, value in self._budgets.items())
        return {cgroup: counts for cgroup, counts in found if any(counts)}

    def _read_own(self) -> None:
        now = self._by_cgroup()
        for cgroup, counts in now.items():
            before = self._own.get(cgroup, (0,) * len(OWN_LOSSES))
            for loss, new, old in zip(OWN_LOSSES, counts, before, strict=True):
                # An entry that the map had to drop begins at zero again.
                if many := new - old if new >= old else new:
                    self._untold_by[cgroup, loss] = self._untold_by.get((cgroup, loss), 0) + many
        self._own = now
