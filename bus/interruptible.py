# SPDX-License-Identifier: Apache-2.0
"""A `take` that ends early: whoever is told to stop must not wait out the time that it gave to records.

It must never lose a record: `Subscription.take` may be cancelled at any point, and what it did not return comes again.
A subscription that has `interrupt()` (end the wait of `take`, with what there is) is asked that way by a `Signal`: an event
that wakes this reader then costs one turn of the loop, where a task for the take and one for each event cost five.
Neighbours: `contract` (the promise), `pump` and the other readers (who call).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.contract import Delivery, Subscription


class Signal(asyncio.Event):
    """An event that also calls whoever listens, inside `set`."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: list[Callable[[], None]] = []

    def set(self) -> None:
        super().set()
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each `set` until `ignore`. It must not wait, raise or listen."""
        self._listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners.remove(listener)


async def take_or(subscription: Subscription, most: int, seconds: float, *events: asyncio.Event) -> list[Delivery]:
    """`subscription.take(most, seconds)`, but nothing as soon as one of `events` is set. Raises what `take` does."""
    # Once, so that a reader that only ever finds something still lets others run.
    await asyncio.sleep(0)
    if any(event.is_set() for event in events):
        return []
    interrupt: Callable[[], None] | None = getattr(subscription, "interrupt", None)
    if interrupt is None:
        return await _beside(subscription, most, seconds, events)
    signals = [event for event in events if isinstance(event, Signal)]
    watching = [asyncio.ensure_future(_watch(event, interrupt)) for event in events if not isinstance(event, Signal)]
    for signal in signals:
        signal.listen(interrupt)
    try:
        return await subscription.take(most, seconds)
    finally:
        for signal in signals:
            signal.ignore(interrupt)
        for watcher in watching:
            watcher.cancel()


async def _watch(event: asyncio.Event, interrupt: Callable[[], None]) -> None:
    await event.wait()
    interrupt()


async def _beside(
    subscription: Subscription, most: int, seconds: float, events: tuple[asyncio.Event, ...]
) -> list[Delivery]:
    """The same by cancelling: what a far side is asked for may take long to end otherwise."""
    taking = asyncio.ensure_future(subscription.take(most, seconds))
    watching = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait((taking, *watching), return_when=asyncio.FIRST_COMPLETED)
        return taking.result() if taking.done() else []
    finally:
        for watcher in watching:
            watcher.cancel()
        if not taking.done():
            taking.cancel()
            await asyncio.wait((taking,))
