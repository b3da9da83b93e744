# SPDX-License-Identifier: Apache-2.0
"""What a stage or a sink does with what its pump takes: the contract between the two, read this before `pump`.

A handler never sleeps, retries, counts tries or commits; the pump does. Handlers there are: `processors.engine`,
`sinks.delivery.consumer`. Neighbours: `pump`, `attempts` (what an error of a handler leads to).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from bus.contract import Delivery, Partition


class Handler(Protocol):
    """What a stage does with what its pump takes. All methods are called from one task, never in parallel."""

    async def handle(self, batch: list[Delivery]) -> None:
        """Take in `batch`, in order; it may be kept until it is `committable`.

        `Temporary`: the same batch again, later; `Permanent`: halves of it, until the bad record is alone and buried. So
        what of a batch was taken in before the error comes again; cancelling leaves it uncommitted.
        """
        ...

    async def tick(self, idle: bool) -> None:
        """Look at what waits: after each batch, after `wait` seconds without a record (`idle`), after `Pump.wake`. `Temporary`:
        again, later. No record is to blame for anything else: the stage fails by it."""
        ...

    def wait(self) -> float:
        """Seconds until `tick` is due."""
        ...

    def committable(self) -> Sequence[Delivery]:
        """Deliveries that are done since the last call: everything up to and including them, per partition. Forgotten here;
        the pump remembers them until they are committed."""
        ...

    async def settle(self) -> None:
        """Nothing more comes: finish what is in hand, as far as it can be. What is not committable then comes again."""
        ...

    def released(self, partitions: Collection[Partition]) -> None:
        """Other members have `partitions` now: forget what is in hand of them. Never raises."""
        ...
