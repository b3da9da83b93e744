# SPDX-License-Identifier: Apache-2.0
"""What delivery counts, as plain integers: read by `prometheus`, by `hauberk doctor` and by tests."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class DeliveryStats(msgspec.Struct, kw_only=True):
    """Counters of one sink's delivery since it started.

    `skipped`: records lost to it because retention ran past it. `lag`: records not committed, as of the last look. Names in
    `GAUGES` may also fall; those in `LABELS` become metric labels."""

    GAUGES: ClassVar[frozenset[str]] = frozenset({"up", "failing", "waiting_items", "lag"})
    LABELS: ClassVar[tuple[str, ...]] = ("sink",)

    sink: str
    taken: int = 0
    accepted: int = 0
    filtered: int = 0
    refused: int = 0
    undecodable: int = 0
    dead: int = 0
    retries: int = 0
    batches: int = 0
    size_bytes: int = 0
    committed: int = 0
    skipped: int = 0
    lag: int = 0
    waiting_items: int = 0
    failing: int = 0
    up: int = 0
