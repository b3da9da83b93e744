# SPDX-License-Identifier: Apache-2.0
"""RFC 5424 messages and their framing on a stream (RFC 6587). Pure.

Lengths are bytes. A message that is too long loses the ends of its longest texts, and says how much; only one that cannot
be made to fit is refused. Neighbours: `sinks.syslog` (the sink), `cef` (one of the payloads), `sinks.syslog_wire` (the socket).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from schemas.alert import Alert, Log
from schemas.errors import Refused
from sinks.formats.cef import cef

FACILITIES: Final = {
    "kern": 0, "user": 1, "daemon": 3, "auth": 4, "authpriv": 10, "audit": 13, "alert": 14, "local0": 16, "local1": 17,
    "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}  # fmt: skip

Payload = Literal["cef", "json"]
Framing = Literal["octets", "newline", "none"]

_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
_SD: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "]": "\\]"})
_SPECIAL: Final = re.compile(r'[\\"\]]')
_CUT_FIRST: Final = (
    "Source",
    "Resource",
    "Data",
    "Message",
    "Labels",
    "ContainerImage",
    "ParentProcessName",
    "ProcessName",
)
_KEEP: Final = 48


def message(item: Log, *, facility: int, app: str, payload: Payload) -> bytes:
    """The whole message without framing."""
    head = (
        f"<{facility * 8 + severity(item)}>1 {item.UpdatedTime or '-'} {_name(item.HostName, 255)} {_name(app, 48)} - "
        f"{_name(item.Operation or item.Type, 32)} {_structured(item)} "
    )
    body = msgspec.json.encode(item) if payload == "json" else cef(item).encode()
    return head.encode() + body


def fitted(item: Log, limit: int, make: Callable[[Log], bytes]) -> bytes:
    """`make(item)`, with texts cut until it has at most `limit` bytes. Refused when it cannot be done."""
    data = make(item)
    if len(data) <= limit:
        return data
    # `EventData` repeats `Data` and `Resource` in other words.
    item = msgspec.structs.replace(item, EventData=None)
    for field in _CUT_FIRST:
        data = make(item)
        if len(data) <= limit:
            return data
        value: str = getattr(item, field)
        if len(value) > _KEEP:
            # A character may take several bytes on the wire, so this may cut too much, never too little in the end.
            keep = max(_KEEP, len(value) - (len(data) - limit) - 24)
            item = msgspec.structs.replace(item, **{field: f"{value[:keep]}...[{len(value) - keep} cut]"})
    data = make(item)
    if len(data) > limit:
        raise Refused(
            f"syslog: expected a message of at most {limit} bytes (`max_bytes`), got {len(data)} after cutting"
        )
    return data


def framed(data: bytes, framing: Framing) -> bytes:
    """`data` as it goes on the wire: counted octets, or ended by a newline (line ends inside become spaces)."""
    if framing == "octets":
        return b"%d %b" % (len(data), data)
    if framing == "newline":
        return data.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"
    return data


def severity(item: Log) -> int:
    """Syslog severity: 2 critical for 9-10, 3 for 7-8, 4 for 5-6, 5 for 3-4, 6 for the rest and for logs."""
    if not isinstance(item, Alert):
        return 6
    try:
        level = int(item.Severity)
    except ValueError:
        return 4 if item.Action == "Block" else 5
    return min(6, max(2, 6 - (level - 1) // 2))


def _structured(item: Log) -> str:
    pairs = [("eventId", item.EventID), ("namespace", item.NamespaceName), ("pod", item.PodName)]
    if isinstance(item, Alert):
        pairs += [("policy", item.PolicyName), ("action", item.Action), ("mode", item.Mode)]
    # 32473 is the enterprise number that RFC 5612 gives to documentation; Hauberk has none of its own.
    told = "".join([f' {key}="{_escaped(value)}"' for key, value in pairs if value])
    return f"[hauberk@32473{told}]" if told else "-"


def _escaped(text: str) -> str:
    return text.translate(_SD) if _SPECIAL.search(text) else text


def _name(text: str, most: int) -> str:
    return _NOT_PRINTABLE.sub("_", text)[:most] or "-"
