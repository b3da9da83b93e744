# SPDX-License-Identifier: Apache-2.0
"""Summaries and alerts into the store.

What it does: counts per behaviour in minute buckets, rolled up to hours and days; the latest alerts. Delivery guarantee:
counts are exact whatever is repeated, reordered or killed in between; a batch is accepted when its transaction is on disk.
Limit: one writer per store file; summaries older than `keep.exact_days` are left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

import msgspec

from schemas.alert import Alert
from schemas.summary import Summary
from schemas.topics import ALERTS, SUMMARIES
from sinks.settings import Common
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult
from sinks.store.rollup import Keep
from sinks.store.sqlite import SqliteStore
from sinks.store.stats import StoreStats

_TIDY_SECONDS = 300.0
_T = TypeVar("_T")


class StoreSettings(Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="store", tag_field="type"):
    """Keep counts and alerts in a SQLite file."""

    path: Annotated[
        str, msgspec.Meta(description="The file; its directory must exist.", examples=["/var/lib/hauberk/summary.db"])
    ]
    max_alerts: Annotated[
        int, msgspec.Meta(ge=1, description="Alerts kept; older ones are forgotten.", examples=[100000])
    ] = 100_000
    keep: Annotated[Keep, msgspec.Meta(description="How long counts are kept.", examples=[{}])] = Keep()


class StoreSink:
    """See `sink.Sink`."""

    live = False
    takes_json = False
    topics = (SUMMARIES, ALERTS)
    # Half a second of summaries in one transaction: what costs is the sync, not the row.
    limits = BatchLimits(items=5000, size_bytes=8 << 20, age_seconds=0.5, send_seconds=120.0)

    def __init__(self, settings: StoreSettings) -> None:
        self.name = settings.name or "store"
        self.stats = StoreStats(sink=self.name)
        self._settings = settings
        self._store: SqliteStore | None = None
        self._tidied = 0.0
        # One thread: SQLite's writer is one, and a cancelled send must be over before the next begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hauberk-store")

    async def check(self) -> None:
        await self._in_thread(lambda: self._make().close())

    async def open(self) -> None:
        if self._store is None:
            self._store = await self._in_thread(self._make)

    async def send(self, items: Sequence[Item]) -> SendResult:
        await self._in_thread(self._apply, items)
        await self._tidy()
        return ACCEPTED

    async def idle(self) -> None:
        await self._tidy()

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await self._in_thread(store.close)
        self._thread.shutdown(wait=False)

    def _make(self) -> SqliteStore:
        settings = self._settings
        return SqliteStore(settings.path, max_alerts=settings.max_alerts, keep=settings.keep)

    def _apply(self, items: Sequence[Item]) -> None:
        assert self._store is not None, "open() comes before send()"
        done = self._store.apply(
            [item for item in items if isinstance(item, Summary)], [item for item in items if isinstance(item, Alert)]
        )
        self.stats.summaries += done.summaries
        self.stats.repeated += done.repeated
        self.stats.overlapping += done.overlapping
        self.stats.late += done.late
        self.stats.alerts += done.alerts

    async def _tidy(self) -> None:
        now = time.monotonic()
        if self._store is None or now - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = now
        self.stats.tidied += await self._in_thread(self._store.tidy, int(time.time()))

    async def _in_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
