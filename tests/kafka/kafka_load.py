# SPDX-License-Identifier: Apache-2.0
"""Frames published and read while something breaks: each is handled or on `dead`, in order per node, and repeats are counted."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from bus.contract import Bus, Delivery, Record
from bus.pump import Pump, PumpSettings
from schemas.errors import DecodeError, Permanent, Temporary
from schemas.topics import EVENTS_RAW

NODES = [b"node-%d" % number for number in range(8)]


class Keep:
    """A stage in small: keeps what it was given, gives up on what it cannot read."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.handled: list[Delivery] = []
        self.released_often = 0
        self._done: list[Delivery] = []

    async def handle(self, batch: list[Delivery]) -> None:
        if any(delivery.record.value == b"poison" for delivery in batch):
            raise DecodeError("expected a frame, got poison")
        if self.slow:
            await asyncio.sleep(self.slow)
        self.handled += batch
        self._done += batch

    async def tick(self, idle: bool) -> None:
        return

    def wait(self) -> float:
        return 1.0

    def committable(self) -> list[Delivery]:
        done, self._done = self._done, []
        return done

    async def settle(self) -> None:
        return

    def released(self, partitions: object) -> None:
        self.released_often += 1


class Load:
    """Publishes numbered frames until told to stop, each until it is acknowledged; `sent`: those that were."""

    def __init__(self, bus: Bus, pause: float = 0.003, size: int = 100, *, stamp_ms: int = 0) -> None:
        self._bus = bus
        self._pause = pause
        self._tail = b" " + b"x" * size
        self._stamp_ms = stamp_ms
        self.sent: list[int] = []
        self.refused: list[int] = []
        self.tries = 0
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for index in itertools.count():
            if self._stop.is_set():
                return
            record = Record(NODES[index % len(NODES)], b"%d" % index + self._tail, (), self._stamp_ms)
            while True:
                self.tries += 1
                try:
                    await self._bus.publish(EVENTS_RAW, [record])
                except Temporary as error:
                    await asyncio.sleep(min(error.retry_after or 0.1, 0.2))
                except Permanent:
                    self.refused.append(index)
                    break
                else:
                    self.sent.append(index)
                    break
            await asyncio.sleep(self._pause)

    async def more(self, count: int, until) -> None:
        """Wait until so many more have been acknowledged."""
        goal = len(self.sent) + count
        await until(lambda: len(self.sent) >= goal or self._task.done(), 120)
        assert not self._task.done(), self._task.exception()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(self._task, 120)


def pump(bus: Bus, handler: Keep, group: str = "processors", **settings: object) -> Pump:
    return Pump(
        bus, [EVENTS_RAW], group, handler, stage="processors", start="earliest",
        settings=PumpSettings(max_wait=0.2, drain_seconds=20.0, **settings),
    )  # fmt: skip


def numbers(handled: list[Delivery]) -> list[int]:
    return [int(delivery.record.value.split(b" ")[0]) for delivery in handled]


def account(load: Load, *handlers: Keep) -> int:
    """Every acknowledged frame was handled, in order per node; how many came again."""
    handled = [delivery for handler in handlers for delivery in handler.handled]
    times = Counter(numbers(handled))
    lost = set(load.sent) - times.keys()
    assert not lost, f"{len(lost)} of {len(load.sent)} frames were lost: {sorted(lost)[:10]}"
    for handler in handlers:
        for node in NODES:
            fresh = list(dict.fromkeys(numbers([one for one in handler.handled if one.record.key == node])))
            assert fresh == sorted(fresh), f"{node!r}: out of order"
    return sum(times.values()) - len(times)
