# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the embedded bus's directory, which topics fsync, and what may be forgotten when.

::

    DIR/groups.db                 offsets of every group
    DIR/leases/GROUP@TOPIC        flock of the member that reads
    DIR/wake/PID-RANDOM           datagram sockets of the processes that have the log open
    DIR/topics/NAME.vN/           one log: `segments` or `compacted`

Each thread makes its own logs and offsets from the same layout. Neighbours: `bus`, `writer`, `reader`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from bus.embedded.compacted import CompactedLog
from bus.embedded.offsets import Lease, Offsets
from bus.embedded.segments import SegmentedLog
from schemas.topics import Cleanup, Topic

Log = SegmentedLog | CompactedLog

ROWS_AT_ONCE: Final = 16 << 20
"""Bytes of rows deleted in one go: the writing thread does it, and publishers wait for it some 0.1 s."""


class DirectoryLayout(msgspec.Struct, frozen=True):
    """The directory and its rules. `hours`, `bytes_kept`: overrides by topic name. Times in seconds."""

    root: Path
    durable_topics: frozenset[str]
    segment_bytes: int
    segment_age: float
    bytes_kept: int
    hours: dict[str, float]
    bytes_by_topic: dict[str, int]
    tombstone_age: float
    keep_read: frozenset[str]
    total_bytes: int
    member_seconds: float
    wal_bytes: int = 16 << 20
    seen: list[Topic] = msgspec.field(default_factory=list)

    def directory(self, topic: Topic) -> Path:
        return self.root / "topics" / f"{topic.name}.v{topic.version}"

    def durable(self, topic: Topic) -> bool:
        return topic.name in self.durable_topics

    def log(self, topic: Topic) -> Log:
        if topic not in self.seen:
            self.seen.append(topic)
        if topic.compacted:
            return CompactedLog(self.directory(topic), durable=self.durable(topic))
        return SegmentedLog(
            self.directory(topic),
            durable=self.durable(topic),
            segment_bytes=self.segment_bytes,
            segment_age=self.segment_age,
        )

    def offsets(self) -> Offsets:
        return Offsets(self.root)

    def lease(self, group: str, topic: Topic) -> Lease:
        return Lease(self.root / "leases", group, topic.name, self.member_seconds)

    def tidy(self, topic: Topic, log: Log, lowest: int | None) -> int:
        """Seal, drop and sweep `log`; `lowest`: the lowest committed offset, None without groups.

        Returns the records dropped before some group had read them.
        """
        now = time.time()
        hours = self.hours.get(topic.name, topic.retention_hours)
        oldest_ms = int((now - hours * 3600) * 1000) if hours else 0
        most = self.bytes_by_topic.get(topic.name, self.bytes_kept)
        if isinstance(log, CompactedLog):
            state = topic.cleanup is Cleanup.COMPACT
            log.sweep(int((now - self.tombstone_age) * 1000), 0 if state else oldest_ms)
            over = 0 if state else log.size() - most
            lost = log.drop_oldest(min(over, ROWS_AT_ONCE), lowest or 0)[0] if over > 0 else 0
            return 0 if lowest is None else lost
        log.rotate(now)
        lost, _ = log.drop(lowest or 0, oldest_ms, most, keep_passed=topic.name in self.keep_read)
        return 0 if lowest is None else lost
