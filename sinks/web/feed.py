# SPDX-License-Identifier: Apache-2.0
"""Rows of the store into what the page shows. Pure: no input or output, no clock.

Everything a workload chose (paths, names, addresses) passes through as data and is never made into markup. What a flood of
distinct names could make long is cut, and what was cut is counted. Neighbours: `hub` and `page` ask the store and send;
`summary_tables` makes a workload's tables, the same as `hauberk summary` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas import socket_names
from schemas.cell import shortened
from schemas.identity import Identity, Kind
from schemas.operations import Operation
from sinks.formats.summary_tables import (
    BIND_COLUMNS,
    CONNECTION_COLUMNS,
    FILE_COLUMNS,
    NAME_COLUMNS,
    PROCESS_COLUMNS,
    ConnectionLine,
    Header,
    PathLine,
    SummaryTables,
)
from sinks.formats.table_text import TITLES
from sinks.store.store import Point, StoredRow

WORKLOADS_MOST: Final = 500
EDGES_MOST: Final = 400
POLICIES_MOST: Final = 200
RULES_MOST: Final = 50
LINES_MOST: Final = 200
TEXT_MOST: Final = 1000
"""Characters of a cell, labels or an image; what is cut is the middle."""
DECIDERS_MOST: Final = 5
"""Policies named beside one edge."""
KEYS_MOST: Final = 20_000
"""Distinct keys held while counting; what is new beyond is left out and counted. About 10 MB for a moment."""

_INTERNET: Final = frozenset({socket_names.INET, socket_names.INET6})
_WAYS: Final = {
    Operation.CONNECT: "egress", Operation.SEND: "egress", Operation.ACCEPT: "ingress",
    Operation.BIND: "bind", Operation.LISTEN: "bind",
}  # fmt: skip


class StatusCounts(msgspec.Struct):
    """Events by what was told of them, and the newest of them (Unix seconds)."""

    allowed: int = 0
    audited: int = 0
    denied: int = 0
    last: int = 0

    @property
    def all(self) -> int:
        """Whatever was told."""
        return self.allowed + self.audited + self.denied

    def add(self, row: StoredRow) -> None:
        """One row more."""
        if row.status == "Deny":
            self.denied += row.count
        elif row.status == "Audit":
            self.audited += row.count
        else:
            self.allowed += row.count
        self.last = max(self.last, row.last // 1_000_000_000)


class _Flow:
    """One edge while it is counted."""

    __slots__ = ("counts", "policies", "undecided")

    def __init__(self) -> None:
        self.counts = StatusCounts()
        self.policies: set[str] = set()
        self.undecided = 0

    def add(self, row: StoredRow) -> None:
        self.counts.add(row)
        if row.policy:
            self.policies.add(row.policy)
        else:
            self.undecided += row.count


class Workload(msgspec.Struct, kw_only=True):
    """Somebody who did something. `name` is what `/api/workload` is asked with; `classes`: events by class."""

    name: str
    namespace: str
    host: bool
    node: str
    image: str
    labels: str
    containers: int = 0
    counts: StatusCounts
    classes: dict[str, int]


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Who talks with whom. `way`: egress, ingress or bind. `port`: the peer's for egress, else our own. `peer` is "" where
    the socket itself was denied. `policies`: those that decided it when it happened, the default posture among them. `undecided`: events
    that no policy said anything of."""

    workload: str
    way: str
    peer: str
    port: int
    protocol: str
    counts: StatusCounts
    policies: tuple[str, ...] = ()
    more_policies: int = 0
    undecided: int = 0


class ShownRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that matched. `position` as `spec.file.matchPaths[0]`."""

    position: str
    counts: StatusCounts


class ShownPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that decided something."""

    name: str
    kind: str
    namespace: str
    counts: StatusCounts
    rules: tuple[ShownRule, ...]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody, over the time asked for; lists are sorted by what wants looking at first. `more_*`: how many were cut.
    `uncounted`: events of keys beyond `KEYS_MOST`, in no list."""

    workloads: tuple[Workload, ...]
    edges: tuple[Edge, ...]
    policies: tuple[ShownPolicy, ...]
    more_workloads: int = 0
    more_edges: int = 0
    more_policies: int = 0
    uncounted: int = 0


class ShownTable(msgspec.Struct, frozen=True, kw_only=True):
    """One table of a workload; the last cell but one of a line may be a time: see `columns`. `more`: lines cut."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str | int, ...], ...]
    more: int


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's tables. `cut`: the store had more rows than were asked for; those with the highest counts are here."""

    workload: str
    header: Header
    tables: tuple[ShownTable, ...]
    cut: bool


Steps = tuple[tuple[int, str, str, int], ...]
"""Start (Unix seconds), class, status, count."""


def steps(points: Iterable[Point]) -> Steps:
    """Points of a chart."""
    return tuple((point.start, point.cls.label, point.status, point.count) for point in points)


def survey(rows: Iterable[StoredRow]) -> Survey:
    """One pass over the rows, none of which is kept."""
    workloads: dict[str, Workload] = {}
    containers: set[tuple[str, str]] = set()
    edges: dict[tuple[str, str, str, int, str], _Flow] = {}
    policies: dict[tuple[str, str, str], dict[str, StatusCounts]] = {}
    uncounted = 0
    for row in rows:
        name = row.identity.workload
        found = workloads.get(name)
        if found is None:
            if len(workloads) >= KEYS_MOST:
                uncounted += row.count
                continue
            found = workloads[name] = _workload(row.identity)
        found.counts.add(row)
        label = row.behaviour.cls.label
        found.classes[label] = found.classes.get(label, 0) + row.count
        who = (row.identity.node, row.identity.uid)
        if who not in containers and len(containers) < KEYS_MOST:
            containers.add(who)
            found.containers += 1
        if edge := _edge(row):
            flow = edges.get(edge)
            if flow is None:
                if len(edges) >= KEYS_MOST:
                    uncounted += row.count
                    continue
                flow = edges[edge] = _Flow()
            flow.add(row)
        if row.policy:
            rule = row.rule
            whose = (rule.kind, rule.namespace, row.policy) if rule else ("", "", row.policy)
            rules = policies.setdefault(whose, {})
            rules.setdefault(rule.position if rule else "", StatusCounts()).add(row)
    shown = sorted(workloads.values(), key=lambda one: (one.host, -one.counts.denied, -one.counts.all, one.name))
    lines = sorted(edges.items(), key=lambda item: (-item[1].counts.denied, -item[1].counts.all, item[0]))
    judged = sorted((_policy(whose, rules) for whose, rules in policies.items()), key=lambda one: -one.counts.last)
    return Survey(
        workloads=tuple(shown[:WORKLOADS_MOST]),
        edges=tuple(
            Edge(
                workload=workload,
                way=way,
                peer=peer,
                port=port,
                protocol=protocol,
                counts=flow.counts,
                policies=tuple(sorted(flow.policies)[:DECIDERS_MOST]),
                more_policies=max(0, len(flow.policies) - DECIDERS_MOST),
                undecided=flow.undecided,
            )
            for (workload, way, peer, port, protocol), flow in lines[:EDGES_MOST]
        ),
        policies=tuple(judged[:POLICIES_MOST]),
        more_workloads=max(0, len(shown) - WORKLOADS_MOST),
        more_edges=max(0, len(lines) - EDGES_MOST),
        more_policies=max(0, len(judged) - POLICIES_MOST),
        uncounted=uncounted,
    )


def sheet(workload: str, tables: SummaryTables, *, cut: bool = False) -> Sheet:
    """A workload's tables as cells under the column names of `hauberk summary`; times are Unix seconds."""
    made = []
    for kind, title in TITLES.items():
        lines: Sequence[PathLine | ConnectionLine] = getattr(tables, kind)
        if lines:
            columns, cells = _COLUMNS[kind], [_cells(kind, line) for line in lines[:LINES_MOST]]
            made.append(
                ShownTable(title=title, columns=columns, lines=tuple(cells), more=max(0, len(lines) - LINES_MOST))
            )
    return Sheet(workload=workload, header=tables.header, tables=tuple(made), cut=cut)


_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "process": PROCESS_COLUMNS, "file": FILE_COLUMNS, "ingress": (*CONNECTION_COLUMNS, "STATUS"),
    "egress": (*CONNECTION_COLUMNS, "STATUS"), "bind": (*BIND_COLUMNS, "STATUS"), "dns": NAME_COLUMNS,
}  # fmt: skip


def _cells(kind: str, line: PathLine | ConnectionLine) -> tuple[str | int, ...]:
    head: tuple[str | int, ...]
    if isinstance(line, PathLine):
        head = line.source, line.destination
    elif kind == "bind":
        head = line.protocol, line.command, line.port, line.peer
    else:
        head = line.protocol, line.command, line.peer, line.port, line.namespace, line.labels
    shown = (shortened(one, TEXT_MOST) if isinstance(one, str) else one for one in head)
    return *shown, line.count, line.last // 1_000_000_000, line.status


def _workload(of: Identity) -> Workload:
    return Workload(
        name=of.workload,
        namespace=of.namespace,
        host=of.kind is not Kind.CONTAINER,
        node=of.node,
        image=shortened(of.image, TEXT_MOST),
        labels=shortened(",".join(f"{key}={value}" for key, value in sorted(of.labels.items())), TEXT_MOST),
        counts=StatusCounts(),
        classes={},
    )


def _edge(row: StoredRow) -> tuple[str, str, str, int, str] | None:
    behaviour = row.behaviour
    way = _WAYS.get(behaviour.operation)
    # A denied socket is as near as a workload came to connecting: it has no peer yet.
    denied_socket = behaviour.operation is Operation.SOCKET and row.status == "Deny"
    if behaviour.family not in _INTERNET or not (way or denied_socket):
        return None
    protocol = socket_names.protocol(behaviour.protocol, behaviour.socket_type, behaviour.family)
    if way is None:
        return row.identity.workload, "egress", "", 0, protocol
    return row.identity.workload, way, behaviour.address, behaviour.port, protocol


def _policy(whose: tuple[str, str, str], rules: Mapping[str, StatusCounts]) -> ShownPolicy:
    kind, namespace, name = whose
    ordered = sorted(rules.items(), key=lambda item: (-item[1].last, item[0]))
    return ShownPolicy(
        name=name,
        kind=kind,
        namespace=namespace,
        counts=_sum(rules.values()),
        rules=tuple(ShownRule(position=position, counts=counts) for position, counts in ordered[:RULES_MOST]),
    )


def _sum(every: Iterable[StatusCounts]) -> StatusCounts:
    total = StatusCounts()
    for one in every:
        total.allowed += one.allowed
        total.audited += one.audited
        total.denied += one.denied
        total.last = max(total.last, one.last)
    return total


def message(event: str, data: object, ident: int | None = None) -> bytes:
    """One server-sent event. `ident`: what a browser that comes back says it has had (Last-Event-ID)."""
    head = b"" if ident is None else b"id: %d\n" % ident
    return b"%sevent: %s\ndata: %s\n\n" % (head, event.encode(), msgspec.json.encode(data))
