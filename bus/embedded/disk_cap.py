# SPDX-License-Identifier: Apache-2.0
"""The embedded bus within its bytes: when all topics together are over the cap, the oldest goes, whichever topic it is of.

What can be made again, or is one of many, goes before `durable_topics` (alerts, dead letters). Segments go whole, rows of a
topic that forgets by key and by age some at a time. State (topics that only forget by key) never goes, and neither does the
newest segment of a topic. Neighbours: `writer` (calls this now and then), `segments` and `compacted` (what can go).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from bus.embedded.compacted import CompactedLog
from bus.embedded.layout import ROWS_AT_ONCE, DirectoryLayout, Log
from schemas.errors import DiskFull
from schemas.topics import Cleanup, Topic


class Dropped(msgspec.Struct, kw_only=True):
    """What one look took of one topic. `unread`: records that some group had not read."""

    topic: str
    bytes: int = 0
    unread: int = 0


class DiskCap(msgspec.Struct, kw_only=True):
    """`used`: bytes of all topics after the look."""

    used: int
    dropped: list[Dropped]


_SHED: Final = {"events.raw": 0, "telemetry": 1, "summaries": 2, "alerts": 4}
"""What goes first on a full disk: what a node tells again, what only shows, what is counted; alerts last."""


def make_room(
    layout: DirectoryLayout, logs: Mapping[Topic, Log], lowest: Mapping[Topic, int | None], most: int, short: int = 0
) -> DiskCap:
    """Drop until all of `logs` take at most `most` bytes (0: no cap) and `short` bytes are free that were not. `lowest`:
    committed offsets, None without a group. Over the cap the oldest goes; for a full disk it goes by what it is (`_SHED`)."""
    used = sum(map(_size, logs.values()))
    taken: dict[str, Dropped] = {}
    rows = ROWS_AT_ONCE
    exhausted: set[Topic] = set()
    while (over := most and used > most) or short > 0:
        found = [
            (layout.durable(topic), 0 if over else _SHED.get(topic.name, 0), at, topic.name, topic)
            for topic, log in logs.items()
            if topic not in exhausted and topic.cleanup is not Cleanup.COMPACT and (at := _oldest_ms(log)) is not None
        ]
        if not found:
            break
        topic = min(found)[4]
        log, passed = logs[topic], lowest[topic]
        if isinstance(log, CompactedLog):
            try:
                lost, freed = log.drop_oldest(min(max(used - most if over else 0, short), rows), passed or 0)
            except DiskFull:
                # Rows are deleted by writing, for which there is no room: files that are removed make some.
                exhausted.add(topic)
                continue
            rows -= freed
        else:
            lost, freed = log.drop_oldest(passed or 0)
        if not freed or rows <= 0:
            exhausted.add(topic)
        used -= freed
        short -= freed
        one = taken.setdefault(topic.name, Dropped(topic=topic.name))
        one.bytes += freed
        one.unread += 0 if passed is None else lost
    return DiskCap(used=used, dropped=[one for one in taken.values() if one.bytes])


def _size(log: Log) -> int:
    """Bytes of `log`, 0 for a table that can only be asked with room that there is not: the others are to make some."""
    try:
        return log.size()
    except DiskFull:
        return 0


def _oldest_ms(log: Log) -> int | None:
    """As `log.oldest_ms`; None for a table that can only be asked with room that there is not."""
    try:
        return log.oldest_ms()
    except DiskFull:
        return None
