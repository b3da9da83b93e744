# SPDX-License-Identifier: Apache-2.0
"""What a summary store promises, whichever database it is: read this first.

A store keeps counts per behaviour and time, exact under at-least-once delivery, and the latest alerts. One writer; any
number of readers in other processes (the CLI, the page) at the same time. All calls block: the sink uses a thread, the
CLI does not care. Neighbours: `sqlite` keeps the promise, `sink` fills it, `summary_tables` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from schemas.alert import Alert
from schemas.behaviour import Behaviour
from schemas.identity import Identity
from schemas.operations import Class, Operation
from schemas.verdict import RuleRef


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which counts or alerts; everything given must hold. None and empty mean any.

    `labels`: all of these pairs. `since`/`until`: Unix seconds, whole buckets that overlap them. `namespace`, `pod`,
    `container`, `node`, `workload`: exact. `uid`: container id or its beginning. `kinds`: `container`, `host`, `node`.
    `instances`: of these (node, uid), few of many.
    """

    cluster: str | None = None
    namespace: str | None = None
    workload: str | None = None
    pod: str | None = None
    container: str | None = None
    node: str | None = None
    uid: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    instances: frozenset[tuple[str, str]] = frozenset()
    operations: tuple[Operation, ...] = ()
    classes: tuple[Class, ...] = ()
    status: tuple[str, ...] = ()
    policy: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int = 0


class StoredRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One behaviour of one identity with one status, summed over the time asked for. `first`/`last`: Unix ns."""

    identity: Identity
    behaviour: Behaviour
    status: str
    policy: str
    rule: RuleRef | None
    count: int
    first: int
    last: int


class Point(msgspec.Struct, frozen=True, gc=False):
    """One step of a time series: start (Unix seconds), class, status, sum of counts."""

    start: int
    cls: Class
    status: str
    count: int


class StoredAlert(msgspec.Struct, frozen=True, gc=False):
    """An alert and its place in the store; `ident` only grows, so a page can ask for what is newer than what it has."""

    ident: int
    alert: Alert


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch did. `repeated`: summaries already counted. `overlapping`: counted although some of their frames were
    counted before in another grouping (counts may be high by those). `late`: older than what is remembered, left out.
    `alerts`: new alerts; repeats are not counted again."""

    summaries: int = 0
    repeated: int = 0
    overlapping: int = 0
    late: int = 0
    alerts: int = 0


class Reading(Protocol):
    """Questions. May be asked from any number of processes; each object belongs to one thread.

    Nothing is retried. Silence (an empty result) means nothing matched. Whoever opened it closes it. Raises `DecodeError`
    for a damaged file, `Incompatible` for one of another schema, `Temporary` when it is locked for long."""

    def totals(self, query: Query) -> list[StoredRow]:
        """Counts per identity, behaviour, status and policy over the time asked for; highest count first."""
        ...

    def behaviours(self, query: Query) -> Iterator[StoredRow]:
        """The same rows one by one, in no order, without holding all of them: what a policy backtest judges again."""
        ...

    def series(self, query: Query, step_seconds: int) -> list[Point]:
        """Counts over time for a chart. Steps finer than what is kept for old times show the coarser bucket's start."""
        ...

    def sizes(self, query: Query) -> list[tuple[Identity, int]]:
        """Whose counts there are, and how many rows `behaviours` has of each at most: one that several buckets count is told for each."""
        ...

    def identities(self, query: Query) -> list[Identity]:
        """Whose counts there are."""
        ...

    def alerts(self, query: Query, *, after: int = 0) -> list[StoredAlert]:
        """Alerts with `ident` > `after`, newest first; `limit` 0 gives at most 1,000."""
        ...

    def close(self) -> None:
        """Let go. Twice is once."""
        ...
