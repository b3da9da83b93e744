# SPDX-License-Identifier: Apache-2.0
"""A record as a row: the one place where columns and `Record` meet, for segments and compacted tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from types import NoneType

import msgspec

from bus.contract import Headers, Record
from bus.embedded.database import Corrupt
from schemas.decoding import decoder
from schemas.errors import DecodeError

INSERT = "INSERT INTO record(offset, at, key, value, headers) VALUES (?, ?, ?, ?, ?)"
SELECT = "SELECT offset, at, key, value, headers FROM record WHERE offset >= ? ORDER BY offset LIMIT ?"

Row = tuple[int, int, bytes, bytes | None, bytes | None]

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Headers] = decoder(tuple[tuple[str, bytes], ...], "the headers of a record")


class Rows:
    """What a read found: (offset, record) in order, and their bytes."""

    __slots__ = ("found", "size")

    def __init__(self) -> None:
        self.found: list[tuple[int, Record]] = []
        self.size = 0


def to_row(offset: int, record: Record) -> Row:
    headers = _encode(record.headers) if record.headers else None
    return offset, record.timestamp_ms, record.key, record.value, headers


def to_record(row: Row) -> Record:
    """The record of a row. `Corrupt` when the columns hold something else: SQLite keeps any type anywhere."""
    try:
        headers = _decode(row[4]) if row[4] is not None else ()
    except DecodeError as error:
        raise Corrupt(f"record {row[0]}: {error}") from error
    if type(row[2]) is not bytes or type(row[3]) not in (bytes, NoneType) or type(row[1]) is not int:
        raise Corrupt(f"record {row[0]}: expected bytes under a key of bytes, got {type(row[2])} and {type(row[3])}")
    return Record(row[2], row[3], headers, row[1])


def drain(
    connection: sqlite3.Connection,
    query: str,
    arguments: tuple[int, int],
    max_bytes: int,
    rows: Rows,
    *,
    skip: bool = False,
) -> None:
    """Append to `rows` until the query ends or `max_bytes` is reached; rows before an error are kept.

    A row that holds no record is `Corrupt`; with `skip` it is passed over and leaves a hole in the offsets.
    """
    offset, limit = arguments
    while True:
        passed: int | None = None
        cursor = connection.execute(query, (offset, limit))
        try:
            for row in cursor:
                try:
                    record = to_record(row)
                except Corrupt:
                    if not skip:
                        raise
                    passed = row[0]
                    continue
                rows.found.append((row[0], record))
                rows.size += record.size
                if rows.size >= max_bytes:
                    break
        finally:
            cursor.close()
        if passed is None or rows.found:
            return
        # Nothing found would mean the end.
        offset = passed + 1
