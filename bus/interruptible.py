# SPDX-License-Identifier: Apache-2.0
"""A `take` that ends early: whoever is told to stop must not wait out the time that it gave to records.

It must never lose a record: `Subscription.take` may be cancelled at any point, and what it did not return comes again.
Neighbours: `contract` (the promise), `pump` and the other readers (who call).
"""

from __future__ import annotations

import asyncio

from bus.contract import Delivery, Subscription


async def take_or(subscription: Subscription, most: int, seconds: float, *events: asyncio.Event) -> list[Delivery]:
    """`subscription.take(most, seconds)`, but nothing as soon as one of `events` is set. Raises what `take` does."""
    if any(event.is_set() for event in events):
        return []
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
