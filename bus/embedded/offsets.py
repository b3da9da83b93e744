# SPDX-License-Identifier: Apache-2.0
"""Who has read how far: groups, their committed offsets, and the lease that gives a topic to one member of a group.

Offsets live in `groups.db`, apart from the logs, so that forgetting a segment never touches them. A lease is a flock on
a file: the kernel gives it back when the holder dies, however it dies. Neighbours: `writer` commits, `reader` asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from bus.embedded.database import Corrupt, connect, inode, translate, unlink
from bus.permissions import private_directory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS offsets(
  grp TEXT NOT NULL, topic TEXT NOT NULL, next INTEGER NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (grp, topic)) WITHOUT ROWID;
"""


class Offsets:
    """`groups.db` in `directory`. Not for parallel use by threads."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "groups.db"
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._full = False
        self.quarantined = 0

    def commit(self, positions: Iterable[tuple[str, str, int]], *, durable: bool, register: bool = False) -> None:
        """Set (group, topic, next offset); an offset never goes back. `register` keeps what is already there.

        `durable`: survive a power cut as well. Without it a power cut may repeat what was read in the last seconds.
        """
        now = time.time_ns() // 1_000_000
        rows = [(group, topic, offset, now) for group, topic, offset in positions]
        change = "NOTHING" if register else "UPDATE SET next = max(next, excluded.next), at = excluded.at"
        connection = self._open()
        try:
            if durable != self._full:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._full = durable
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(f"INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT DO {change}", rows)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback(connection)
            raise self._raised(error) from error

    def all(self) -> dict[str, dict[str, int]]:
        """Group -> topic name -> next offset."""
        groups: dict[str, dict[str, int]] = {}
        try:
            for group, topic, offset in self._open().execute("SELECT grp, topic, next FROM offsets"):
                groups.setdefault(group, {})[topic] = offset
        except sqlite3.Error as error:
            raise self._raised(error) from error
        return groups

    def of(self, group: str, topic: str) -> int | None:
        try:
            row = (
                self._open().execute("SELECT next FROM offsets WHERE grp = ? AND topic = ?", (group, topic)).fetchone()
            )
        except sqlite3.Error as error:
            raise self._raised(error) from error
        return None if row is None else int(row[0])

    def bounds(self, topic: str) -> tuple[int, int] | None:
        """(lowest, highest) committed offset of all groups of `topic`; None when it has no group."""
        try:
            row = self._open().execute("SELECT min(next), max(next) FROM offsets WHERE topic = ?", (topic,)).fetchone()
        except sqlite3.Error as error:
            raise self._raised(error) from error
        return None if row[0] is None else (int(row[0]), int(row[1]))

    def forget(self, group: str) -> None:
        connection = self._open()
        try:
            connection.execute("DELETE FROM offsets WHERE grp = ?", (group,))
        except sqlite3.Error as error:
            self._rollback(connection)
            raise self._raised(error) from error

    def checkpoint(self, wal_bytes: int, *, shorten: bool = False) -> None:
        """Move a WAL over `wal_bytes` into the file; `shorten`: and give its room back, if nobody reads."""
        mode = "TRUNCATE" if shorten else "PASSIVE"
        try:
            if os.stat(f"{self._path}-wal").st_size > wal_bytes:
                self._open().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except FileNotFoundError:
            return
        except sqlite3.Error as error:
            raise self._raised(error) from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and inode(self._path) != self._inode:
            self.close()
        if self._connection is None:
            for attempt in range(2):
                try:
                    connection = connect(self._path, create=True)
                    connection.executescript(_SCHEMA)
                except (sqlite3.Error, Corrupt) as error:
                    problem = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
                    if not isinstance(problem, Corrupt) or attempt:
                        raise problem from error
                    self._quarantine()
                else:
                    self._connection = connection
                    self._inode = inode(self._path)
                    self._full = True  # SQLite's own default.
                    return connection
        assert self._connection is not None
        return self._connection

    def _raised(self, error: sqlite3.Error) -> Exception:
        problem = translate(error, self._path)
        if isinstance(problem, Corrupt):
            # Without offsets groups begin again at the oldest record kept: repeats, no loss. The next call finds it so.
            self._quarantine()
        return problem

    def _quarantine(self) -> None:
        mine = self._connection is None or inode(self._path) == self._inode
        self.close()
        if not mine:
            return
        if self._path.exists():
            self._path.rename(self._path.with_suffix(f".{time.time_ns()}.corrupt"))
        unlink(self._path)
        self.quarantined += 1

    def _rollback(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()


class Lease:
    """The right of one member of `group` to read `topic`. `take` never waits; `release` twice is once.

    The holder shows that it works by `beat`; one that did not for `member_seconds` hangs, and whoever asks next gets a new file
    in place of its: `lost` tells it so when it wakes up.
    """

    def __init__(
        self,
        directory: Path,
        group: str,
        topic: str,
        member_seconds: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        private_directory(directory)
        self._directory = directory
        self._path = directory / f"{quote(group, safe='')}@{topic}"
        self._member_seconds = member_seconds
        self._clock = clock
        self._beaten = 0.0
        self._descriptor = -1

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    @property
    def lost(self) -> bool:
        """Whether the file that this holds is no longer the one at its path, so that another member may hold that one."""
        return self.held and inode(self._path) != os.fstat(self._descriptor).st_ino

    def take(self) -> bool:
        """Whether the lease is held now."""
        return self.held or self._lock() or (self._hangs() and self._renew() and self._lock())

    def beat(self) -> None:
        """Show that the holder works, ten times in `member_seconds` at most."""
        now = self._clock()
        if self.held and abs(now - self._beaten) >= self._member_seconds / 10:
            with contextlib.suppress(OSError):
                os.utime(self._descriptor, (now, now))
            self._beaten = now

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _lock(self) -> bool:
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor, self._beaten = descriptor, 0.0
        if self.lost:
            # Taken from a member that hung while this one opened it.
            self.release()
            return False
        self.beat()
        return True

    def _hangs(self) -> bool:
        try:
            return self._clock() - os.stat(self._path).st_mtime > self._member_seconds
        except FileNotFoundError:
            return False

    def _renew(self) -> bool:
        """Take the file of a holder that hangs away from its path."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One at a time, and looked at again: the file may be another member's new one by now.
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._hangs():
                return False
            self._path.unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(directory)
