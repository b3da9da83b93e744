# SPDX-License-Identifier: Apache-2.0
"""The bus without a server: SQLite WAL logs of frames in one directory, shared by all processes that open it.

What is promised when: `publish` returns, and readers hear of a record, once its transaction is committed. After that a
SIGKILL of any process loses nothing. A power cut loses nothing of `durable_topics` (one fsync per group commit); of the
others it may lose the last seconds, which a node notices as a gap in its sequence. Why so: docs/bus.md.
Neighbours: `writer` (thread), `reader` (subscriptions), `notify` (other processes), `layout` (files and retention).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from bus.contract import Record, Start
from bus.disk import capped, segment
from bus.embedded.compacted import CompactedLog
from bus.embedded.database import Corrupt
from bus.embedded.handed import PARTITION, handed_over
from bus.embedded.layout import DirectoryLayout, Log
from bus.embedded.notify import WriteNotifier
from bus.embedded.offsets import Lease
from bus.embedded.reader import Channel, EmbeddedSubscription
from bus.embedded.readers import TopicReaders
from bus.embedded.segments import SegmentedLog
from bus.embedded.settings import EmbeddedSettings as EmbeddedSettings
from bus.embedded.settings import EmbeddedStats as EmbeddedStats
from bus.embedded.settings import check_names
from bus.embedded.writer import Append, Commit, Done, Forget, LogWriter, Stop
from bus.permissions import private_directory
from bus.record_size import measure
from bus.rest import until_look
from schemas.errors import Backpressure, Refused, Unavailable
from schemas.topics import BY_NAME, EVENTS_RAW, TELEMETRY, Topic

T = TypeVar("T")

# Written only while somebody reads them, where the bus is `bus.handover`'s.
_ASKED_FOR = frozenset((EVENTS_RAW.name, TELEMETRY.name))
# A WAL this long is moved into its file in the background; by feel: 16 MB is 32 frames of 512 KB.
_WAL_BYTES = 16 << 20


class EmbeddedBus:
    """See `contract.Bus`. Made by `await EmbeddedBus.open(settings)`; one partition per topic."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        root = Path(settings.directory)
        check_names(settings)
        cap = capped(settings.total_bytes, root, 2)
        segment_bytes = segment(
            settings.segment_bytes, cap if cap < settings.total_bytes or not settings.total_bytes else 0
        )
        self._layout = DirectoryLayout(
            root=root,
            durable_topics=frozenset(settings.durable_topics),
            segment_bytes=segment_bytes,
            segment_age=settings.segment_age,
            bytes_kept=settings.retention_bytes,
            hours=settings.retention_hours_of,
            bytes_by_topic=settings.retention_bytes_of,
            tombstone_age=settings.tombstone_age,
            keep_read=frozenset(settings.keep_read),
            total_bytes=cap,
            member_seconds=settings.member_seconds,
            wal_bytes=min(_WAL_BYTES, segment_bytes),
        )
        self._loop = asyncio.get_running_loop()
        self._channels: dict[str, Channel] = {}
        self._stats = EmbeddedStats()
        self._closed = False
        self._unlooked = 0
        self._grown = asyncio.Event()
        try:
            private_directory(root)
            self._wake = WriteNotifier(root, self._heard)
            self._wake.open()
        except OSError as error:
            raise Refused(
                f"expected a directory to write at `{root}`, got: {error.strerror}; set `directory`"
            ) from error
        self._writer = LogWriter(self._layout, self._loop, self._done, settings.housekeeping)
        # One thread: SQLite gives the GIL back, and a second reader would only fight the first for the disk.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bus-reader")
        self._logs: dict[str, Log] = {}
        self.directory, self.record_bytes = root, settings.record_bytes
        self.readers = TopicReaders(root)
        self._offsets = self._layout.offsets()
        self._looking = self._loop.create_task(self._look_around())

    @classmethod
    async def open(cls, settings: EmbeddedSettings) -> EmbeddedBus:
        """Open the log, making its directory. `Refused` when it cannot be written."""
        return cls(settings)

    @property
    def stats(self) -> EmbeddedStats:
        self._stats.commits = self._writer.commits
        self._stats.dropped = self._writer.dropped
        self._stats.capped_bytes = self._writer.capped_bytes
        self._stats.disk_bytes = self._writer.disk_bytes
        self._stats.disk_free_bytes = self._writer.disk_free
        self._stats.full = self._writer.full
        self._stats.shed = dict(self._writer.shed)
        self._stats.quarantined = (
            self._writer.quarantined + self._offsets.quarantined + sum(log.quarantined for log in self._logs.values())
        )
        return self._stats

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        self.check_open("publish")
        if not records:
            return
        size = measure(topic, records, self._settings.record_bytes)
        waiting = self._stats.queue_bytes
        if waiting and waiting + size > self._settings.queue_bytes:
            self._stats.refused += len(records)
            raise Backpressure(
                f"`{topic.name}`: {waiting} bytes wait to be written, the cap is `queue_bytes` "
                f"{self._settings.queue_bytes}; publish less, later",
                retry_after=0.05,
            )
        self._stats.queue_bytes += size
        future: asyncio.Future[int] = self._loop.create_future()
        self._writer.submit(Append(topic, stamped(records), size, future))
        await future

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[EmbeddedSubscription]:
        self.check_open("subscribe")
        # Channels strictly before spans: what is published while a span is read must not be missed.
        channels = [self._channel(topic) for topic in topics]
        spans = {topic.name: await self._read_thread(self._log_span, topic) for topic in topics}
        for channel in channels:
            channel.grown(spans[channel.topic.name][1])
        leases: dict[str, Lease] = {}
        if group is not None:
            begin = tuple((group, topic, spans[topic.name][start == "latest"]) for topic in topics)
            # Registered before the first take: from here on nothing the group has not read is dropped as read.
            await self._commit(begin, register=True)
            leases = {topic.name: self._layout.lease(group, topic) for topic in topics}
        settings = self._settings
        subscription = EmbeddedSubscription(
            self, channels, group, leases, settings.take_bytes, settings.member_seconds / 10
        )
        if group is None:
            for topic in topics:
                subscription.begin(topic, spans[topic.name][start == "latest"])
        for channel in channels:
            channel.readers.add(subscription)
        reading = contextlib.ExitStack()
        for topic in topics:
            if topic.name in _ASKED_FOR:
                reading.enter_context(self.readers.reading(topic.name))
        try:
            yield subscription
        finally:
            reading.close()
            subscription.close()
            for channel in channels:
                channel.readers.discard(subscription)
                channel.trim()
                # A member standing by in this process need not wait for its next look.
                for reader in channel.readers:
                    reader.wake()

    async def latest(self, topic: Topic) -> dict[bytes, Record]:
        self.check_open("latest")

        def read() -> dict[bytes, Record]:
            log = self._log(topic)
            if not isinstance(log, CompactedLog):
                raise Refused(f"expected a compacted topic, got `{topic.name}`; read it with a subscription")
            return log.latest()

        return await self._read_thread(read)

    async def end(self, topic: Topic) -> dict[int, int]:
        self.check_open("end")
        ends = {0: (await self._read_thread(self._log_span, topic))[1]}
        if topic.name == EVENTS_RAW.name and (handed := handed_over(self.directory)) is not None:
            ends[PARTITION] = handed.end
        return ends

    async def count(self, topic: Topic) -> int:
        self.check_open("count")

        def read() -> int:
            log = self._log(topic)
            low, high = log.span()
            held = handed_over(self.directory) if topic.name == EVENTS_RAW.name else None
            in_memory = 0 if held is None else held.end - held.committed
            return in_memory + (log.behind(low) if isinstance(log, CompactedLog) else high - low)

        return await self._read_thread(read)

    async def lag(self, group: str) -> dict[str, int]:
        self.check_open("lag")

        def read() -> dict[str, int]:
            lags = {}
            topics = {topic.name: topic for topic in (*BY_NAME.values(), *self._layout.seen)}
            for name, offset in self._offsets.all().get(group, {}).items():
                topic = topics.get(name)
                if topic is not None:
                    log = self._log(topic)
                    low, high = log.span()
                    lags[name] = log.behind(offset) if isinstance(log, CompactedLog) else high - max(low, offset)
            if (handed := handed_over(self.directory)) is not None and handed.group == group:
                lags[EVENTS_RAW.name] = lags.get(EVENTS_RAW.name, 0) + handed.end - handed.committed
            return lags

        return await self._read_thread(read)

    async def groups(self) -> dict[str, dict[str, int]]:
        self.check_open("groups")
        found = await self._read_thread(self._offsets.all)
        handed = handed_over(self.directory)
        if handed is not None and EVENTS_RAW.name in found.get(handed.group, {}):
            found[handed.group] = found[handed.group] | {
                EVENTS_RAW.name: found[handed.group][EVENTS_RAW.name] + handed.committed
            }
        return found

    async def forget(self, group: str) -> None:
        self.check_open("forget")
        future: asyncio.Future[None] = self._loop.create_future()
        self._writer.submit(Forget(group, future))
        await future

    def damaged(self) -> int:
        return self.stats.quarantined

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._looking.cancel()
        self._writer.submit(Stop())
        await self._loop.run_in_executor(self._pool, self._writer.join)
        await self._loop.run_in_executor(self._pool, self._close_logs)
        self._pool.shutdown(wait=True)
        self._wake.close()
        for channel in self._channels.values():
            for reader in channel.readers:
                reader.wake()
        # What the writer finished last was handed to the loop before it ended; let publishers hear of it.
        await asyncio.sleep(0)

    def check_open(self, call: str) -> None:
        if self._closed:
            raise Refused(f"expected an open bus for `{call}`, this one was closed; open another")

    async def read(self, topic: Topic, offset: int, max_records: int, max_bytes: int) -> list[tuple[int, Record]]:
        """For subscriptions: records of the log from `offset` on."""
        rows = await self._read_thread(lambda: self._log(topic).read(offset, max_records, max_bytes))
        return rows.found

    async def place(self, group: str, topic: Topic) -> int:
        """For subscriptions: the committed offset."""
        return await self._read_thread(self._offsets.of, group, topic.name) or 0

    async def commit(self, group: str, offsets: dict[str, tuple[Topic, int]]) -> None:
        """For subscriptions: set the group's offsets."""
        await self._commit(tuple((group, topic, offset) for topic, offset in offsets.values()), register=False)

    async def _commit(self, positions: tuple[tuple[str, Topic, int], ...], *, register: bool) -> None:
        # A subscriber may have been reading when the bus was closed, and nobody would ever answer it.
        self.check_open("commit")
        future: asyncio.Future[None] = self._loop.create_future()
        self._writer.submit(Commit(positions, register, future))
        await future

    def _done(self, finished: list[Done]) -> None:
        written: set[str] = set()
        for job, result in finished:
            if isinstance(job, Append):
                self._stats.queue_bytes -= job.size
                if isinstance(result, int):
                    self._stats.records += len(job.records)
                    self._stats.bytes += job.size
                    self._unlooked += job.size
                    written.add(job.topic.name)
                    channel = self._channels.get(job.topic.name)
                    if channel is not None:
                        channel.written(result, job.records)
            if isinstance(job, Stop) or job.future.done():
                # The caller was cancelled; what it published is in the log all the same.
                continue
            if isinstance(result, BaseException):
                job.future.set_exception(result)
            elif isinstance(job, Append):
                assert isinstance(result, int)
                job.future.set_result(result)
            else:
                job.future.set_result(None)
        if written:
            self._wake.tell(written)
            if self._unlooked * 4 >= self._layout.wal_bytes:
                self._grown.set()

    def _heard(self, name: str | None) -> None:
        chosen = self._channels.values() if name is None else filter(None, [self._channels.get(name)])
        watched = [channel for channel in chosen if channel.readers]
        if watched and not self._closed:
            self._pool.submit(self._look_at, watched)

    async def _look_around(self) -> None:
        """The backstop for hints that were lost, and the background checkpoints."""
        damaged = self.damaged()
        while True:
            self._grown.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_look(self._wake.look_seconds)):
                    await self._grown.wait()
            self._unlooked = 0
            watched = [channel for channel in self._channels.values() if channel.readers]
            await self._loop.run_in_executor(self._pool, self._look_at, watched)
            before, damaged = damaged, self.damaged()
            if damaged != before:
                # Whoever follows reads all of it again.
                for channel in watched:
                    for reader in channel.readers:
                        reader.interrupt()

    def _look_at(self, channels: list[Channel]) -> None:
        for log in self._logs.values():
            if isinstance(log, SegmentedLog):
                log.forget_dropped()
        for channel in channels:
            try:
                log = self._log(channel.topic)
                end = log.span()[1]
                log.checkpoint(self._layout.wal_bytes)
            except Exception:  # noqa: BLE001 - only a look: whoever reads or writes this log meets the error and tells it.
                continue
            if end > channel.end:
                try:
                    self._loop.call_soon_threadsafe(channel.grown, end)
                except RuntimeError:
                    return

    @property
    def held_bytes(self) -> int:
        """Of the newest records of all topics, held for readers here."""
        return sum(channel.held_bytes for channel in self._channels.values())

    def _channel(self, topic: Topic) -> Channel:
        channel = self._channels.get(topic.name)
        if channel is None:
            channel = self._channels[topic.name] = Channel(topic, self._settings.memory_bytes)
        return channel

    def _log(self, topic: Topic) -> Log:
        log = self._logs.get(topic.name)
        if log is None:
            log = self._logs[topic.name] = self._layout.log(topic)
            bounds = self._offsets.bounds(topic.name)
            if bounds is not None:
                log.raise_floor(bounds[1])
        return log

    def _log_span(self, topic: Topic) -> tuple[int, int]:
        return self._log(topic).span()

    def _close_logs(self) -> None:
        for log in self._logs.values():
            log.close()
        self._offsets.close()

    async def _read_thread(self, function: Callable[..., T], *arguments: object) -> T:
        self.check_open("read")
        try:
            return await self._loop.run_in_executor(self._pool, function, *arguments)
        except Corrupt as error:
            raise Unavailable(f"expected a readable log, found {error}; it was put aside, call again", 0.0) from error


def stamped(records: Sequence[Record]) -> Sequence[Record]:
    """The same, with the time of now where there is none."""
    if all(record.timestamp_ms for record in records):
        return records
    now = time.time_ns() // 1_000_000
    return [r if r.timestamp_ms else Record(r.key, r.value, r.headers, now) for r in records]
