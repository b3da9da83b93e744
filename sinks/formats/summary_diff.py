# SPDX-License-Identifier: Apache-2.0
"""Two sets of summary tables compared: what is new, gone, or done much more or less often. Pure; the same input gives the same text.

Neighbours: `summary_tables` builds the sides, `hauberk summary --diff` asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from sinks.formats.line_text import printable
from sinks.formats.summary_tables import ConnectionLine, PathLine, SummaryTables
from sinks.formats.table_text import TITLES, grid

CHANGED_AT: Final = 2.0
"""A count this many times the other is a change. Counts differ in any two windows."""
_COLUMNS: Final = ("CHANGE", "WORKLOAD", "TABLE", "SOURCE", "WHAT", "STATUS", "BEFORE", "AFTER")


class SummaryChange(msgspec.Struct, frozen=True, order=True):
    """`change`: new, gone or changed. `table`: a key of `TITLES`. `what`: a path, or `TCP peer:port`."""

    change: str
    workload: str
    table: str
    source: str
    what: str
    status: str
    before: int
    after: int


def difference(
    before: Mapping[str, SummaryTables],
    after: Mapping[str, SummaryTables],
    kinds: Sequence[str],
    shape: Callable[[str], str] = str,
) -> list[SummaryChange]:
    """Sorted, what is new first. `before`, `after`: by workload. `shape`: a path without what differs every time (a pid, a date)."""
    left, right = _counts(before, kinds, shape), _counts(after, kinds, shape)
    made = []
    for key in left.keys() | right.keys():
        old, new = left.get(key, 0), right.get(key, 0)
        if not old:
            change = "new"
        elif not new:
            change = "gone"
        elif max(old, new) >= CHANGED_AT * min(old, new):
            change = "changed"
        else:
            continue
        made.append(SummaryChange(change, *key, old, new))
    order = {"new": 0, "gone": 1, "changed": 2}
    return sorted(made, key=lambda one: (order[one.change], one))


def _counts(
    side: Mapping[str, SummaryTables], kinds: Sequence[str], shape: Callable[[str], str]
) -> dict[tuple[str, str, str, str, str], int]:
    found: dict[tuple[str, str, str, str, str], int] = {}
    for workload, tables in side.items():
        for kind in kinds:
            lines: Iterable[PathLine | ConnectionLine] = getattr(tables, kind)
            for line in lines:
                if isinstance(line, PathLine):
                    key = (workload, kind, shape(line.source), shape(line.destination), line.status)
                else:
                    # Who connects does so from another port each time; the port of a line of `ingress` is the workload's own.
                    key = (
                        workload,
                        kind,
                        shape(line.command),
                        f"{line.protocol} {_peer(line)}:{line.port}",
                        line.status,
                    )
                found[key] = found.get(key, 0) + line.count
    return found


def _peer(line: ConnectionLine) -> str:
    name = f"[{line.peer}]" if ":" in line.peer else line.peer
    return f"{name} ({line.namespace})" if line.namespace else name


def as_table(changes: Sequence[SummaryChange]) -> str:
    """For people."""
    if not changes:
        return "Nothing changed.\n"
    return grid(_COLUMNS, [_cells(one) for one in changes])


def as_markdown(changes: Sequence[SummaryChange]) -> str:
    """For the comment of a merge request: nothing in a cell ends the cell, starts HTML or is a link."""
    if not changes:
        return "Nothing changed.\n"
    counted = {change: sum(one.change == change for one in changes) for change in ("new", "gone", "changed")}
    head = ", ".join(f"{count} {change}" for change, count in counted.items() if count)
    lines = [f"**{head}**", "", "| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(code_span(cell) for cell in _cells(one)) + " |" for one in changes]
    return "\n".join(lines) + "\n"


def _cells(one: SummaryChange) -> tuple[str, ...]:
    texts = (one.change, one.workload, TITLES[one.table], one.source, one.what, one.status)
    return (*(printable(text) for text in texts), str(one.before), str(one.after))


def code_span(text: str) -> str:
    """Printable `text` as a code span of Markdown, also in a cell. A code span has no escapes: what would end it is written otherwise."""
    return "`" + text.replace("`", "'").replace("|", "\u00a6") + "`" if text else ""
