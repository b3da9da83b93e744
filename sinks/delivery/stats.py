# SPDX-License-Identifier: Apache-2.0
"""What delivery counts, as plain integers: read by `prometheus`, by `hauberk doctor` and by tests."""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge, Label, Level


class SyslogStats(msgspec.Struct, kw_only=True):
    """Connections of one syslog sink since it was made. `reconnects`: connections after the first; `resent`: messages sent
    again on one, because the receiver may have died before it read them."""

    sink: Label
    reconnects: int = 0
    resent: int = 0


class DeliveryStats(msgspec.Struct, kw_only=True):
    """Counters of one sink's delivery since it started.

    `skipped`: records lost to it because retention ran past it. `lag`: records not committed, as of the last look. `partitions`,
    `rebalances`, `work_seconds`, `late_seconds`: see `bus.pump.PumpStats`."""

    sink: Label
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
    lag: Gauge = 0
    partitions: Gauge = 0
    rebalances: int = 0
    work_seconds: float = 0.0
    late_seconds: Level = 0.0
    waiting_items: Gauge = 0
    failing: Gauge = 0
    up: Gauge = 0
