# SPDX-License-Identifier: Apache-2.0
"""Alerts of the pipeline about itself that belong to no frame: damaged policies, a full disk. A `SystemEvent`, which every
sink takes like a notice of losses.

Neighbours: `processors.alerts` (those of frames), `hauberk.disk` (who hears of the disk).
"""

from __future__ import annotations

import time

from bus.contract import Record
from processors.alert_record import record_of
from schemas.alert import NOTICE, Alert, made_by
from schemas.wording import updated_time


def notice(node: str, operation: str, message: str, data: dict[str, str] | None = None, severity: int = 0) -> Record:
    """The record on `alerts.v1`. `operation`: one word, what happened; `data`: what a program reads of it."""
    unix = time.time_ns()
    alert = Alert(
        Timestamp=unix // 1_000_000_000,
        UpdatedTime=updated_time(unix),
        HostName=node,
        Type=NOTICE,
        Operation=operation,
        Severity=str(severity) if severity else "",
        Data=" ".join(f"{key}={value}" for key, value in (data or {}).items()),
        EventData=data or None,
        Result="Passed",
        Message=message,
        EventID=f"{node}:{operation}:{unix}",
        KubeArmorVersion=made_by(),
    )
    return record_of(alert, node)
