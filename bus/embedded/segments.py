# SPDX-License-Identifier: Apache-2.0
"""The log of one topic that forgets by age and size: a directory of SQLite files, each named by its first offset.

::

    telemetry.v1/
    ├── 00000000000000000000.db   sealed: its `about` row says so; nobody writes it any more
    ├── 00000000000000004711.db   the newest file is the live one (or sealed, with its successor not made yet)
    └── lock                      flock: held while a segment is sealed, made or dropped, never while records are written

Several processes write at once; SQLite's write lock orders them and the offset is counted inside the transaction. A
writer that meets a sealed file goes on to the newest one. Old segments are unlinked whole, which costs nothing.
A class here is used by one thread. Neighbours: `database`, `compacted` (same three methods), `writer`, `reader`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bus.contract import Record
from bus.embedded.database import PAGE_BYTES, Corrupt, connect, file_bytes, full, translate, unlink
from bus.embedded.rows import INSERT, SELECT, Rows, drain, to_row
from bus.permissions import private_directory
from schemas.errors import HauberkError, Unavailable

LAYOUT = 1

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS record(
  offset INTEGER PRIMARY KEY, at INTEGER NOT NULL, key BLOB NOT NULL, value BLOB, headers BLOB);
CREATE TABLE IF NOT EXISTS about(
  one INTEGER PRIMARY KEY CHECK (one = 1), layout INTEGER NOT NULL, base INTEGER NOT NULL,
  made_ms INTEGER NOT NULL, sealed INTEGER);
INSERT OR IGNORE INTO about VALUES (1, {layout}, {base}, {now}, NULL);
COMMIT;
"""


class SegmentedLog:
    """Append to, read from and drop segments of one topic in `directory`. Not for parallel use by threads."""

    compacted = False

    def __init__(self, directory: Path, *, durable: bool, segment_bytes: int, segment_age: float) -> None:
        self._directory = directory
        self._durable = durable
        self._segment_bytes = segment_bytes
        self._segment_age = segment_age
        self._live: sqlite3.Connection | None = None
        self._live_path = directory
        self._open: dict[Path, sqlite3.Connection] = {}
        self._floor = 0
        self.quarantined = 0
        private_directory(directory)

    def bases(self) -> list[int]:
        """First offsets of the segments on disk, ascending."""
        return sorted(int(name[:-3]) for name in os.listdir(self._directory) if name.endswith(".db"))

    def append(self, records: Sequence[Record]) -> int:
        """Write all or none; the offset of the first. Raises a `HauberkError`; nothing was written then."""
        for _ in range(100):
            try:
                first = self._append(records)
            except Corrupt:
                self.quarantine(self._live_path)
                continue
            except Unavailable:
                if self._still_there():
                    raise
                first = None
            if first is not None and self._still_there():
                return first
            # Another process sealed the file under us, or put it aside as corrupt: go on to the newest one.
            self._close_live()
        raise AssertionError(f"`{self._directory}`: the live segment was sealed 100 times in a row")

    def _append(self, records: Sequence[Record]) -> int | None:
        live = self._live or self._open_live()
        try:
            live.execute("BEGIN IMMEDIATE")
            base, sealed, top = live.execute(
                "SELECT base, sealed, (SELECT max(offset) FROM record) FROM about"
            ).fetchone()
            if sealed is not None:
                live.execute("ROLLBACK")
                return None
            first = max(base if top is None else top + 1, self._floor)
            live.executemany(INSERT, [to_row(first + index, record) for index, record in enumerate(records)])
            live.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback(live)
            raise translate(error, self._live_path) from error
        return int(first)

    def read(self, offset: int, max_records: int, max_bytes: int) -> Rows:
        """Records from `offset` on, at least one if there is one, stopping at `max_bytes`."""
        bases = self.bases()
        rows = Rows()
        index = max(0, sum(1 for base in bases if base <= offset) - 1)
        for place in range(index, len(bases)):
            path = self._path(bases[place])
            try:
                drain(self._reader(path), SELECT, (offset, max_records), max_bytes, rows, skip=True)
            except FileNotFoundError:
                continue
            except sqlite3.Error as error:
                if not path.exists() and not rows.found:
                    self._forget_reader(path)
                    continue
                problem = translate(error, path)
                if not isinstance(problem, Corrupt):
                    raise problem from error
                if not rows.found:
                    self.quarantine(path)
                    return self.read(offset, max_records, max_bytes)
            except Corrupt:
                self.quarantine(path)
                return self.read(offset, max_records, max_bytes)
            if rows.found:
                break
        self._forget_readers(bases)
        return rows

    def span(self) -> tuple[int, int]:
        """(oldest offset kept, offset the next record gets)."""
        bases = self.bases()
        if not bases:
            return self._floor, self._floor
        newest = self._path(bases[-1])
        try:
            base, top = (
                self._reader(newest).execute("SELECT base, (SELECT max(offset) FROM record) FROM about").fetchone()
            )
        except FileNotFoundError:
            return self.span()
        except (sqlite3.Error, Corrupt) as error:
            if not newest.exists():
                self._forget_reader(newest)
                return self.span()
            problem = translate(error, newest) if isinstance(error, sqlite3.Error) else error
            if not isinstance(problem, Corrupt):
                raise problem from error
            self.quarantine(newest)
            return self.span()
        return bases[0], max(base if top is None else top + 1, self._floor)

    def damaged(self) -> list[tuple[int, int]]:
        """Offsets that segments which were put aside may have held: (first, past), ascending. Named so: `1.900.1700000000.corrupt`."""
        names = [name.split(".") for name in os.listdir(self._directory) if name.endswith(".corrupt")]
        return sorted((int(name[0]), int(name[1])) for name in names if len(name) == 4)

    def raise_floor(self, offset: int) -> None:
        """Never hand out an offset under `offset`: a group has been there, whatever a power cut took from the log."""
        self._floor = max(self._floor, offset)

    def rotate(self, now: float, *, force: bool = False) -> bool:
        """Seal the live segment when it is full or old (or `force`, if it holds anything). Cheap when it is neither."""
        live = self._live
        if live is None:
            if not force:
                return False
            live = self._open_live()
        try:
            pages = live.execute("PRAGMA page_count").fetchone()[0]
            made_ms, top = live.execute("SELECT made_ms, (SELECT max(offset) FROM record) FROM about").fetchone()
            full = pages * PAGE_BYTES >= self._segment_bytes
            old = now - made_ms / 1000 >= self._segment_age
            if top is None or not (full or old or force):
                return False
            live.execute("UPDATE about SET sealed = ? WHERE sealed IS NULL", (int(now * 1000),))
        except sqlite3.Error as error:
            self._rollback(live)
            raise translate(error, self._live_path) from error
        self._close_live()
        if force:
            # The successor now and not with the next record: only a segment that has one can be dropped.
            self._open_live()
        return True

    def forget_dropped(self) -> None:
        """Close what another object dropped: its bytes are not free before."""
        for path in list(self._open):
            if not path.exists():
                self._open.pop(path).close()

    def size(self) -> int:
        """Bytes on disk."""
        return sum(file_bytes(self._path(base)) for base in self.bases())

    def drop(self, passed: int, oldest_ms: int, max_bytes: int, *, keep_passed: bool = False) -> tuple[int, int]:
        """Unlink sealed segments that every group has passed, that are too old, or over the byte cap.

        `passed`: the lowest committed offset. Returns (records dropped that some group had not passed, bytes freed).
        """
        bases = self.bases()
        lost = freed = 0
        if len(bases) < 2:
            return 0, 0
        damaged: Path | None = None
        with self._lock():
            bases = self.bases()
            sizes = [file_bytes(self._path(base)) for base in bases]
            total = sum(sizes)
            for base, successor, size in zip(bases, bases[1:], sizes, strict=False):
                path = self._path(base)
                if not (successor <= passed and not keep_passed) and total <= max_bytes:
                    try:
                        if self._newest_ms(path) >= oldest_ms:
                            break
                    except Corrupt:
                        damaged = path
                        break
                lost += max(0, successor - max(base, passed))
                unlink(path)
                freed += size
                total -= size
        self._forget_readers(self.bases())
        if damaged is not None:
            # It has no age. After the lock is given back, which this takes itself; what lies behind it goes with the next call.
            self.quarantine(damaged)
        return lost, freed

    def oldest_ms(self) -> int | None:
        """Time of the newest record (ms) of the oldest segment that has a successor; None when there is none."""
        bases = self.bases()
        if len(bases) < 2:
            return None
        with suppress(Corrupt):
            return self._newest_ms(self._path(bases[0]))
        return 0

    def drop_oldest(self, passed: int) -> tuple[int, int]:
        """Unlink the oldest segment that has a successor, read or not; as `drop`, (0, 0) when there is none."""
        with self._lock():
            bases = self.bases()
            if len(bases) < 2:
                return 0, 0
            path = self._path(bases[0])
            size = file_bytes(path)
            unlink(path)
        self._forget_readers(bases[1:])
        return max(0, bases[1] - max(bases[0], passed)), size

    def checkpoint(self, wal_bytes: int) -> None:
        """Move the WAL of sealed segments, and of a live one over `wal_bytes`, into the file. Never waits for writers."""
        bases = self.bases()
        for base in bases:
            path = self._path(base)
            try:
                size = os.stat(f"{path}-wal").st_size
                if size > (wal_bytes if base == bases[-1] else 0):
                    self._reader(path).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except (FileNotFoundError, Corrupt):
                continue
            except sqlite3.Error as error:
                problem = translate(error, path)
                if path.exists() and not isinstance(problem, Corrupt):
                    raise problem from error

    def quarantine(self, path: Path) -> None:
        """Put an unreadable segment aside (see `damaged` for its name) and see that offsets go on above everything it held."""
        with self._lock():
            if path == self._live_path:
                self._close_live()
            self._forget_reader(path)
            if not path.exists():
                return
            base = int(path.stem)
            # No record takes less than 16 bytes on disk, so this is above the last offset, however damaged the file is.
            above = base + file_bytes(path) // 16 + 1
            later = [other for other in self.bases() if other > base]
            if not later:
                self.raise_floor(above)
                self._make(self._path(above))
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            past = min(later, default=above)
            path.rename(path.with_suffix(f".{past}.{time.time_ns()}.corrupt"))
            self.quarantined += 1

    def close(self) -> None:
        self._close_live()
        self._forget_readers([])

    def _path(self, base: int) -> Path:
        return self._directory / f"{base:020d}.db"

    def _open_live(self) -> sqlite3.Connection:
        while True:
            bases = self.bases()
            if bases:
                path = self._path(bases[-1])
                self._live_path = path
                try:
                    live = connect(path)
                except FileNotFoundError:
                    continue
                try:
                    live.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
                    row = live.execute("SELECT sealed, (SELECT max(offset) FROM record) FROM about").fetchone()
                except sqlite3.Error as error:
                    live.close()
                    if not path.exists():
                        continue
                    raise translate(error, path) from error
                if row is None:
                    live.close()
                    raise Corrupt(f"`{path}` has no `about` row")
                if row[0] is None:
                    self._live = live
                    return live
                live.close()
                base = max(int(row[1]) + 1, self._floor)
            else:
                base = self._floor
            with self._lock():
                # Only if nobody was faster: the successor of a sealed file is made once.
                if self.bases() == bases:
                    self._make(self._path(base))

    def _make(self, path: Path) -> None:
        fresh = path.with_suffix(".new")
        unlink(fresh)
        try:
            connection = connect(fresh, create=True)
            try:
                now = time.time_ns() // 1_000_000
                connection.executescript(_SCHEMA.format(layout=LAYOUT, base=int(path.stem), now=now))
            finally:
                # The last close moves the WAL into the file and removes it, so that the rename moves one whole file.
                connection.close()
        except sqlite3.Error as error:
            raise translate(error, path) from error
        if Path(f"{fresh}-wal").exists():
            # The close found no room for that, and says nothing: what is in the file is not whole.
            unlink(fresh)
            raise full(path)
        fresh.rename(path)

    def _reader(self, path: Path) -> sqlite3.Connection:
        reader = self._open.get(path)
        if reader is None:
            reader = self._open[path] = connect(path)
        return reader

    def _forget_reader(self, path: Path) -> None:
        reader = self._open.pop(path, None)
        if reader is not None:
            reader.close()

    def _forget_readers(self, bases: list[int]) -> None:
        # Two are enough for a reader at the end and one that lags; each holds a page cache and three descriptors.
        kept = {self._path(base) for base in bases}
        for path in list(self._open):
            if path not in kept or len(self._open) > 2:
                self._open.pop(path).close()

    def _newest_ms(self, path: Path) -> int:
        """Raises `Corrupt`."""
        try:
            row = self._reader(path).execute("SELECT at FROM record ORDER BY offset DESC LIMIT 1").fetchone()
        except (sqlite3.Error, HauberkError) as error:
            if isinstance(error, sqlite3.Error) and isinstance(problem := translate(error, path), Corrupt):
                raise problem from error
            # A full disk has no room even for the shared memory of a reader: such a segment counts as old.
            return 0
        return 0 if row is None else int(row[0])

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _still_there(self) -> bool:
        # One stat after the commit: a file that was put aside while we wrote takes our records with it; write them again.
        return self._live_path.exists()

    def _close_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.close()

    def _rollback(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._close_live()
