# SPDX-License-Identifier: Apache-2.0
"""What delivery counts, as plain integers: read by `prometheus`, by `hauberk doctor` and by tests."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class DeliveryStats(msgspec.Struct, kw_only=True):
    """Counters of one sink since it started; names in `GAUGES` may also fall."""

    GAUGES: ClassVar[frozenset[str]] = frozenset({"up", "failing", "waiting_items"})

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
    waiting_items: int = 0
    failing: int = 0
    up: int = 0
