# SPDX-License-Identifier: Apache-2.0
"""What the store sink counts, as plain integers."""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge, Label


class StoreStats(msgspec.Struct, kw_only=True):
    """What the store made of its batches since start.

    See `store.Applied`; `tidied`: rows rolled up or forgotten for their age; `cut_rows`: counts and alerts forgotten because the
    file was over `max_bytes`; `file_bytes`: its size at the last look."""

    sink: Label
    summaries: int = 0
    repeated: int = 0
    overlapping: int = 0
    late: int = 0
    alerts: int = 0
    tidied: int = 0
    cut_rows: int = 0
    file_bytes: Gauge = 0
