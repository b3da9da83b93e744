# SPDX-License-Identifier: Apache-2.0
"""The log of one compacted topic: one SQLite table with the newest record of each key.

A record keeps the offset it was published with, so readers follow it like any log and meet each key's newest value;
versions in between may be passed over, as on any compacted topic. A tombstone is a row without a value: readers see
it, `latest` does not, and it goes away after a day (or a reader that was away longer would never learn of it).
The newest row is never removed: the next offset is counted from it. Neighbours: `segments` (same methods), `rows`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from bus.contract import Record
from bus.embedded.database import Corrupt, connect, inode, translate, unlink
from bus.embedded.rows import SELECT, Rows, drain, to_record, to_row
from bus.permissions import private_directory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record(
  key BLOB PRIMARY KEY NOT NULL, offset INTEGER NOT NULL, at INTEGER NOT NULL, value BLOB, headers BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS by_offset ON record(offset);
CREATE TABLE IF NOT EXISTS about(one INTEGER PRIMARY KEY CHECK (one = 1), floor INTEGER NOT NULL);
"""
_UPSERT = (
    "INSERT INTO record(offset, at, key, value, headers) VALUES (?, ?, ?, ?, ?) ON CONFLICT(key) DO UPDATE SET "
    "offset = excluded.offset, at = excluded.at, value = excluded.value, headers = excluded.headers"
)
_SIZES = (
    "SELECT offset, 32 + length(key) + ifnull(length(value), 0) + ifnull(length(headers), 0) FROM record "
    "WHERE offset < (SELECT max(offset) FROM record) ORDER BY offset"
)


class CompactedLog:
    """The same methods as `SegmentedLog`, over one table. Not for parallel use by threads."""

    compacted = True

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self._path = directory / "compacted.db"
        self._durable = durable
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._floor = 0
        self.quarantined = 0
        private_directory(directory)

    def append(self, records: Sequence[Record]) -> int:
        while True:
            try:
                first = self._append(records)
            except Corrupt:
                self.quarantine()
                continue
            # A table that another process put aside while we wrote took our records with it; write them again.
            if not self._replaced():
                return first
            self.close()

    def _append(self, records: Sequence[Record]) -> int:
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            top = connection.execute("SELECT max(offset) FROM record").fetchone()[0]
            first = max(0 if top is None else top + 1, self._floor)
            connection.executemany(_UPSERT, [to_row(first + index, record) for index, record in enumerate(records)])
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback(connection)
            raise translate(error, self._path) from error
        return int(first)

    def read(self, offset: int, max_records: int, max_bytes: int) -> Rows:
        rows = Rows()
        while True:
            try:
                drain(self._open(), SELECT, (offset, max_records), max_bytes, rows)
            except Corrupt:
                self.quarantine()
                continue
            except sqlite3.Error as error:
                problem = translate(error, self._path)
                if not isinstance(problem, Corrupt):
                    raise problem from error
                if not rows.found:
                    self.quarantine()
                    continue
            return rows

    def span(self) -> tuple[int, int]:
        try:
            low, high = self._open().execute("SELECT min(offset), max(offset) FROM record").fetchone()
        except (sqlite3.Error, Corrupt) as error:
            self._damaged(error)
            return self.span()
        if low is None:
            return self._floor, self._floor
        return low, max(high + 1, self._floor)

    def latest(self) -> dict[bytes, Record]:
        try:
            cursor = self._open().execute(
                "SELECT offset, at, key, value, headers FROM record WHERE value IS NOT NULL ORDER BY offset"
            )
            return {row[2]: to_record(row) for row in cursor}
        except (sqlite3.Error, Corrupt) as error:
            self._damaged(error)
            return self.latest()

    def behind(self, offset: int) -> int:
        """Rows a reader at `offset` has yet to see."""
        row = self._open().execute("SELECT count(*) FROM record WHERE offset >= ?", (offset,)).fetchone()
        return int(row[0])

    def raise_floor(self, offset: int) -> None:
        self._floor = max(self._floor, offset)

    def sweep(self, tombstones_before_ms: int, records_before_ms: int) -> int:
        """Remove old tombstones, and on topics that also forget by age old records. Rows removed."""
        connection = self._open()
        try:
            cursor = connection.execute(
                "DELETE FROM record WHERE ((value IS NULL AND at < ?) OR at < ?) "
                "AND offset < (SELECT max(offset) FROM record)",
                (tombstones_before_ms, records_before_ms),
            )
        except sqlite3.Error as error:
            self._rollback(connection)
            raise translate(error, self._path) from error
        return cursor.rowcount

    def size(self) -> int:
        """Bytes in use, whether they lie in the file or still in its log; free pages are not counted."""
        try:
            pages, free, page = (
                int(self._open().execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        except (sqlite3.Error, Corrupt) as error:
            # Put aside, or a table that nobody writes any more would keep the whole bus from being measured.
            self._damaged(error)
            return self.size()
        return (pages - free) * page

    def oldest_ms(self) -> int | None:
        """Time of the oldest row (ms) that may go; None when there is none."""
        try:
            rows = self._open().execute("SELECT at FROM record ORDER BY offset LIMIT 2").fetchall()
        except (sqlite3.Error, Corrupt) as error:
            self._damaged(error)
            return self.oldest_ms()
        return int(rows[0][0]) if len(rows) > 1 else None

    def drop_oldest(self, most: int, passed: int) -> tuple[int, int]:
        """Remove the oldest rows until `most` bytes of them are gone, never the newest one, and give the pages back.

        (rows at `passed` or above, which some group had not read; bytes).
        """
        connection = self._open()
        before = self.size()
        try:
            connection.execute("BEGIN IMMEDIATE")
            freed, end = 0, -1
            for offset, size in connection.execute(_SIZES):
                if freed >= most:
                    break
                freed, end = freed + size, offset
            lost = connection.execute(
                "SELECT count(*) FROM record WHERE offset BETWEEN ? AND ?", (passed, end)
            ).fetchone()[0]
            connection.execute("DELETE FROM record WHERE offset <= ?", (end,))
            connection.execute("COMMIT")
            # Not `execute`, which steps this once: a page a step. Nothing on a table that was made without auto_vacuum.
            connection.executescript("PRAGMA incremental_vacuum")
        except sqlite3.Error as error:
            self._rollback(connection)
            raise translate(error, self._path) from error
        return int(lost), max(0, before - self.size())

    def checkpoint(self, wal_bytes: int, *, shorten: bool = False) -> None:
        """Move a WAL over `wal_bytes` into the file; `shorten`: and give its room back, if nobody reads."""
        mode = "TRUNCATE" if shorten else "PASSIVE"
        try:
            if os.stat(f"{self._path}-wal").st_size > wal_bytes:
                self._open().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except (FileNotFoundError, Corrupt):
            return
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def _damaged(self, error: Exception) -> None:
        """Put the table aside when `error` says that it is damaged; raise what it says instead."""
        problem = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
        if not isinstance(problem, Corrupt):
            raise problem from error
        self.quarantine()

    def quarantine(self) -> None:
        """Put an unreadable table aside and start an empty one above its offsets; writers publish state again."""
        if self._replaced():
            # Somebody else did: what lies there now is theirs and whole.
            self.close()
            return
        self.close()
        # Keys repeat, so file size bounds nothing here: any offset it can have reached in a second of nanoseconds
        # since the epoch is below the clock. In the file, as others write it whose own floor is lower: what they write must
        # not lie behind those who follow from the end.
        self.raise_floor(time.time_ns() // 1_000_000)
        fresh = self._path.with_suffix(".new")
        unlink(fresh)
        try:
            made = connect(fresh, create=True, vacuum=True)
            try:
                made.executescript(_SCHEMA)
                made.execute("INSERT INTO about VALUES (1, ?)", (self._floor,))
            finally:
                # The last close moves the WAL into the file.
                made.close()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        if self._path.exists():
            os.link(self._path, self._path.with_suffix(f".{time.time_ns()}.corrupt"))
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        fresh.rename(self._path)
        self.quarantined += 1

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._inode = 0
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._replaced():
            self.close()
        if self._connection is None:
            connection = connect(self._path, create=True, vacuum=True)
            try:
                connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
                connection.executescript(_SCHEMA)
                self.raise_floor((connection.execute("SELECT floor FROM about").fetchone() or (0,))[0])
            except sqlite3.Error as error:
                connection.close()
                raise translate(error, self._path) from error
            self._connection = connection
            self._inode = inode(self._path)
        return self._connection

    def _replaced(self) -> bool:
        """Whether the file this object opened is no longer the one at its path."""
        return self._inode != 0 and inode(self._path) != self._inode

    def _rollback(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()
