# SPDX-License-Identifier: Apache-2.0
"""The SQLite store's writer: applies batches, each in one transaction together with the memory of what it applied.

That is what makes counts exact under at-least-once: a kill -9 between any two instructions leaves either the counts and
the range that says "counted", or neither. Blocking; `sink` calls it from one thread. Neighbours: `layout`, `rollup`.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from schemas.alert import Alert, encode_alert
from schemas.behaviour import Behaviour
from schemas.errors import DecodeError, Refused
from schemas.identity import Identity
from schemas.identity import encode as encode_identity
from schemas.summary import Summary, SummaryEntry
from sinks.store import ranges, rollup, shrink
from sinks.store.layout import open_writer, translate
from sinks.store.queries import SqliteReader
from sinks.store.store import Applied

_NAMES_MOST = 4096
"""Identities, runs and verdicts remembered, of each; more of them come and go with the containers and policies of a node."""

_UPSERT = (
    "INSERT INTO minute VALUES(?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET count = count + excluded.count, "
    "first = min(first, excluded.first), last = max(last, excluded.last)"
)

_K = TypeVar("_K")
_V = TypeVar("_V")

_encode = msgspec.msgpack.Encoder().encode
_decode_ranges = msgspec.msgpack.Decoder(list[int]).decode


class SqliteStore(SqliteReader):
    """The one writer of a store. Reads see what was applied. `max_alerts`: older ones are forgotten; `keep`: see `rollup.Keep`;
    `max_bytes`: what `shrink` brings the file under, 0 for no cap. `known`: behaviour keys remembered as present; one that is not costs
    an INSERT that does nothing."""

    def __init__(
        self,
        path: str,
        *,
        max_alerts: int = 100_000,
        keep: rollup.Keep | None = None,
        max_bytes: int = 0,
        known: int = 16_384,
    ) -> None:
        self._path = path
        self._db = open_writer(path)
        self._max_alerts = max_alerts
        self._keep = keep or rollup.Keep()
        self._max_bytes = max_bytes
        self._known_most = known
        self._touched: set[int] | None = None
        self._lock = threading.Lock()
        self._forget_ids()
        try:
            settings = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
            self._key = bytes.fromhex(settings["hash_key"])
            self._horizon = int(settings["horizon"])
        except sqlite3.Error as error:
            self._db.close()
            raise translate(error, path) from error
        except (KeyError, ValueError, TypeError) as error:
            self._db.close()
            raise DecodeError(
                f"store: expected `hash_key` and `horizon` in `meta` of `{path}`, got {error!r}"
            ) from error

    @property
    def known(self) -> int:
        """Behaviour keys remembered now."""
        return len(self._behaviours)

    def apply(self, summaries: Sequence[Summary], alerts: Sequence[Alert]) -> Applied:
        """Add a batch, all of it or nothing, and return when it is durable. A summary already added changes nothing, in
        whatever order and however often they come. Raises `DiskFull`, `Temporary`, `DecodeError`."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                done = self._apply(summaries, alerts)
                self._db.execute("COMMIT")
            except BaseException as error:
                self._undo()
                if isinstance(error, sqlite3.Error):
                    raise translate(error, self._path) from error
                if isinstance(error, OverflowError):
                    raise Refused(f"store: expected integers of 64 bits in a summary, got more ({error})") from error
                raise
        return done

    def tidy(self, now: int) -> int:
        """Roll minutes up to hours and days, remove what is past its retention (`now`: Unix seconds); gives rows removed."""
        with self._lock:
            try:
                removed = rollup.tidy(self._db, now, self._keep)
                self._look_at_horizon()
            except sqlite3.Error as error:
                self._undo()
                raise translate(error, self._path) from error
            if removed:
                self._forget_ids()
        return removed

    def file_bytes(self) -> int:
        """Bytes of the file, without its log of at most 64 MB."""
        with self._lock:
            return shrink.file_bytes(self._db)

    def shrink(self) -> Generator[shrink.Step, None, None]:
        """Forget the oldest until the file is well within `max_bytes`. One short step for each item taken; `apply` may come
        between two steps. Nothing at all when the file is not over the cap."""
        if not self._max_bytes or self.file_bytes() <= self._max_bytes:
            return
        rows = before = 0
        try:
            with self._stepping():
                rows, before = shrink.cut(self._db, self._max_bytes)
                self._look_at_horizon()
                shrink.names(self._db)
                # From here on what is counted anew must stay, noted or not.
                self._forget_ids()
                self._touched = set()
            after: int | None = -1
            while after is not None:
                yield shrink.Step(rows, before, self.file_bytes())
                with self._stepping():
                    after = shrink.repack(self._db, after, self._touched or ())
        finally:
            self._touched = None
        more = True
        while more:
            with self._stepping():
                more = shrink.give_back(self._db)
            yield shrink.Step(rows, before, self.file_bytes())

    @contextmanager
    def _stepping(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                self._undo()
                raise translate(error, self._path) from error

    def _look_at_horizon(self) -> None:
        (horizon,) = self._db.execute("SELECT value FROM meta WHERE key = 'horizon'").fetchone()
        self._horizon = int(horizon)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _forget_ids(self) -> None:
        self._identities: dict[tuple[str, str], tuple[int, Identity]] = {}
        self._runs: dict[tuple[str, str], int] = {}
        self._verdicts: dict[tuple[str, str, bytes], int] = {}
        self._behaviours: set[int] = set()
        self._new: list[tuple[int, int, bytes]] = []

    def _undo(self) -> None:
        # Ids learnt in this transaction may not exist any more.
        self._forget_ids()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _apply(self, summaries: Sequence[Summary], alerts: Sequence[Alert]) -> Applied:
        applied = repeated = overlapping = late = 0
        counted: dict[tuple[int, int, int], list[int]] = {}
        sums: dict[tuple[int, int, int, int], list[int]] = {}
        for summary in summaries:
            if summary.bucket < self._horizon:
                late += 1
                continue
            identity = self._identity(summary.identity)
            place = (summary.bucket, self._run(summary.node, summary.run), identity)
            seen = counted.get(place)
            if seen is None:
                seen = self._ranges(place)
            how = ranges.fit(seen, summary.first_frame, summary.last_frame)
            if how == "covered":
                repeated += 1
                counted[place] = seen
                continue
            overlapping += how == "overlaps"
            applied += 1
            counted[place] = ranges.add(seen, summary.first_frame, summary.last_frame)
            for entry in summary.entries:
                self._sum(sums, summary.bucket, identity, entry)
        self._db.executemany("INSERT OR IGNORE INTO behaviour VALUES(?,?,?)", self._new)
        self._new.clear()
        self._db.executemany(_UPSERT, [(*place, *total) for place, total in sums.items()])
        self._db.executemany(
            "INSERT INTO applied VALUES(?,?,?,?) ON CONFLICT DO UPDATE SET ranges = excluded.ranges",
            [(*place, _encode(seen)) for place, seen in counted.items()],
        )
        added = self._alerts(alerts)
        return Applied(summaries=applied, repeated=repeated, overlapping=overlapping, late=late, alerts=added)

    def _sum(
        self, sums: dict[tuple[int, int, int, int], list[int]], bucket: int, identity: int, entry: SummaryEntry
    ) -> None:
        place = (bucket, identity, self._behaviour(entry.behaviour), self._verdict(entry))
        total = sums.get(place)
        if total is None:
            sums[place] = [entry.count, entry.first, entry.last]
            return
        total[0] += entry.count
        total[1] = min(total[1], entry.first)
        total[2] = max(total[2], entry.last)

    def _identity(self, identity: Identity) -> int:
        name = (identity.node, identity.uid)
        known = self._identities.get(name)
        if known is not None and known[1] == identity:
            return known[0]
        # Incomplete or older snapshots never replace complete ones: repeats may come in any order.
        row = self._db.execute("SELECT id, body FROM identity WHERE node = ? AND uid = ?", name).fetchone()
        body = encode_identity(identity)
        if row is None:
            cursor = self._db.execute("INSERT INTO identity(node, uid, body) VALUES(?,?,?)", (*name, body))
            ident = int(cursor.lastrowid or 0)
        else:
            ident = row[0]
            if body != row[1] and identity.complete:
                self._db.execute("UPDATE identity SET body = ? WHERE id = ?", (body, ident))
        _remember(self._identities, name, (ident, identity))
        return ident

    def _run(self, node: str, run: str) -> int:
        ident = self._runs.get((node, run))
        if ident is None:
            self._db.execute("INSERT OR IGNORE INTO run(node, run) VALUES(?,?)", (node, run))
            (ident,) = self._db.execute("SELECT id FROM run WHERE node = ? AND run = ?", (node, run)).fetchone()
            _remember(self._runs, (node, run), int(ident))
        return int(ident)

    def _ranges(self, place: tuple[int, int, int]) -> list[int]:
        row = self._db.execute(
            "SELECT ranges FROM applied WHERE bucket = ? AND run = ? AND identity = ?", place
        ).fetchone()
        return [] if row is None else _decode_ranges(row[0])

    def _verdict(self, entry: SummaryEntry) -> int:
        name = (entry.status, entry.policy, b"" if entry.rule is None else _encode(entry.rule))
        ident = self._verdicts.get(name)
        if ident is None:
            self._db.execute("INSERT OR IGNORE INTO verdict(status, policy, rule) VALUES(?,?,?)", name)
            (ident,) = self._db.execute(
                "SELECT id FROM verdict WHERE status = ? AND policy = ? AND rule = ?", name
            ).fetchone()
            _remember(self._verdicts, name, int(ident))
        return int(ident)

    def _behaviour(self, behaviour: Behaviour) -> int:
        if behaviour.cgroup or behaviour.id or behaviour.pid_ns or behaviour.mnt_ns:
            # Numbers of one boot: the identity says whose it is, and equal behaviours must share a row.
            behaviour = msgspec.structs.replace(behaviour, cgroup=0, id=0, pid_ns=0, mnt_ns=0)
        body = _encode(behaviour)
        ident = self._hash(body)
        if self._touched is not None:
            self._touched.add(ident)
        if ident not in self._behaviours:
            self._new.append((ident, int(behaviour.operation), body))
            if len(self._behaviours) >= self._known_most:
                self._behaviours.clear()
            self._behaviours.add(ident)
        return ident

    def _alerts(self, alerts: Sequence[Alert]) -> int:
        if not alerts:
            return 0
        rows = []
        for alert in alerts:
            body = encode_alert(alert)
            name = (
                f"{alert.EventID}\0{alert.PolicyName}\0{alert.Rule}\0{alert.Mode}".encode() if alert.EventID else body
            )
            rows.append(
                (self._hash(name), alert.Timestamp, alert.NamespaceName, alert.PodName, alert.ContainerName,
                 alert.HostName, alert.PolicyName, body)
            )  # fmt: skip
        before = self._db.total_changes
        self._db.executemany(
            "INSERT OR IGNORE INTO alert(hash, time, namespace, pod, container, node, policy, body) VALUES(?,?,?,?,?,?,?,?)",
            rows,
        )
        added = self._db.total_changes - before
        if added:
            self._db.execute("DELETE FROM alert WHERE id <= (SELECT max(id) FROM alert) - ?", (self._max_alerts,))
        return added

    def _hash(self, data: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest(), "little") >> 1


def _remember(table: dict[_K, _V], key: _K, value: _V) -> None:
    """`table[key] = value`, within `_NAMES_MOST`: what was remembered first goes, and is looked up again when it comes."""
    table.pop(key, None)
    while len(table) >= _NAMES_MOST:
        del table[next(iter(table))]
    table[key] = value
