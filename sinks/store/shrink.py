# SPDX-License-Identifier: Apache-2.0
"""The store within its bytes: what is oldest goes, and the file shrinks, in steps that each take a moment.

::

    over the cap ─► cut: counts, alerts and memory before a time ─► repack: behaviours nobody counts go, the others move
    together ─► give back: free pages off the end of the file

Behaviours are nine tenths of a store and lie in the order of a hash, so those that go leave holes on every page and no page
is free: hence the repacking, a range of keys in one transaction. It must never cut the newest bucket. Neighbours: `sqlite`
(whose lock is held for each step), `rollup` (what goes by age).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

import msgspec

from sinks.store.layout import LEVELS

AIM: Final = 0.8
"""Part of the cap that is left when it was reached: each shrinking rewrites the file once, so it should not come often."""
_RANGE: Final = 2000
"""Behaviours repacked in one transaction: 1.5 MB of 700 bytes each, 20 ms."""
_PAGES: Final = 1000
_MINUTE: Final = 60


class Step(msgspec.Struct, frozen=True):
    """What was done so far. `rows`: counts and alerts forgotten; `before`: all of them are older (Unix seconds); `size`: bytes
    of the file now."""

    rows: int
    before: int
    size: int


def file_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the database file, once its log is moved into it."""
    return int(_pragma(db, "page_count")) * int(_pragma(db, "page_size"))


def cut(db: sqlite3.Connection, most: int) -> tuple[int, int]:
    """Forget counts and alerts, oldest first, until what is left fits `AIM` of `most` bytes. (rows, time before which)."""
    aim = int(most * AIM)
    rows = before = 0
    if (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size") <= aim:
        return 0, 0
    # Once at least: the guess may say that it fits when the file says it does not.
    while (live := _live(db)) > aim or not rows:
        moment = _cutoff(db, min(0.9, max(0.05, (live - aim) / live)))
        gone = 0 if moment is None else _forget(db, moment)
        if moment is None or not gone:
            break
        rows, before = rows + gone, moment
    return rows, before


def names(db: sqlite3.Connection) -> None:
    """Forget identities, verdicts and runs that nothing refers to any more; note the behaviours that something does."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM run WHERE id NOT IN (SELECT run FROM applied)")
    for name in ("identity", "verdict"):
        applied = " UNION SELECT identity FROM applied" if name == "identity" else ""
        db.execute(f"DELETE FROM {name} WHERE id NOT IN ({_used(name)}{applied})")
    db.execute("COMMIT")
    _note(db)


def repack(db: sqlite3.Connection, after: int, keep: Collection[int]) -> int | None:
    """Behaviours with keys above `after`: those not noted by `names` and not in `keep` go, the rest is written together. The
    last key looked at, None at the end."""
    found = db.execute(
        "SELECT id, operation, body, id IN temp.used FROM behaviour WHERE id > ? ORDER BY id LIMIT ?", (after, _RANGE)
    ).fetchall()
    if not found:
        return None
    last = int(found[-1][0])
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM behaviour WHERE id > ? AND id <= ?", (after, last))
    db.executemany(
        "INSERT INTO behaviour VALUES(?,?,?)", [row[:3] for row in found if row[3] or row[0] in keep]
    )  # fmt: skip
    db.execute("COMMIT")
    return last


def give_back(db: sqlite3.Connection, pages: int = _PAGES) -> bool:
    """Take up to `pages` free pages off the file; whether there are more. Never of a file that gives none back, as one that
    was restored from a dump."""
    before = _pragma(db, "freelist_count")
    # Not `execute`: it steps this statement once, and each step frees one page.
    db.executescript(f"PRAGMA incremental_vacuum({pages})")
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return 0 < int(_pragma(db, "freelist_count")) < int(before)


def _live(db: sqlite3.Connection) -> int:
    """What the file will take once it is repacked, in bytes: a guess from what its rows hold, some 10 % off. Leaves the used
    behaviours noted."""
    _note(db)
    held = (
        # A repacked page is nine tenths full, others are some 80 %.
        "SELECT 1.1 * sum(length(body) + 16) FROM behaviour WHERE id IN temp.used",
        "SELECT 1.2 * sum(length(body) + 200) FROM alert",
        "SELECT 1.2 * sum(length(body) + 100) FROM identity",
        "SELECT 1.2 * sum(length(ranges) + 20) FROM applied",
        *(f"SELECT 1.2 * 40 * count(*) FROM {level}" for level, _ in LEVELS),
    )
    return int(sum(db.execute(each).fetchone()[0] or 0 for each in held))


def _note(db: sqlite3.Connection) -> None:
    db.execute("CREATE TEMP TABLE IF NOT EXISTS used(id INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM temp.used")
    db.execute(f"INSERT INTO temp.used {_used('behaviour')}")


def _used(name: str) -> str:
    return " UNION ".join(f"SELECT {name} FROM {level}" for level, _ in LEVELS)


def _cutoff(db: sqlite3.Connection, part: float) -> int | None:
    """The time before which this part of the counts lies; of the alerts when there is no more than one bucket."""
    ends = sorted(
        (bucket + width, many)
        for level, width in LEVELS
        for bucket, many in db.execute(f"SELECT bucket, count(*) FROM {level} GROUP BY bucket")
    )
    wanted = sum(many for _, many in ends) * part
    newest = ends[-1][0] if ends else 0
    for end, many in ends:
        wanted -= many
        if wanted <= 0 or end == newest:
            break
    else:
        end = newest
    # The newest bucket stays whatever it takes.
    older = [each for each, _ in ends if each <= end and each < newest]
    if older:
        return int(older[-1])
    (alerts,) = db.execute("SELECT count(*) FROM alert").fetchone()
    row = db.execute("SELECT time FROM alert ORDER BY time LIMIT 1 OFFSET ?", (max(1, int(alerts * part)),)).fetchone()
    if row is None:
        return None
    moment = int(row[0])
    return min(moment, newest - 1) if ends else moment


def _forget(db: sqlite3.Connection, moment: int) -> int:
    """Counts and alerts wholly before `moment`, and the memory of what was counted then. Rows removed."""
    db.execute("BEGIN IMMEDIATE")
    rows = sum(
        db.execute(f"DELETE FROM {level} WHERE bucket <= ?", (moment - width,)).rowcount for level, width in LEVELS
    )
    rows += db.execute("DELETE FROM alert WHERE time < ?", (moment,)).rowcount
    # In one transaction with the counts: once the memory of a bucket is gone, its repeats must be turned away.
    db.execute("DELETE FROM applied WHERE bucket <= ?", (moment - _MINUTE,))
    db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'horizon'", (moment - _MINUTE + 1,))
    db.execute("COMMIT")
    return rows


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
