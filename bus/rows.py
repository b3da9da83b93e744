# SPDX-License-Identifier: Apache-2.0
"""A record as a row: the one place where columns and `Record` meet, for segments and compacted tables."""

from __future__ import annotations

import sqlite3

import msgspec

from bus.contract import Headers, Record

INSERT = "INSERT INTO record(offset, at, key, value, headers) VALUES (?, ?, ?, ?, ?)"
SELECT = "SELECT offset, at, key, value, headers FROM record WHERE offset >= ? ORDER BY offset LIMIT ?"

Row = tuple[int, int, bytes, bytes | None, bytes | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Headers).decode


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
    headers = _decode(row[4]) if row[4] is not None else ()
    return Record(row[2], row[3], headers, row[1])


def drain(connection: sqlite3.Connection, query: str, arguments: tuple[int, int], max_bytes: int, rows: Rows) -> None:
    """Append to `rows` until the query ends or `max_bytes` is reached; rows before an error are kept."""
    cursor = connection.execute(query, arguments)
    try:
        for row in cursor:
            record = to_record(row)
            rows.found.append((row[0], record))
            rows.size += record.size
            if rows.size >= max_bytes:
                break
    finally:
        cursor.close()
