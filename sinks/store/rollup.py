# SPDX-License-Identifier: Apache-2.0
"""Minutes become hours, hours become days, days are forgotten; and so are the names nobody refers to any more.

A count is moved in one transaction, so it lies in exactly one table at any moment and sums never change by a roll-up.
Neighbour: `sqlite` calls it under its lock.
"""

from __future__ import annotations

import sqlite3
from typing import Annotated

import msgspec

from sinks.store.shrink import give_back

_DAY = 86400


class Keep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long counts of each resolution are kept."""

    minutes_days: Annotated[
        int, msgspec.Meta(ge=1, le=36_500, description="Days that keep counts per minute; then per hour.", examples=[1])
    ] = 1
    hours_days: Annotated[
        int, msgspec.Meta(ge=1, le=36_500, description="Days that keep counts per hour; then per day.", examples=[14])
    ] = 14
    days: Annotated[
        int, msgspec.Meta(ge=1, le=36_500, description="Days after which counts are forgotten.", examples=[90])
    ] = 90
    exact_days: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=36_500,
            description="Days for which repeats are recognised; summaries older than that are left out, never doubled.",
            examples=[7],
        ),
    ] = 7


def tidy(db: sqlite3.Connection, now: int, keep: Keep) -> int:
    """Roll up and forget as of `now` (Unix seconds). Rows removed."""
    before = db.total_changes
    removed = _fold(db, "minute", "hour", 3600, (now - keep.minutes_days * _DAY) // 3600 * 3600)
    removed += _fold(db, "hour", "day", _DAY, (now - keep.hours_days * _DAY) // _DAY * _DAY)
    horizon = now - keep.exact_days * _DAY
    db.execute("BEGIN IMMEDIATE")
    forgotten = db.execute("DELETE FROM day WHERE bucket < ?", (now - keep.days * _DAY,)).rowcount
    # Strictly in one transaction: once the memory of a bucket is gone, its repeats must be turned away.
    stale = db.execute("DELETE FROM applied WHERE bucket < ?", (horizon,)).rowcount
    db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'horizon'", (horizon,))
    if stale:
        db.execute("DELETE FROM run WHERE id NOT IN (SELECT run FROM applied)")
    if forgotten:
        for name in ("behaviour", "identity", "verdict"):
            used = " UNION ".join(f"SELECT {name} FROM {level}" for level in ("minute", "hour", "day"))
            keep_applied = " AND id NOT IN (SELECT identity FROM applied)" if name == "identity" else ""
            db.execute(f"DELETE FROM {name} WHERE id NOT IN ({used}){keep_applied}")
    db.execute("COMMIT")
    if db.total_changes > before:
        while give_back(db):
            continue
    return removed + forgotten + stale


def _fold(db: sqlite3.Connection, fine: str, coarse: str, width: int, before: int) -> int:
    """Move every bucket of `fine` that starts before `before` into `coarse`, one coarse bucket a transaction."""
    removed = 0
    while True:
        (oldest,) = db.execute(f"SELECT min(bucket) FROM {fine}").fetchone()
        if oldest is None or oldest >= before:
            return removed
        start = oldest // width * width
        end = min(start + width, before)
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            f"INSERT INTO {coarse} SELECT ?, identity, behaviour, verdict, sum(count), min(first), max(last) FROM {fine} "
            "WHERE bucket >= ? AND bucket < ? GROUP BY identity, behaviour, verdict "
            "ON CONFLICT DO UPDATE SET count = count + excluded.count, first = min(first, excluded.first), "
            "last = max(last, excluded.last)",
            (start, start, end),
        )
        removed += db.execute(f"DELETE FROM {fine} WHERE bucket >= ? AND bucket < ?", (start, end)).rowcount
        db.execute("COMMIT")
