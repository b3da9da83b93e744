# SPDX-License-Identifier: Apache-2.0
"""Summaries and alerts into the store.

What it does: counts per behaviour in minute buckets, rolled up to hours and days; the latest alerts. Delivery guarantee:
counts are exact whatever is repeated, reordered or killed in between; a batch is accepted when its transaction is on disk.
Limit: one writer per store file; summaries older than `keep.exact_days` are left out; the oldest counts go when the file is
over `max_bytes`, which is logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

import msgspec

from bus.disk import capped
from schemas.alert import Alert
from schemas.errors import HauberkError
from schemas.summary import Summary
from schemas.topics import ALERTS, SUMMARIES
from sinks.settings import Common
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult
from sinks.store.rollup import Keep
from sinks.store.shrink import Step
from sinks.store.sqlite import SqliteStore
from sinks.store.stats import StoreStats

_TIDY_SECONDS = 300.0
_SIZE_SECONDS = 5.0
_MIB = 1 << 20
_T = TypeVar("_T")
_log = logging.getLogger("hauberk.sinks")


class StoreSettings(Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="store", tag_field="type"):
    """Keep counts and alerts in a SQLite file."""

    path: Annotated[
        str, msgspec.Meta(description="The file; its directory must exist.", examples=["/var/lib/hauberk/summary.db"])
    ]
    max_alerts: Annotated[
        int,
        msgspec.Meta(ge=1, le=(1 << 31) - 1, description="Alerts kept; older ones are forgotten.", examples=[100000]),
    ] = 100_000
    max_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 50,
            description="Bytes of the file; the oldest counts and alerts go when it is over, 0 for no cap. Its log beside it "
            "takes up to 64 MiB more.",
            examples=[2147483648],
        ),
    ] = 512 << 20
    cached_behaviours: Annotated[
        int,
        msgspec.Meta(
            ge=16,
            le=1 << 26,
            description="Behaviours remembered as being in the file, 64 bytes each; by default a share of `memory.budget_bytes`.",
            examples=[16384],
        ),
    ] = 16_384
    keep: Annotated[Keep, msgspec.Meta(description="How long counts are kept.", examples=[{}])] = Keep()


class StoreSink:
    """See `sink.Sink`."""

    live = False
    takes_json = False
    topics = (SUMMARIES, ALERTS)
    # Half a second of summaries in one transaction: what costs is the sync, not the row.
    limits = BatchLimits(items=5000, size_bytes=2 << 20, age_seconds=0.5, send_seconds=120.0)

    def __init__(self, settings: StoreSettings) -> None:
        self.name = settings.name or "store"
        self.stats = StoreStats(sink=self.name)
        self._settings = settings
        self._most = capped(settings.max_bytes, os.path.dirname(os.path.abspath(settings.path)), 4)
        self._store: SqliteStore | None = None
        self._tidied = 0.0
        self._sized = 0.0
        self._grown = True
        self._shrinking: asyncio.Task[None] | None = None
        self.size_check_seconds = _SIZE_SECONDS
        # One thread: SQLite's writer is one, and a cancelled send must be over before the next begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hauberk-store")

    async def check(self) -> None:
        await self._in_thread(lambda: self._make().close())

    async def open(self) -> None:
        if self._store is None:
            self._store = await self._in_thread(self._make)

    async def send(self, items: Sequence[Item]) -> SendResult:
        await self._in_thread(self._apply, items)
        self._grown = True
        await self._tidy()
        return ACCEPTED

    async def idle(self) -> None:
        await self._tidy()

    async def close(self) -> None:
        store, self._store = self._store, None
        if self._shrinking is not None:
            # What is left to do is done after the next start: each step is whole.
            self._shrinking.cancel()
            await asyncio.wait({self._shrinking})
        if store is not None:
            await self._in_thread(store.close)
        self._thread.shutdown(wait=False)

    def _make(self) -> SqliteStore:
        settings = self._settings
        return SqliteStore(
            settings.path, max_alerts=settings.max_alerts, keep=settings.keep, max_bytes=self._most,
            known=settings.cached_behaviours,
        )  # fmt: skip

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
        if self._store is None:
            return
        if now - self._tidied >= _TIDY_SECONDS:
            self._tidied = now
            self.stats.tidied += await self._in_thread(self._store.tidy, int(time.time()))
            self._grown = True
        if self._grown and now - self._sized >= self.size_check_seconds and not self.shrinking:
            self._sized = now
            self.stats.file_bytes = await self._in_thread(self._store.file_bytes)
            self._grown = 0 < self._most < self.stats.file_bytes
            if self._grown:
                # Beside what is sent, step by step: a send must not wait for the whole of it.
                self._shrinking = asyncio.create_task(self._shrink(self._store), name="store-shrink")

    @property
    def known(self) -> int:
        """Behaviours remembered now as being in the file."""
        return 0 if self._store is None else self._store.known

    @property
    def shrinking(self) -> bool:
        """Whether the oldest is being forgotten right now."""
        return self._shrinking is not None and not self._shrinking.done()

    async def _shrink(self, store: SqliteStore) -> None:
        _log.warning(
            "store `%s` is over `max_bytes` (%.1f of %.1f MiB): the oldest go", self._settings.path,
            self.stats.file_bytes / _MIB, self._most / _MIB,
        )  # fmt: skip
        steps = store.shrink()
        step: Step | None = None
        try:
            while (next_step := await self._in_thread(next, steps, None)) is not None:
                self.stats.cut_rows += next_step.rows - (step.rows if step else 0)
                self.stats.file_bytes = next_step.size
                step = next_step
        except HauberkError as error:
            _log.warning("store `%s` could not shrink, tried again later: %s", self._settings.path, error)
            return
        finally:
            # In the thread, where the last step may still be running.
            self._thread.submit(steps.close)
        if step is not None and step.rows:
            _log.warning(
                "store `%s`: %d counts and alerts before %s forgotten, %.1f MiB now; raise `max_bytes` to keep more",
                self._settings.path, step.rows, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(step.before)),
                step.size / _MIB,
            )  # fmt: skip
        elif self.stats.file_bytes > self._most:
            _log.warning(
                "store `%s`: its newest bucket alone takes %.1f MiB; raise `max_bytes`", self._settings.path,
                self.stats.file_bytes / _MIB,
            )  # fmt: skip

    async def _in_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
