# SPDX-License-Identifier: Apache-2.0
"""What readers without a group will never see: gaps kept once each, counted for the process, and told by a paced line.

Of a group's readers the pump does all that. Neighbours: `reader` (where gaps are found), `broadcast`, `tables` (who is told).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from bus.contract import Gap, Partition
from bus.kafka.stats import KafkaStats
from bus.paced_log import PacedLog
from schemas.topics import BY_NAME

log = logging.getLogger(__name__)

_MOST: Final = 100


class GapList:
    """Gaps, each once though it is met again: those of a partition come in order of offset. `skipped`: records in all of them; `newest`: at
    most 100, oldest first."""

    def __init__(self) -> None:
        self.skipped = 0
        self.newest: deque[Gap] = deque(maxlen=_MOST)
        self._past: dict[Partition, int] = {}

    def add(self, gap: Gap) -> Gap | None:
        """What of `gap` is news, None when nothing is."""
        place = (gap.topic, gap.partition)
        first = max(gap.first, self._past.get(place, 0))
        if first > gap.last:
            return None
        news = Gap(gap.topic, gap.partition, first, gap.last, gap.why)
        self._past[place] = gap.last + 1
        self.newest.append(news)
        self.skipped += news.records
        return news

    def join(self, other: GapList) -> None:
        """Have those of `other`, which is of other topics, too."""
        self.skipped += other.skipped
        self.newest.extend(other.newest)
        self._past |= other._past

    def clear(self) -> None:
        """Begin anew."""
        self.skipped = 0
        self.newest.clear()
        self._past.clear()


class GrouplessLosses:
    """Counts in `stats.skipped`. A line per topic at once, then one each half a minute: who may write to a topic can cause as many as they like."""

    def __init__(self, stats: KafkaStats, prefix: str) -> None:
        self._stats = stats
        self._prefix = prefix
        self._lines: dict[str, PacedLog] = {}

    def take(self, gap: Gap) -> None:
        """Count `gap` and tell it."""
        self._stats.skipped += gap.records
        self._lines.setdefault(gap.topic, PacedLog(log)).say(
            logging.ERROR,
            f"{gap.records} records of topic `{BY_NAME[gap.topic].named(self._prefix)}` are left out here, partition {gap.partition}, "
            f"offsets {gap.first} to {gap.last}: {gap.why}",
        )
