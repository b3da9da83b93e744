# SPDX-License-Identifier: Apache-2.0
"""Times of records that replace others, written by machines whose clocks differ: never older than what is there.

Whoever follows `policies` takes a log whose newest record is older than before for one that lost records. A deletion by a clock that
is behind must not look like that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from bus.contract import Record


def newest(records: Iterable[Record]) -> int:
    """Unix ms of the youngest of `records`; 0 when there are none."""
    return max((record.timestamp_ms for record in records), default=0)


def not_before(newest_ms: int, records: Iterable[Record]) -> list[Record]:
    """`records` with a time after `newest_ms` where this clock is behind that; else the bus stamps them."""
    if newest_ms < time.time_ns() // 1_000_000:
        return list(records)
    return [msgspec.structs.replace(record, timestamp_ms=newest_ms + 1) for record in records]
