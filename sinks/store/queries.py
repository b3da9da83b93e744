# SPDX-License-Identifier: Apache-2.0
"""Questions to a SQLite store: `store.Reading` over one connection. Neighbours: `layout` (tables), `sqlite` (the writer).

Identities and verdicts are few and matched in Python; counts are many and summed by SQLite. Each question runs in one read
transaction, so that the names it uses and the counts it sums are of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from schemas.alert import decode_alert
from schemas.behaviour import Behaviour
from schemas.identity import Identity
from schemas.identity import decode as decode_identity
from schemas.operations import Operation, class_of
from schemas.verdict import RuleRef
from sinks.store.layout import LEVELS, open_reader, translate
from sinks.store.store import Point, Query, StoredAlert, StoredRow

_decode_behaviour = msgspec.msgpack.Decoder(Behaviour).decode
_decode_rule = msgspec.msgpack.Decoder(RuleRef).decode

_ALERTS_MOST = 1000
_DECODED_MOST = 1 << 16
"""Behaviours kept decoded while rows come in another order than theirs, at most about 50 MB."""

_BUCKETS = (
    "bucket IN (WITH RECURSIVE b(at) AS (SELECT min(bucket) FROM {name} UNION ALL "
    "SELECT (SELECT min(bucket) FROM {name} WHERE bucket > at) FROM b WHERE at IS NOT NULL) SELECT at FROM b WHERE at IS NOT NULL)"
)
"""Every bucket, one step of the key for each."""


class SqliteReader:
    """See `store.Reading`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._db = open_reader(path)

    def totals(self, query: Query) -> list[StoredRow]:
        return list(self._rows(query, ordered=True))

    def behaviours(self, query: Query) -> Iterator[StoredRow]:
        return self._rows(query, ordered=False)

    def series(self, query: Query, step_seconds: int) -> list[Point]:
        with self._asking() as db:
            _, verdicts, where, values = self._select(db, query)
            sums: dict[tuple[int, int, str], int] = {}
            for bucket, operation, verdict, count in db.execute(
                f"SELECT c.bucket, b.operation, c.verdict, sum(c.count) FROM ({where}) c "
                "JOIN behaviour b ON b.id = c.behaviour GROUP BY 1, 2, 3",
                values,
            ):
                key = (bucket // step_seconds * step_seconds, class_of(Operation(operation)), verdicts[verdict][0])
                sums[key] = sums.get(key, 0) + count
        return [Point(start, class_, status, count) for (start, class_, status), count in sorted(sums.items())]  # type: ignore[arg-type]

    def sizes(self, query: Query) -> list[tuple[Identity, int]]:
        with self._asking() as db:
            identities, _, where, values = self._select(db, query)
            return [
                (identities[ident], count)
                for ident, count in db.execute(f"SELECT c.identity, count(*) FROM ({where}) c GROUP BY 1", values)
            ]

    def identities(self, query: Query) -> list[Identity]:
        with self._asking() as db:
            return list(_identities(db, query).values())

    def alerts(self, query: Query, *, after: int = 0) -> list[StoredAlert]:
        where, values = ["id > ?"], [after]
        for column, wanted in (
            ("namespace", query.namespace), ("pod", query.pod), ("container", query.container),
            ("node", query.node), ("policy", query.policy),
        ):  # fmt: skip
            if wanted is not None:
                where.append(f"{column} = ?")
                values.append(wanted)  # type: ignore[arg-type]
        if query.since is not None:
            where.append("time >= ?")
            values.append(query.since)
        if query.until is not None:
            where.append("time < ?")
            values.append(query.until)
        most = query.limit or _ALERTS_MOST
        labels = [f"{key}={value}" for key, value in query.labels]
        classes = {class_.label for class_ in query.classes}
        found = []
        with self._asking() as db:
            for ident, body in db.execute(
                f"SELECT id, body FROM alert WHERE {' AND '.join(where)} ORDER BY id DESC", values
            ):
                alert = decode_alert(body)
                if labels and not set(labels) <= set(alert.Labels.split(",")):
                    continue
                if classes and alert.Operation not in classes:
                    continue
                found.append(StoredAlert(ident, alert))
                if len(found) >= most:
                    break
        return found

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: Query, *, ordered: bool) -> Iterator[StoredRow]:
        with self._asking() as db:
            identities, verdicts, where, values = self._select(db, query)
            tail = " ORDER BY 5 DESC, 7 DESC" if ordered else ""
            if query.limit:
                tail += f" LIMIT {query.limit:d}"
            decoded: dict[int, Behaviour] = {}
            of = -1
            behaviour = Behaviour()
            for identity, verdict, ident, body, count, first, last in db.execute(
                "SELECT s.identity, s.verdict, s.behaviour, b.body, s.count, s.first, s.last FROM ("
                "SELECT c.identity, c.behaviour, c.verdict, sum(c.count) AS count, min(c.first) AS first, "
                f"max(c.last) AS last FROM ({where}) c GROUP BY 2, 1, 3) s JOIN behaviour b ON b.id = s.behaviour{tail}",
                values,
            ):
                status, policy, rule = verdicts[verdict]
                if ident != of:
                    # Grouped by behaviour: one object for all instances that showed it, decoded once, and found in the order of its table.
                    of = ident
                    found = decoded.get(ident) if ordered else None
                    behaviour = _decode_behaviour(body) if found is None else found
                    if ordered and found is None and len(decoded) < _DECODED_MOST:
                        decoded[ident] = behaviour
                yield StoredRow(
                    identity=identities[identity],
                    behaviour=behaviour,
                    status=status,
                    policy=policy,
                    rule=rule,
                    count=count,
                    first=first,
                    last=last,
                )

    def _select(
        self, db: sqlite3.Connection, query: Query
    ) -> tuple[dict[int, Identity], dict[int, tuple[str, str, RuleRef | None]], str, dict[str, object]]:
        identities = _identities(db, query)
        verdicts = {
            ident: (status, policy, _decode_rule(rule) if rule else None)
            for ident, status, policy, rule in db.execute("SELECT id, status, policy, rule FROM verdict")
            if (not query.status or status in query.status) and (query.policy is None or policy == query.policy)
        }
        operations = set(query.operations)
        if query.classes:
            of_classes = {operation for operation in Operation if class_of(operation) in query.classes}
            operations = operations & of_classes if operations else of_classes
        tests = [
            "identity IN (SELECT value FROM json_each(:identities))",
            "verdict IN (SELECT value FROM json_each(:verdicts))",
        ]
        values: dict[str, object] = {
            "identities": msgspec.json.encode(list(identities)).decode(),
            "verdicts": msgspec.json.encode(list(verdicts)).decode(),
        }
        if query.operations or query.classes:
            tests.append(
                "behaviour IN (SELECT id FROM behaviour WHERE operation IN (SELECT value FROM json_each(:operations)))"
            )
            values["operations"] = msgspec.json.encode([int(operation) for operation in operations]).decode()
        parts = []
        for name, width in LEVELS:
            mine = list(tests)
            if query.instances:
                # Bucket by bucket, so that rows are found by the key and not by reading all of them.
                mine.append(_BUCKETS.format(name=name))
            if query.since is not None:
                mine.append(f"bucket > :since - {width}")
                values["since"] = query.since
            if query.until is not None:
                mine.append("bucket < :until")
                values["until"] = query.until
            parts.append(f"SELECT * FROM {name} WHERE {' AND '.join(mine)}")
        return identities, verdicts, " UNION ALL ".join(parts), values

    @contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        try:
            nested = self._db.in_transaction
            if not nested:
                self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if not nested and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translate(error, self._path) from error


def _identities(db: sqlite3.Connection, query: Query) -> dict[int, Identity]:
    found = {}
    for ident, node, uid, body in db.execute("SELECT id, node, uid, body FROM identity"):
        if query.instances and (node, uid) not in query.instances:
            continue
        identity = decode_identity(body)
        if _matches(identity, query):
            found[ident] = identity
    return found


def _matches(identity: Identity, query: Query) -> bool:
    for wanted, got in (
        (query.cluster, identity.cluster), (query.namespace, identity.namespace), (query.workload, identity.workload),
        (query.pod, identity.pod), (query.container, identity.container_name), (query.node, identity.node),
    ):  # fmt: skip
        if wanted is not None and wanted != got:
            return False
    if query.uid is not None and not identity.uid.startswith(query.uid):
        return False
    if query.kinds and identity.kind not in query.kinds:
        return False
    return all(identity.labels.get(key) == value for key, value in query.labels)
