# SPDX-License-Identifier: Apache-2.0
"""How the embedded bus opens SQLite, and what SQLite's refusals mean in our error tree.

Every file is in WAL mode: readers in this and other processes never wait for the writer. Nothing here may open a
database file by any other way than SQLite: closing such a descriptor would drop SQLite's POSIX locks for the whole
process. Neighbours: `segments`, `compacted` and `offsets` hold the tables.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from bus.permissions import private_file
from schemas.errors import DiskFull, HauberkError, Refused, Unavailable

# One frame of 512 KB is 64 pages of 8 KB; the default of 4 KB doubles the overflow chain, more wastes small records.
PAGE_BYTES = 8192
# Another process holds the write lock for one commit: milliseconds, or one slow fsync. Longer means it is stuck.
BUSY_MS = 5000


class Corrupt(Exception):
    """A file of the log is not a readable database; caught in this package, which puts the file aside and counts."""


def connect(path: Path, *, create: bool = False, vacuum: bool = False, cache_kb: int = 256) -> sqlite3.Connection:
    """Open `path` in WAL mode, autocommit. `vacuum`: a new file can give free pages back. Raises `FileNotFoundError` when it is gone, `Corrupt`, or a `HauberkError`."""
    mode = "rwc" if create else "rw"
    name = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        if create:
            private_file(path)
        connection = sqlite3.connect(
            f"file:{name}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        if not create and not path.exists():
            raise FileNotFoundError(str(path)) from error
        raise translate(error, path) from error
    try:
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        if create:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            if vacuum:
                # Before anything else is written: later it would take a VACUUM.
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            _write_ahead(connection)
        connection.execute(f"PRAGMA cache_size=-{cache_kb}")
        # Checkpoints happen behind the writer's back, on the reader's thread: inside a commit they would cost it two
        # fsyncs and up to a segment of writes.
        connection.execute("PRAGMA wal_autocheckpoint=0")
    except sqlite3.Error as error:
        connection.close()
        if not create and not path.exists():
            # Dropped between the open and the first look: SQLite calls that an I/O error.
            raise FileNotFoundError(str(path)) from error
        raise translate(error, path) from error
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for another connection that switches the same new file: it refuses at once."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def translate(error: sqlite3.Error, path: Path) -> HauberkError | Corrupt:
    """The word of our error tree for what SQLite said about `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(path)):
        return full(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(f"`{path}`: {error}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(f"expected the write lock of `{path}` within {BUSY_MS} ms, another process holds it", 0.5)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_TOOBIG):
        return Refused(f"expected to write `{path}`, SQLite said: {error}; check owner, mode and mount")
    return Unavailable(f"expected `{path}` to be readable and writable, SQLite said: {error}", 1.0)


def full(path: Path) -> DiskFull:
    """There is no room where `path` lies."""
    return DiskFull(
        f"expected room to write in `{path.parent}`, the file system is full; free some, writing resumes by itself",
        retry_after=1.0,
    )


def inode(path: Path) -> int:
    """Which file lies at `path`; 0 when none does."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def file_bytes(path: Path) -> int:
    """Bytes on disk of a database and its WAL; 0 when it is gone."""
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += os.stat(f"{path}{suffix}").st_size
        except FileNotFoundError:
            continue
    return total


def unlink(path: Path) -> None:
    """Remove a database with its WAL and shared memory; connections that have it open keep reading."""
    # The database first: nobody may open it anew and find its WAL gone.
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _no_room(path: Path) -> bool:
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 1 << 20 or room.f_favail == 0
