# SPDX-License-Identifier: Apache-2.0
"""An alert as the record that `alerts.v1` carries.

Apart from `processors.alerts`: a node tells of a full disk, and does not carry what judging needs.
"""

from __future__ import annotations

from bus.contract import Record
from schemas.alert import Alert, cloudevents, encode_alert


def record_of(alert: Alert, workload: str) -> Record:
    """The record on `alerts.v1`: JSON value, CloudEvents 1.0 binary mode headers (`schemas.alert.HEADERS`)."""
    return Record(workload.encode(), encode_alert(alert), cloudevents(alert, workload))
