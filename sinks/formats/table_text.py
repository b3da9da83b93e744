# SPDX-License-Identifier: Apache-2.0
"""Summary tables as text, JSON or CSV. Pure. Neighbour: `summary_tables` builds them."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence

import msgspec

from schemas.cell import shortened
from sinks.formats.line_text import printable
from sinks.formats.summary_tables import (
    BIND_COLUMNS,
    CONNECTION_COLUMNS,
    FILE_COLUMNS,
    NAME_COLUMNS,
    PROCESS_COLUMNS,
    ConnectionLine,
    PathLine,
    SummaryTables,
)

TITLES = {
    "process": "Process Data", "file": "File Data", "ingress": "Ingress connections", "egress": "Egress connections",
    "bind": "Bind Points", "dns": "DNS names asked for",
}  # fmt: skip
"""Field of `SummaryTables` -> what stands above the table; the keys are what `-t` of the CLI takes."""

_PATHS = {"process": PROCESS_COLUMNS, "file": FILE_COLUMNS, "dns": NAME_COLUMNS}
"""Tables of `PathLine`."""


def when(unix_ns: int) -> str:
    """`Mon Nov 14 03:49:44 UTC 2022`."""
    return time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(unix_ns // 1_000_000_000))


def text(tables: SummaryTables, kinds: Sequence[str] = tuple(TITLES), *, wide: bool = False) -> str:
    """Header and every table that has lines; a sentence when none has. STATUS, which the 0.7 tables of connections do not have,
    stands in those where not every line is `Allow`; with `wide` in all, and cells are
    whole; without it long ones are cut."""
    header = tables.header
    parts = [
        _key_values(
            ("Pod Name", header.pod), ("Namespace Name", header.namespace), ("Cluster Name", header.cluster),
            ("Container Name", header.container), ("Labels", header.labels),
        )
    ]  # fmt: skip
    for kind in kinds:
        columns, cells = _cells(tables, kind, wide)
        if cells:
            if not wide:
                cells = [tuple(shortened(cell) for cell in row) for row in cells]
            parts.append(f"{TITLES[kind]}\n{grid(columns, cells)}")
    if len(parts) == 1:
        parts.append("Nothing was seen in this time.\n")
    return "\n".join(parts)


def as_json(every: Iterable[SummaryTables], kinds: Sequence[str] = tuple(TITLES)) -> bytes:
    """A JSON array of `SummaryTables`; `last` in Unix ns. Kinds that were not asked for are not there."""
    shown = ("header", *kinds)
    made = [{name: getattr(tables, name) for name in tables.__struct_fields__ if name in shown} for tables in every]
    return msgspec.json.format(msgspec.json.encode(made), indent=2)


def as_csv(every: Iterable[SummaryTables], kinds: Sequence[str] = tuple(TITLES)) -> str:
    """One line per table line, all tables in one file: the same columns for all, empty where they do not apply."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "cluster", "namespace", "pod", "container", "labels", "source", "destination", "protocol", "port",
         "peer_namespace", "peer_labels", "count", "last_updated", "status"]
    )  # fmt: skip
    for tables in every:
        head = tables.header
        for kind in kinds:
            start = [kind, head.cluster, head.namespace, head.pod, head.container, head.labels]
            for line in _lines(tables, kind):
                end = [line.count, when(line.last), line.status]
                if isinstance(line, PathLine):
                    middle: list[object] = [line.source, line.destination, "", "", "", ""]
                else:
                    middle = [line.command, line.peer, line.protocol, line.port, line.namespace, line.labels]
                writer.writerow([_safe(cell) for cell in (*start, *middle, *end)])
    return out.getvalue()


def grid(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in `+-|`, as kubectl's and karmor's readers know it."""
    widths = [max(len(row[at]) for row in (columns, *cells)) for at in range(len(columns))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    body = [rule, _row(columns, widths), rule, *(_row(row, widths) for row in cells), rule]
    return "".join(body)


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |\n"


def _key_values(*pairs: tuple[str, str]) -> str:
    width = max(len(key) for key, _ in pairs)
    return "".join(f"  {key.ljust(width)}  {printable(value) or '-'}\n" for key, value in pairs)


def _lines(tables: SummaryTables, kind: str) -> Sequence[PathLine | ConnectionLine]:
    found: Sequence[PathLine | ConnectionLine] = getattr(tables, kind)
    return found


def _cells(tables: SummaryTables, kind: str, wide: bool) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    if kind in _PATHS:
        columns: Sequence[str] = _PATHS[kind]
        paths = [line for line in _lines(tables, kind) if isinstance(line, PathLine)]
        return columns, [
            (printable(line.source), printable(line.destination), str(line.count), when(line.last), line.status)
            for line in paths
        ]
    lines = [line for line in _lines(tables, kind) if isinstance(line, ConnectionLine)]
    wide = wide or any(line.status != "Allow" for line in lines)
    cells = []
    for line in lines:
        peer, port = printable(line.peer) or "-", str(line.port) if line.port or line.peer else "-"
        place = (port, peer) if kind == "bind" else (peer, port, line.namespace or "-", line.labels or "-")
        end = (str(line.count), when(line.last), *((line.status,) if wide else ()))
        cells.append((line.protocol, printable(line.command), *place, *end))
    columns = BIND_COLUMNS if kind == "bind" else CONNECTION_COLUMNS
    return ((*columns, "STATUS") if wide else columns), cells


def _safe(cell: object) -> object:
    # A path may begin with what a spreadsheet takes for a formula.
    if isinstance(cell, str):
        cell = printable(cell)
        return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
    return cell
