# SPDX-License-Identifier: Apache-2.0
"""The embedded bus's one writing thread: what piled up while it wrote goes into the next transaction (group commit).

::

    publish ─► queue ─► [one transaction per topic: first those that may lose a power cut, then those that fsync]
                        └► results to the loop in one call; only then does anybody, publisher or reader, hear of it

It must never touch the event loop except through `call_soon_threadsafe`. It also keeps the house: seals full segments and
drops what nobody needs. Neighbours: `segments`, `compacted`, `offsets` (its own instances), `bus`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from bus.contract import Record
from bus.disk import DiskReserve, look
from bus.embedded.compacted import CompactedLog
from bus.embedded.database import Corrupt
from bus.embedded.disk_cap import make_room
from bus.embedded.layout import DirectoryLayout, Log
from bus.embedded.segments import SegmentedLog
from schemas.errors import DiskFull, HauberkError, Refused, Unavailable
from schemas.topics import TOPICS, Topic


class Append(msgspec.Struct, frozen=True):
    """Write `records` to `topic`; the future gets the offset of the first."""

    topic: Topic
    records: Sequence[Record]
    size: int
    future: asyncio.Future[int]


class Commit(msgspec.Struct, frozen=True):
    """Set offsets: (group, topic, next). `register`: only where there is none yet."""

    positions: tuple[tuple[str, Topic, int], ...]
    register: bool
    future: asyncio.Future[None]


class Forget(msgspec.Struct, frozen=True):
    group: str
    future: asyncio.Future[None]


class Stop(msgspec.Struct, frozen=True):
    pass


Job = Append | Commit | Forget | Stop
# What the loop is told: a finished job with its result or its error.
Done = tuple[Job, int | BaseException | None]

_AT_REST = 10
"""Times as long between two looks when nothing was written in between."""
_LOOK_SECONDS = 0.02
_TRIES_OF_WHAT_IS_KEPT = 4
"""After the first, on a full disk; each makes room."""
_PAUSE = 0.01
"""Seconds before the second of them, twice as many before the third."""

_log = logging.getLogger("hauberk.bus")


class LogWriter:
    """`submit` from the loop; `done` is called on the loop with finished jobs, in the order they were written."""

    def __init__(
        self,
        layout: DirectoryLayout,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[list[Done]], None],
        housekeeping: float,
    ) -> None:
        self._layout = layout
        self._loop = loop
        self._done = done
        self._housekeeping = housekeeping
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._logs: dict[str, Log] = {}
        self._offsets = layout.offsets()
        self._since_look: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="bus-writer", daemon=True)
        self.dropped = 0
        self.capped_bytes = 0
        self.disk_bytes = 0
        self.disk_free = 0
        self.full = 0
        self._looked = 0.0
        self.shed: dict[str, int] = {}
        self._reserve = DiskReserve(layout.root)
        self._try(lambda: self._reserve.take(look(layout.root)))
        self._said: dict[str, str] = {}
        self.commits = 0
        self._thread.start()

    @property
    def quarantined(self) -> int:
        return self._offsets.quarantined + sum(log.quarantined for log in list(self._logs.values()))

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def join(self) -> None:
        """Wait until everything submitted before `Stop` is written. Blocks: call it off the loop."""
        self._thread.join()

    def _run(self) -> None:
        next_look = time.monotonic() + self._housekeeping
        running, written = True, True
        while running:
            jobs: list[Job] = []
            try:
                jobs.append(self._queue.get(timeout=max(0.0, next_look - time.monotonic())))
                while True:
                    jobs.append(self._queue.get_nowait())
            except queue.Empty:
                pass
            running = not any(isinstance(job, Stop) for job in jobs)
            # Topics without fsync first: a frame of raw events never waits behind an alert's fsync of the same round.
            for durable in (False, True):
                finished = self._write([job for job in jobs if self._durable(job) is durable], durable)
                if finished:
                    self._tell(finished)
            written = written or bool(jobs)
            if time.monotonic() >= next_look:
                self._keep_house()
                # At rest only what is old is left to find.
                next_look = time.monotonic() + self._housekeeping * (1 if written else _AT_REST)
                written = False
            elif jobs:
                next_look = min(next_look, time.monotonic() + self._housekeeping)
        self._offsets.close()
        for log in self._logs.values():
            log.close()

    def _durable(self, job: Job) -> bool:
        match job:
            case Append(topic=topic):
                return self._layout.durable(topic)
            case Commit(positions=positions):
                return any(self._layout.durable(topic) for _, topic, _ in positions)
            case _:
                return True

    def _write(self, jobs: list[Job], durable: bool) -> list[Done]:
        finished: list[Done] = []
        appends: dict[str, list[Append]] = {}
        commits: list[Commit] = []
        for job in jobs:
            if isinstance(job, Append):
                appends.setdefault(job.topic.name, []).append(job)
            elif isinstance(job, Commit):
                commits.append(job)
        for group in appends.values():
            finished += self._append(group)
        # After the appends: a batch's outcome is on disk before the offset that says it was handled.
        for register in (True, False):
            chosen = [job for job in commits if job.register is register]
            if chosen:
                positions = [(group, topic.name, at) for job in chosen for group, topic, at in job.positions]
                commit = partial(self._offsets.commit, positions, durable=durable, register=register)
                problem = self._with_room(commit, True)
                finished += [(job, problem) for job in chosen]
        for job in jobs:
            if isinstance(job, Forget):
                finished.append((job, self._try(lambda: self._offsets.forget(job.group))))  # noqa: B023
        return finished

    def _append(self, jobs: list[Append]) -> list[Done]:
        topic = jobs[0].topic
        records = jobs[0].records if len(jobs) == 1 else [record for job in jobs for record in job.records]
        first = 0

        def write() -> None:
            nonlocal first
            log = self._log(topic)
            first = log.append(records)
            grown = self._since_look.get(topic.name, 0) + sum(job.size for job in jobs)
            if grown * 8 >= self._layout.segment_bytes:
                if isinstance(log, SegmentedLog):
                    log.rotate(time.time())
                else:
                    # Whoever reads it does so in the background; nobody may.
                    log.checkpoint(self._layout.wal_bytes)
                grown = 0
            self._since_look[topic.name] = grown

        problem = self._with_room(write, self._layout.durable(topic))
        self.commits += 1
        finished: list[Done] = []
        for job in jobs:
            finished.append((job, first if problem is None else problem))
            first += len(job.records)
        return finished

    def _log(self, topic: Topic) -> Log:
        log = self._logs.get(topic.name)
        if log is None:
            log = self._layout.log(topic)
            bounds = self._offsets.bounds(topic.name)
            if bounds is not None:
                # A power cut may have taken the end of a log whose group had already committed past it.
                log.raise_floor(bounds[1])
            self._logs[topic.name] = log
        return log

    def _keep_house(self) -> None:
        failed = {"groups.db": self._try(lambda: self._offsets.checkpoint(self._layout.wal_bytes // 16))}
        for topic in self._topics():
            failed[topic.name] = self._try(lambda: self._tidy(topic))  # noqa: B023
        failed["the whole bus"] = self._try(self._make_room)
        said = {what: str(error) for what, error in failed.items() if error is not None}
        for what, why in said.items():
            # Each time it is another failure, not each two seconds.
            if self._said.get(what) != why:
                _log.warning("what is old could not be dropped from %s: %s", what, why)
        self._said = said

    def _topics(self) -> list[Topic]:
        every = {topic.name: topic for topic in (*TOPICS, *self._layout.seen)}
        return [topic for topic in every.values() if self._layout.directory(topic).exists()]

    def _make_room(self) -> None:
        logs = {topic: self._log(topic) for topic in self._topics()}
        bounds = {topic: self._offsets.bounds(topic.name) for topic in logs}
        lowest = {topic: None if found is None else found[0] for topic, found in bounds.items()}
        disk = look(self._layout.root)
        room = make_room(self._layout, logs, lowest, self._layout.total_bytes, disk.short)
        self.disk_bytes = room.used
        why = "the disk is full" if disk.short else f"over `bus.total_bytes` ({self._layout.total_bytes >> 20} MiB)"
        for one in room.dropped:
            self.dropped += one.unread
            self.capped_bytes += one.bytes
            if disk.short:
                self.shed[one.topic] = self.shed.get(one.topic, 0) + one.bytes
            _log.warning(
                "%s: the oldest %.1f MiB of %s dropped, %d records of it not read by every group",
                why, one.bytes / (1 << 20), one.topic, one.unread,
            )  # fmt: skip
        disk = look(self._layout.root)
        self.disk_free = disk.free
        self._reserve.take(disk)

    def _shorten(self) -> None:
        self._offsets.checkpoint(0, shorten=True)
        for log in self._logs.values():
            if isinstance(log, CompactedLog):
                log.checkpoint(0, shorten=True)

    def _with_room(self, action: Callable[[], None], keeps: bool) -> BaseException | None:
        """`action`, and again after making room when the disk is full. `keeps`: what is written must not be lost, so that it may
        take the reserve, and is tried again more than once: readers hold the room of what was dropped for a moment longer."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            # A flood fills a small disk between two looks of the house.
            self._looked = now
            disk = look(self._layout.root)
            if disk.free < disk.spare // 2:
                self._try(self._make_room)
        problem = self._try(action)
        for attempt in range(_TRIES_OF_WHAT_IS_KEPT if keeps else 1):
            if not isinstance(problem, DiskFull):
                break
            self.full += not attempt
            time.sleep(_PAUSE * attempt)
            if keeps:
                self._reserve.give_up()
            self._try(self._shorten)
            if isinstance(self._try(self._make_room), DiskFull) and self._reserve.give_up():
                # Looking at what there is takes some room of its own.
                self._try(self._make_room)
            problem = self._try(action)
        return problem

    def _tidy(self, topic: Topic) -> None:
        log = self._log(topic)
        bounds = self._offsets.bounds(topic.name)
        self.dropped += self._layout.tidy(topic, log, None if bounds is None else bounds[0])

    def _try(self, action: Callable[[], None]) -> BaseException | None:
        try:
            action()
        except HauberkError as error:
            return error
        except Corrupt as error:
            return Unavailable(f"expected a readable log, found {error}; it was put aside, call again", 0.0)
        except Exception as error:  # noqa: BLE001 - the thread must outlive what it did not foresee; the caller is told.
            return Refused(f"the bus could not write: {type(error).__name__}: {error}")
        return None

    def _tell(self, finished: list[Done]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._done, finished)
        except RuntimeError:
            # The loop was closed before the bus: nobody is left to tell.
            return
