# SPDX-License-Identifier: Apache-2.0
"""A record as a row: the one place where columns and `Record` meet, for segments and compacted tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import NoneType

import msgspec

from bus.contract import Headers, Record
from schemas.errors import Refused
from schemas.topics import Topic

INSERT = "INSERT INTO record(offset, at, key, value, headers) VALUES (?, ?, ?, ?, ?)"
SELECT = "SELECT offset, at, key, value, headers FROM record WHERE offset >= ? ORDER BY offset LIMIT ?"

Row = tuple[int, int, bytes, bytes | None, bytes | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Headers).decode


def measure(topic: Topic, records: Sequence[Record], most: int) -> int:
    """Bytes of `records`. `Refused` for one over `most` bytes or made of anything but bytes: one such fails a whole commit."""
    total = 0
    for record in records:
        if type(record.key) is not bytes or type(record.value) not in (bytes, NoneType):
            raise Refused(
                f"`{topic.name}`: expected key and value as bytes, got {type(record.key).__name__} and "
                f"{type(record.value).__name__}; encode them first"
            )
        size = record.size
        if size > most:
            raise Refused(
                f"`{topic.name}`: expected a record of at most `record_bytes` {most}, got {size}; send it in parts"
            )
        total += size
    return total


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
