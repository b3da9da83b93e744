# SPDX-License-Identifier: Apache-2.0
"""When enough has come together to be sent: by count, by bytes, by age.

Pure: the clock is passed in, nothing is awaited. A telemetry frame holds thousands of items and is cut; only the last
slice of a record carries `last`, so its offset is committed when all of it is out. Neighbour: `consumer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from bus.contract import Delivery
from sinks.sink import BatchLimits, Item


class Parcel(msgspec.Struct, frozen=True, gc=False):
    """Items of one record. `size`: bytes of the record that fall on them. `last`: the record is done with them."""

    delivery: Delivery
    items: Sequence[Item]
    size: int
    last: bool = True


class Batcher:
    """Collects parcels in order and gives them back in batches within the limits."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._parcels: deque[tuple[Parcel, float]] = deque()
        self.items = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, parcel: Parcel, now: float) -> None:
        """Append; a parcel over the count limit is cut into slices. `now`: seconds, monotonic."""
        count, most = len(parcel.items), self._limits.items
        self.items += count
        self.size_bytes += parcel.size
        if count <= most:
            self._parcels.append((parcel, now))
            return
        for start in range(0, count, most):
            part = parcel.items[start : start + most]
            last = start + most >= count
            self._parcels.append((Parcel(parcel.delivery, part, parcel.size * len(part) // count, last), now))

    def ready(self, now: float) -> bool:
        """Whether `take` would give a batch that need not wait."""
        return bool(self._parcels) and (self.full or self.wait(now) <= 0)

    @property
    def full(self) -> bool:
        """Whether there is enough for a batch, whatever its age."""
        return self.items >= self._limits.items or self.size_bytes >= self._limits.size_bytes

    def wait(self, now: float) -> float:
        """Seconds until the oldest parcel is due; the full age when there is none."""
        if not self._parcels:
            return self._limits.age_seconds
        return self._parcels[0][1] + self._limits.age_seconds - now

    def take(self) -> list[Parcel]:
        """The next batch: whole parcels up to the limits, at least one if there is any."""
        batch: list[Parcel] = []
        count = size = 0
        while self._parcels:
            parcel = self._parcels[0][0]
            if batch and (
                count + len(parcel.items) > self._limits.items or size + parcel.size > self._limits.size_bytes
            ):
                break
            self._parcels.popleft()
            batch.append(parcel)
            count += len(parcel.items)
            size += parcel.size
        self.items -= count
        # Integer division above may leave a few bytes of a cut record over; empty is zero again.
        self.size_bytes = self.size_bytes - size if self._parcels else 0
        return batch
