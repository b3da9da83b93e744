# SPDX-License-Identifier: Apache-2.0
"""An alert or log in ArcSight's Common Event Format, version 0.

Pure. Header fields escape `\\` and `|`; extension values escape `\\`, `=` and line ends, and nothing else, because receivers
keep a needless backslash. Other control characters, which a workload may put into a path, become `\\xNN` first. Neighbour: `sinks.syslog` carries it.
"""

from __future__ import annotations

import posixpath
import re
from importlib.metadata import version
from typing import Final

from schemas.alert import Alert, Log
from sinks.formats.line_text import printable

PRODUCT_VERSION: Final = version("hauberk")
_HEADER: Final = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " ", "\r": " "})
_VALUE: Final = str.maketrans({"\\": "\\\\", "=": "\\=", "\n": "\\n", "\r": "\\r"})
_SPECIAL: Final = re.compile(r"[\\=\n\r]")
_ACTS: Final = {"Block": "blocked", "Audit": "audited", "Allow": "allowed"}


def cef(item: Log, product_version: str = PRODUCT_VERSION) -> str:
    """One line without its end. `product_version`: of the product that tells it."""
    alert = item if isinstance(item, Alert) else None
    ident = (alert.PolicyName if alert else "") or item.Operation or item.Type
    name = (alert.Message if alert else "") or f"{item.Operation} {alert.Action.lower() if alert else 'seen'}"
    severity = _severity(alert)
    head = "|".join(
        _without_controls(part).translate(_HEADER) for part in ("Hauberk", "hauberk", product_version, ident, name)
    )
    pairs = [
        f"{key}={_escaped(str(value))}" for key, value in _fields(item, alert) if value != "" and value is not None
    ]
    return f"CEF:0|{head}|{severity}|{' '.join(pairs)}"


def _escaped(text: str) -> str:
    # Most values hold nothing to escape, and looking is ten times faster than translating.
    text = _without_controls(text)
    return text.translate(_VALUE) if _SPECIAL.search(text) else text


def _without_controls(text: str) -> str:
    r"""Control characters as `\xNN`, as the console shows them; line ends stay for the format's own escapes."""
    if text.isprintable():
        return text
    return "".join(char if char in "\n\r" else printable(char) for char in text)


def _severity(alert: Alert | None) -> int:
    if alert is None:
        return 0
    try:
        return min(10, max(0, int(alert.Severity)))
    except ValueError:
        # A default posture hit has none: in the middle, a little higher when something was stopped.
        return 6 if alert.Action == "Block" else 4


def _fields(item: Log, alert: Alert | None) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [
        ("rt", _milliseconds(item)),
        ("externalId", item.EventID),
        ("cat", item.Operation),
        ("outcome", "success" if item.Result in ("", "Passed") else "failure"),
        ("reason", "" if item.Result == "Passed" else item.Result),
        ("dvchost", item.HostName),
        ("suid", item.UID),
        ("suser", item.UserName),
        ("cnt", item.Count),
    ]
    if alert is not None:
        fields += [
            ("act", _ACTS.get(alert.Action.split(" ", 1)[0], alert.Action)),
            ("msg", alert.Message),
            ("cs1Label", alert.PolicyName and "policy"),
            ("cs1", alert.PolicyName),
            ("cs6Label", alert.Tags and "tags"),
            ("cs6", alert.Tags),
            ("flexString1Label", alert.Mode and "mode"),
            ("flexString1", alert.Mode),
        ]
    for number, label, value in (
        (2, "namespace", item.NamespaceName), (3, "pod", item.PodName), (4, "containerId", item.ContainerID),
        (5, "containerImage", item.ContainerImage),
    ):  # fmt: skip
        if value:
            fields += [(f"cs{number}Label", label), (f"cs{number}", value)]
    return fields + _what(item)


def _what(item: Log) -> list[tuple[str, object]]:
    if item.Operation == "Process":
        # `dproc`: what was executed; `sproc`: who did it.
        return [
            ("spid", item.HostPPID or ""), ("sproc", item.ParentProcessName), ("dpid", item.HostPID or ""),
            ("dproc", item.ProcessName), ("request", item.Resource),
        ]  # fmt: skip
    actor: list[tuple[str, object]] = [("spid", item.HostPID or ""), ("sproc", item.ProcessName or item.Source)]
    if item.Operation == "File":
        path = item.Resource
        return [*actor, ("filePath", path), ("fname", posixpath.basename(path.rstrip("/")))]
    if item.Operation == "Network":
        incoming = "accept" in item.Data.lower()
        protocol = (item.EventData or {}).get("Protocol", "")
        return [
            *actor, *_address(item, incoming=incoming), ("proto", protocol),
            ("deviceDirection", 0 if incoming else 1), ("request", item.Resource),
        ]  # fmt: skip
    return [*actor, ("request", item.Resource)]


def _address(item: Log, *, incoming: bool) -> list[tuple[str, object]]:
    address, port = item.RemoteAddress, item.RemotePort or ""
    if not address:
        return []
    if ":" in address:
        # `src` and `dst` are IPv4 alone; IPv6 has custom fields of its own.
        number, label = (2, "Source IPv6 Address") if incoming else (3, "Destination IPv6 Address")
        ends: list[tuple[str, object]] = [(f"c6a{number}Label", label), (f"c6a{number}", address)]
    else:
        ends = [("src" if incoming else "dst", address)]
    return [*ends, ("spt" if incoming else "dpt", port)]


def _milliseconds(item: Log) -> int:
    # `UpdatedTime` ends in `.123456Z`; `Timestamp` alone has whole seconds.
    fraction = item.UpdatedTime[20:23]
    return item.Timestamp * 1000 + (int(fraction) if fraction.isdigit() and len(fraction) == 3 else 0)
