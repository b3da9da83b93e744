# SPDX-License-Identifier: Apache-2.0
"""The tables of the SQLite store, and opening its file. Schema version 1.

::

    meta       one row per setting: schema version, hash key, horizon
    identity   one row per (node, uid), its newest snapshot          ─┐
    behaviour  one row per distinct behaviour, keyed hash as key     ─┼─ dimensions
    verdict    one row per distinct (status, policy, rule)           ─┘
    minute, hour, day   counts: (bucket, identity, behaviour, verdict) -> count, first, last; each count lies in exactly one
    applied    frame ranges already counted per (node + run, identity, bucket): what makes repeats harmless
    alert      the latest alerts, one row per distinct EventID + policy + mode

A behaviour's key is a keyed 63-bit hash: a workload that chooses its own paths cannot make two of them share a row.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from pathlib import Path
from typing import Final

from bus.disk import capped
from schemas.errors import (
    DecodeError,
    DiskFull,
    HauberkError,
    Incompatible,
    PermissionMissing,
    SettingsError,
    Unavailable,
)

VERSION: Final = 1
APPLICATION_ID: Final = 0x48424B31
"""`HBK1` in the file header, so that another program's database is never written to."""

LEVELS: Final = (("minute", 60), ("hour", 3600), ("day", 86400))

_COUNTS = """
CREATE TABLE {name}(bucket INTEGER, identity INTEGER, behaviour INTEGER, verdict INTEGER,
    count INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY(bucket, identity, behaviour, verdict)) WITHOUT ROWID;
"""
_SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE identity(id INTEGER PRIMARY KEY, node TEXT NOT NULL, uid TEXT NOT NULL, body BLOB NOT NULL,
    UNIQUE(node, uid));
CREATE TABLE behaviour(id INTEGER PRIMARY KEY, operation INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE verdict(id INTEGER PRIMARY KEY, status TEXT NOT NULL, policy TEXT NOT NULL, rule BLOB NOT NULL,
    UNIQUE(status, policy, rule));
CREATE TABLE run(id INTEGER PRIMARY KEY, node TEXT NOT NULL, run TEXT NOT NULL, UNIQUE(node, run));
CREATE TABLE applied(bucket INTEGER, run INTEGER, identity INTEGER, ranges BLOB NOT NULL,
    PRIMARY KEY(bucket, run, identity)) WITHOUT ROWID;
CREATE TABLE alert(id INTEGER PRIMARY KEY, hash INTEGER NOT NULL UNIQUE, time INTEGER NOT NULL,
    namespace TEXT NOT NULL, pod TEXT NOT NULL, container TEXT NOT NULL, node TEXT NOT NULL, policy TEXT NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX alert_time ON alert(time);
""" + "".join(_COUNTS.format(name=name) for name, _ in LEVELS)


def open_writer(path: str) -> sqlite3.Connection:
    """The store at `path`, made if it is not there (mode 0600). Raises as `told` says, SettingsError, Incompatible."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise SettingsError(f"store: expected directory `{directory}` for `{path}`, it does not exist; create it")
    if not os.path.exists(path):
        # Made here, not by SQLite, because SQLite would use 0644.
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise PermissionMissing(
                f"store: expected to create `{path}`, got {error.strerror}; change `path` or the directory's owner",
                operation="create", target=path, errno=error.errno or 0,
            ) from error  # fmt: skip
    _regular(path)
    db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
    try:
        db.execute("PRAGMA busy_timeout=10000")
        if _is_empty(db):
            _create(db)
        check_version(db, path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        # Its log, too, has a share of the disk only; SQLite's own 1000 pages are 4 MiB.
        log_bytes = capped(64 << 20, directory, 16)
        db.execute(f"PRAGMA journal_size_limit={log_bytes}")
        db.execute(f"PRAGMA wal_autocheckpoint={max(16, min(1000, log_bytes // 4096))}")
        db.execute("PRAGMA cache_size=-8192")
        db.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error as error:
        db.close()
        raise translate(error, path) from error
    except HauberkError:
        db.close()
        raise
    return db


def open_reader(path: str) -> sqlite3.Connection:
    """The store at `path`, read only, beside a writer. SettingsError when there is none yet."""
    if not os.path.exists(path):
        raise SettingsError(
            f"store: expected a summary store at `{path}`, there is none; start `hauberk up` or give its path"
        )
    _regular(path)
    db = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=10.0,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA busy_timeout=10000")
        db.execute("PRAGMA query_only=1")
        db.execute("PRAGMA temp_store=MEMORY")
        check_version(db, path)
    except sqlite3.Error as error:
        db.close()
        raise translate(error, path) from error
    except HauberkError:
        db.close()
        raise
    return db


def check_version(db: sqlite3.Connection, path: str) -> None:
    """Incompatible when the file is another program's or of another schema version."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise Incompatible(
            f"store: expected a hauberk summary store at `{path}`, got another program's database; change `path`"
        )
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise Incompatible(
            f"store: expected schema version {VERSION} in `{path}`, got {version}; use the hauberk that wrote it, or move it away"
        )


def translate(error: sqlite3.Error, path: str) -> HauberkError:
    """The error of our tree that says what SQLite met and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DecodeError(
            f"store: expected a summary store at `{path}`, the file is damaged ({error}); "
            f"stop hauberk and move it away (`mv {path} {path}.damaged`, with its -wal and -shm) to begin a new one"
        )
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(
            f"store: expected room to write `{path}`, the disk is full; free space, nothing is lost meanwhile"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return PermissionMissing(
            f"store: expected permission on `{path}` and its directory, got {error}; run as its owner", target=path
        )
    return Unavailable(f"store: `{path}`: {error}; tried again later")


def _regular(path: str) -> None:
    try:
        info = os.stat(path)
    except OSError as error:
        raise PermissionMissing(f"store: expected to read `{path}`, got {error.strerror}", target=path) from error
    if not stat.S_ISREG(info.st_mode):
        raise SettingsError(f"store: expected a file at `{path}`, got another kind; change `path`")


def _is_empty(db: sqlite3.Connection) -> bool:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables == 0)


def _create(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA page_size=8192")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    key = secrets.token_hex(16)
    # One transaction: a crash in between leaves an empty file, which is made anew.
    db.executescript(
        f"BEGIN IMMEDIATE;{_SCHEMA}INSERT INTO meta VALUES('hash_key','{key}'),('horizon',0);"
        f"PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={VERSION};COMMIT;"
    )
