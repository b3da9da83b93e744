# SPDX-License-Identifier: Apache-2.0
"""Records of the bus into the items a sink takes: decode, filter, redact. Hot: per record, not per event.

Telemetry is filtered and redacted before it is expanded: a frame names each behaviour and each argument list once. A record
that is not what its topic says raises `DecodeError`; delivery dead-letters it, so one bad record never stops the rest.
Neighbours: `consumer` calls it, `filters` says what passes, `schemas.expand` makes the lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from struct import error as struct_error

import msgspec

from bus.contract import Delivery
from schemas import enforcement, expand, summary, telemetry
from schemas.alert import Alert, decode_alert, encode_alert
from schemas.errors import DecodeError
from schemas.frame import FOLDED
from schemas.topics import ALERTS, ENFORCEMENT_STATUS, SUMMARIES, TELEMETRY
from sinks.delivery.filters import Filter
from sinks.sink import Item


class ItemReader:
    """Turns deliveries into items for one sink. `filtered`: alerts and events held back so far. `as_json`: alerts and
    logs as bytes."""

    def __init__(self, wanted: Filter, *, as_json: bool = False) -> None:
        self._wanted = wanted
        self._all = wanted == Filter(redact=wanted.redact)
        self._redact = wanted.redactor() if wanted.redact else None
        self._as_json = as_json
        self.filtered = 0

    def read(self, delivery: Delivery) -> Sequence[Item]:
        """The items of one record; none for a tombstone. DecodeError when its bytes are not what the topic says."""
        value = delivery.record.value
        if value is None:
            return ()
        name = delivery.topic.name
        if name == ALERTS.name:
            return self._alert(value)
        if name == TELEMETRY.name:
            return self._logs(value)
        if name == SUMMARIES.name:
            return (summary.decode(value),)
        if name == ENFORCEMENT_STATUS.name:
            return (enforcement.decode_receipt(value),)
        raise DecodeError(f"expected a topic that sinks read, got `{name}`")

    def _alert(self, value: bytes) -> Sequence[Item]:
        alert = decode_alert(value)
        if not self._all and not self._wanted.passes(alert):
            self.filtered += 1
            return ()
        changed = self._redact is not None and self._blank(alert)
        if self._as_json:
            # Untouched bytes go through as they came, with fields that only a newer writer knows. A newline between
            # fields is legal JSON and would break a file of lines.
            return (encode_alert(alert) if changed or b"\n" in value else value,)
        return (alert,)

    def _blank(self, alert: Alert) -> bool:
        assert self._redact is not None
        source = self._redact(alert.Source)
        # Only an exec has an argument list in `Resource`, whatever rule it met; a path is told as it is.
        executed = alert.Operation == "Process" or alert.Data.startswith("syscall=SYS_EXECVE")
        resource = self._redact(alert.Resource) if executed else alert.Resource
        judged = alert.Judged
        if judged is not None and judged.arguments is not None:
            text = " ".join(judged.arguments)
            if (blanked := self._redact(text)) is not text:
                judged = msgspec.structs.replace(judged, arguments=tuple(blanked.split(" ")))
        if source is alert.Source and resource is alert.Resource and judged is alert.Judged:
            return False
        alert.Source, alert.Resource, alert.Judged = source, resource, judged
        return True

    def _logs(self, value: bytes) -> Sequence[Item]:
        frame = telemetry.decode(value)
        try:
            if not self._all:
                frame = self._narrow(frame)
            if self._redact is not None:
                frame = self._blank_arguments(frame)
            return list(expand.json_lines(frame)) if self._as_json else list(expand.logs(frame))
        except (struct_error, IndexError, OverflowError, ValueError, OSError) as error:
            raise DecodeError(
                f"expected whole rows, true times and known identities in a telemetry frame of `{frame.header.node}`, got {error}"
            ) from error

    def _narrow(self, frame: telemetry.TelemetryFrame) -> telemetry.TelemetryFrame:
        wanted = self._wanted
        fit = [not wanted.namespaces or identity.namespace in wanted.namespaces for identity in frame.identities]
        keep = tuple(
            entry
            for entry in frame.behaviours
            if fit[entry.identity] and (not wanted.operations or entry.behaviour.cls.label in wanted.operations)
        )
        if len(keep) < len(frame.behaviours):
            gone = {entry.behaviour.id for entry in frame.behaviours} - {entry.behaviour.id for entry in keep}
            counts = Counter(row[2] for row in expand.ROW.iter_unpack(frame.rows))
            self.filtered += sum(counts[ident] for ident in gone)
            self.filtered += sum(count for ident, count, *_ in FOLDED.iter_unpack(frame.folded) if ident in gone)
            frame = msgspec.structs.replace(frame, behaviours=keep)
        return frame

    def _blank_arguments(self, frame: telemetry.TelemetryFrame) -> telemetry.TelemetryFrame:
        assert self._redact is not None
        processes = []
        changed = False
        for process in frame.processes:
            arguments = process.arguments
            if len(arguments) > 1:
                text = " ".join(arguments[1:])
                blanked = self._redact(text)
                if blanked is not text:
                    process = msgspec.structs.replace(process, arguments=(arguments[0], blanked))
                    changed = True
            processes.append(process)
        return msgspec.structs.replace(frame, processes=tuple(processes)) if changed else frame
