# SPDX-License-Identifier: Apache-2.0
"""Alerts and logs as a person reads them in a terminal: karmor's block of fields, or one compact line.

Pure. Never lets a workload write to the terminal: control characters in paths and arguments are shown, not sent.
Neighbours: `sinks.console` writes it, the CLI's `logs` may use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from schemas.alert import Alert, Log

_FIRST: Final = (
    "ClusterName", "HostName", "NamespaceName", "PodName", "Labels", "ContainerName", "ContainerID", "ContainerImage",
    "Type", "PolicyName", "Severity", "Message", "Source", "Resource", "Operation", "Action", "Data", "EventData",
    "Enforcer", "Result",
)  # fmt: skip
_HEADER: Final = frozenset({"Timestamp", "UpdatedTime"})

_COLOURS: Final = {"Block": "31;1", "Audit": "33", "Allow": "32"}


def printable(text: str) -> str:
    """`text` with everything that a terminal would act on or show as nothing written as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def block(item: Log) -> str:
    """karmor's text form: a header with the time, then `Key: value` lines, known keys first, the rest sorted."""
    kind = "Alert" if isinstance(item, Alert) else "Log"
    when = item.UpdatedTime.rstrip("Z").replace("T", " ")
    lines = [f"== {kind} / {when} =="]
    fields = msgspec.to_builtins(item)
    for key in (*_FIRST, *sorted(fields.keys() - set(_FIRST))):
        value = fields.get(key)
        if key in _HEADER or (value in ("", None, 0, [], {}) and key != "UID"):
            continue
        if value is not None:
            lines.append(f"{key}: {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{printable(str(text))}" for key, text in value.items()) + "]"
    if isinstance(value, list):
        return "[" + " ".join(printable(str(text)) for text in value) + "]"
    return printable(str(value))


def line(item: Log, *, colour: bool = False) -> str:
    """One line: time, action, operation, who, what, why. Of what the agent says of itself: time, `Note`, about what, who, why."""
    notice = item.Type == "SystemEvent"
    action = "Note" if notice else item.Action if isinstance(item, Alert) else "Log"
    shown = f"{action:<5}"
    if colour:
        code = _COLOURS.get(action.split(" ", 1)[0], "36")
        shown = f"\x1b[{code}m{shown}\x1b[0m"
    clock = item.UpdatedTime[11:23] or "-"
    where = item.HostName
    if item.ContainerName or item.PodName:
        where = f"{item.NamespaceName}/{item.PodName or item.ContainerName}"
    parts = [clock, shown, f"{item.Operation or '-':<7}", where or "-"]
    if not notice:
        parts += [item.ProcessName or item.Source or "-", "->", item.Resource or item.Data or "-"]
        if item.Result and item.Result != "Passed":
            parts.append(f"({item.Result})")
    if isinstance(item, Alert):
        parts += _why(item)
    if item.Count > 1:
        parts.append(f"x{item.Count}")
    if colour:
        return " ".join(part if part is shown else printable(part) for part in parts) + "\n"
    return printable(" ".join(parts)) + "\n"


def _why(item: Alert) -> Iterator[str]:
    if item.PolicyName:
        yield f"[{item.PolicyName}{f' sev {item.Severity}' if item.Severity else ''}]"
    if item.Message:
        yield item.Message
    elif item.MaxAlertsPerSec:
        begins = f"more than {item.MaxAlertsPerSec} alerts a second: silent for {item.DroppingAlertsInterval} s"
        yield "silence is over" if item.Suppressed else begins
    if item.Mode:
        yield f"({item.Mode}: nothing was enforced)"
    if item.Suppressed:
        yield f"(+{item.Suppressed} suppressed)"
