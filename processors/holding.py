# SPDX-License-Identifier: Apache-2.0
"""A bus for the pump of this stage that commits only what the ledger says is told in full.

The pump commits what it handed out; here a frame may wait for a container's name. Committing is done in `take` and at the
end too, because a frame may be told long after the batch it came in, while nothing new arrives.
Neighbours: `processors.ledger`, `bus.pump` (the user).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from bus.contract import Bus, Delivery, Gap, Partition, Record, Start, Subscription
from processors.ledger import Ledger
from schemas.topics import Topic


class HoldingSubscription:
    """See `bus.contract.Subscription`."""

    def __init__(self, inner: Subscription, ledger: Ledger) -> None:
        self._inner = inner
        self._ledger = ledger
        self._untold: list[Delivery] = []

    @property
    def position(self) -> Mapping[tuple[str, int], int]:
        return self._inner.position

    @property
    def owned(self) -> Mapping[Partition, int]:
        return self._inner.owned

    @property
    def revoking(self) -> frozenset[Partition]:
        return self._inner.revoking

    @property
    def disowned(self) -> int:
        return self._inner.disowned

    @property
    def skipped(self) -> int:
        return self._inner.skipped

    @property
    def gaps(self) -> Sequence[Gap]:
        return self._inner.gaps

    async def take(self, max_records: int, max_wait: float) -> list[Delivery]:
        await self.commit()
        batch = await self._inner.take(max_records, max_wait)
        self._ledger.taken(batch)
        return batch

    async def commit(self, deliveries: Sequence[Delivery] | None = None) -> None:
        """Commit what is told. `deliveries` is what the pump believes to be done and is not looked at."""
        self._untold += self._ledger.done()
        if self._untold:
            # Kept until the commit succeeds: a failed one is repeated by the next call.
            await self._inner.commit(self._untold)
            self._untold = []

    async def release(self) -> None:
        await self._inner.release()


class HoldingBus:
    """`inner` with such subscriptions; everything else as it is. `finish` is awaited before the last commit."""

    def __init__(self, inner: Bus, ledger: Ledger, finish: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._ledger = ledger
        self._finish = finish

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        await self._inner.publish(topic, records)

    def subscribe(
        self, topics: Sequence[Topic], group: str | None, start: Start = "committed"
    ) -> AbstractAsyncContextManager[Subscription]:
        return self._subscribe(topics, group, start)

    @asynccontextmanager
    async def _subscribe(
        self, topics: Sequence[Topic], group: str | None, start: Start
    ) -> AsyncIterator[HoldingSubscription]:
        async with self._inner.subscribe(topics, group, start) as inner:
            held = HoldingSubscription(inner, self._ledger)
            yield held
            await self._finish()
            await held.commit()

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        return await self._inner.latest(topic)

    def damaged(self) -> int:
        return self._inner.damaged()

    async def end(self, topic: Topic) -> dict[int, int]:
        return await self._inner.end(topic)

    async def lag(self, group: str) -> dict[str, int]:
        return await self._inner.lag(group)

    async def groups(self) -> dict[str, dict[str, int]]:
        return await self._inner.groups()

    async def forget(self, group: str) -> None:
        await self._inner.forget(group)

    async def close(self) -> None:
        """Whoever opened the inner bus closes it."""
