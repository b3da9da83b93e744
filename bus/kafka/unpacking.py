# SPDX-License-Identifier: Apache-2.0
"""Batches to records, in place of the library's: what cannot be read, or unpacks to more than a reader takes, is left out and named.

Who may write to a topic, as every node may to `events.raw`, decides what its readers unpack: four bytes of zstd are 128 KiB of zeros, and the
broker looks at what travels. The library unpacks all of it, and meets what it cannot read again and again. Neighbours: `reader`
(makes gaps of what is left out, and sets `most`).
"""

from __future__ import annotations

import mmap
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record import default_records

MOST_UNPACKED: Final = 8 << 20
"""Bytes of a batch, where a reader says nothing else."""
most: Final[ContextVar[int]] = ContextVar("most", default=MOST_UNPACKED)
"""Bytes that a batch may unpack to, in the task that reads."""
_left: Final[ContextVar[int | None]] = ContextVar("left", default=None)
"""Bytes that the question under way may still hand out; the record that exceeds them is the last. None: nobody counts over partitions."""

_KEPT: Final = 1 << 20
"""Bytes of memory that stay with a reader: a batch of ours is no larger, as a rule."""
_GZIP: Final = 31
"""Window of zlib, with gzip's header."""
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = 16
_HEADER_BYTES: Final = 80
"""Of a header in memory, beside its name and value."""
MOST_HEADERS: Final = 1024
"""Of one record in a packed batch: some kilobytes may be millions of empty ones, which the library makes before it hands out the record."""
_LONG: Final = 2 * MOST_HEADERS
"""Bytes of a record that may have more headers than that: an empty one is two bytes."""


class UnreadBatch(NamedTuple):
    """In the place of records: offsets from `offset` to `last` are not handed out."""

    offset: int
    last: int
    why: str


class Unpackable(CorruptRecordException):  # type: ignore[misc]
    """More than `most`, or not what the batch says that it is."""


class UnpackedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """What a fetch brought of one partition, record by record. No batch of a transaction is looked for: nobody here writes any."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        while self._records.has_next():
            batch = self._records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                # On the way or on the broker's disk: asked again it may be whole.
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not batch.is_control_batch:
                try:
                    for record in batch:
                        # Asked for from the middle, a batch comes whole.
                        if record.offset >= self.next_fetch_offset:
                            made = self._consumer_record(self._tp, record)
                            self.next_fetch_offset = record.offset + 1
                            yield made
                except (CorruptRecordException, UnsupportedCodecError, ValueError, OverflowError) as error:
                    # Its sum is right: it was written so, and comes no better a second time.
                    said = (
                        str(error.args[0]) if isinstance(error, CorruptRecordException) and error.args else str(error)
                    )
                    why = " ".join(said.split()) or type(error).__name__
                    left = UnreadBatch(self.next_fetch_offset, batch.next_offset - 1, why)
                    self.next_fetch_offset = batch.next_offset
                    yield left
            self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)


class UnpackedResult(fetcher.FetchResult):  # type: ignore[misc]
    """The same, as it is handed out: no more than `most` bytes over all partitions, for some kilobytes may hold many batches that are each no
    larger than that. The rest waits packed, for the next question."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        found: list[Any] = []
        counted = _left.get()
        left = most.get() if counted is None else counted
        while left > 0 and (max_records is None or len(found) < max_records):
            one = next(self._partition_records, None)
            if one is None:
                self._update_position()
                self._partition_records = None
                break
            found.append(one)
            if isinstance(one, UnreadBatch):
                # Nothing of it is kept, but to find that out took as long as to read it.
                left -= most.get()
            else:
                left -= len(one.value or b"") + len(one.key or b"") + _HEADER_BYTES * len(one.headers)
        else:
            self._update_position()
        if counted is not None:
            _left.set(left)
        return found


def hand_out() -> None:
    """A new question: it may hand out `most` bytes."""
    _left.set(most.get())


class _Room(threading.local):
    """Where the decoders of a thread write. Kept: fresh pages for each batch cost more than to unpack it."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, MOST_UNPACKED)

    def unpacked(self, unpack: Callable[[Any, Any], int], payload: Any) -> bytes:
        """What `unpack`, of cramjam, makes of `payload`, `most` bytes at most."""
        if len(self._pages) < most.get():
            self._pages = mmap.mmap(-1, most.get())
        with memoryview(self._pages)[: most.get()] as room:
            try:
                size = unpack(payload, room)
                return bytes(room[:size])
            except Exception as error:
                size = len(room)
                raise _too_large(error) from error
            finally:
                if size > _KEPT:
                    self._pages.madvise(mmap.MADV_DONTNEED)


_room = _Room()


def _zstd(payload: Any) -> bytes:
    import cramjam

    return _room.unpacked(cramjam.zstd.decompress_into, payload)


def _lz4(payload: Any) -> bytes:
    import cramjam

    return _room.unpacked(cramjam.lz4.decompress_into, payload)


def _gzip(payload: Any) -> bytes:
    """One stream, which is what producers write: of a batch of streams of nothing, twenty bytes each, the rest would be copied for each."""
    one = zlib.decompressobj(_GZIP)
    try:
        found = one.decompress(payload, most.get() + 1)
    except zlib.error as error:
        raise _too_large(error) from error
    if len(found) > most.get():
        raise _too_large(None)
    if not one.eof or one.unused_data:
        raise Unpackable(
            f"expected one whole stream of gzip, it {'goes on behind' if one.eof else 'ends before'} its end"
        )
    return found


def _snappy(payload: Any) -> bytes:
    import cramjam

    whole = bytes(payload)
    if not whole.startswith(_XERIAL):
        blocks = [whole]
    else:
        blocks, at = [], _XERIAL_HEADER
        while at + 4 <= len(whole):
            (size,) = struct.unpack_from("!i", whole, at)
            if size < 0:
                raise Unpackable("expected blocks of snappy, got one of a negative size")
            blocks.append(whole[at + 4 : at + 4 + size])
            at += 4 + size
    try:
        # Each says at its beginning how much it is.
        if sum(cramjam.snappy.decompress_raw_len(one) for one in blocks) > most.get():
            raise _too_large(None)
        return b"".join(bytes(cramjam.snappy.decompress_raw(one)) for one in blocks)
    except cramjam.DecompressionError as error:
        raise _too_large(error) from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, place behind it) of a zigzag varint of Kafka's records. IndexError where `data` ends before it does."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise IndexError


def refuse_headers(records: bytes) -> None:
    """Unpackable where a record of an unpacked batch (KIP-98, version 2) has more than MOST_HEADERS. What is no record is left to the
    library."""
    at = 0
    with suppress(IndexError):
        while at < len(records):
            size, start = _varint(records, at)
            at = start + size
            if size <= _LONG:
                if size < 0:
                    return
                continue
            place = start + 1
            for _ in range(2):
                _, place = _varint(records, place)
            for _ in range(2):
                length, place = _varint(records, place)
                place += max(length, 0)
            count, _ = _varint(records, place)
            if count > MOST_HEADERS:
                raise Unpackable(f"a record has {count} headers, at most {MOST_HEADERS} are read")


def _checked(decode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def decoded(payload: Any) -> bytes:
        found = decode(payload)
        refuse_headers(found)
        return found

    return decoded


def _too_large(error: Exception | None) -> Unpackable:
    said = f", or is damaged ({error})" if error is not None else ""
    return Unpackable(f"it unpacks to more than {most.get()} bytes{said}")


def _install() -> None:
    """The library has no seam for it: the names that its modules call."""
    fetcher.PartitionRecords = UnpackedRecords
    fetcher.FetchResult = UnpackedResult
    # Compiled or not, it is the module that has the class.
    module = sys.modules[default_records.DefaultRecordBatch.__module__]
    for name, decode in (("gzip", _gzip), ("snappy", _snappy), ("lz4", _lz4), ("zstd", _zstd)):
        assert hasattr(module, f"{name}_decode")
        setattr(module, f"{name}_decode", _checked(decode))


_install()
