# SPDX-License-Identifier: Apache-2.0
"""Hot file: records to a batch as it travels, a delivery of what came; which partition a key belongs to. Pure.

The partition is the one that Kafka's own clients take (murmur2), so other programs may write and find ours by key. A time
that the broker refuses for being an hour ahead travels in a header of ours and is put back by the reader, but on topics where
the log's own time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from aiokafka import errors
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from bus.contract import Delivery, Headers, Record
from schemas.errors import MissingDependency
from schemas.topics import Topic

TIME_HEADER: Final = "bus.time-ms"
_OF_LOG: Final = 1
"""Type of a record's time: when the leader of its partition took it."""
_NO_TIME: Final = -1
"""Of a record: retention then goes by the age of the segment's file."""
CODECS: Final[Mapping[str, int]] = {
    "none": 0,
    "gzip": DefaultRecordBatch.CODEC_GZIP,
    "snappy": DefaultRecordBatch.CODEC_SNAPPY,
    "lz4": DefaultRecordBatch.CODEC_LZ4,
    "zstd": DefaultRecordBatch.CODEC_ZSTD,
}


def check_codec(name: str) -> None:
    """MissingDependency when what compresses is not installed."""
    try:
        encoded((), CODECS[name], (-1, -1), -1, 0)
    except errors.UnsupportedCodecError as error:
        raise MissingDependency(
            f"expected a package that compresses with {name}, found none; install `aiokafka[{name}]` or change `bus.compression`"
        ) from error


@lru_cache(65536)
def partition_of(key: bytes, partitions: int) -> int:
    """0 to `partitions` - 1. The hash is slow in Python and keys are few."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def encoded(
    records: Iterable[Record],
    codec: int,
    identity: tuple[int, int],
    sequence: int,
    now_ms: int,
    *,
    timeless: bool = False,
) -> bytes:
    """One batch of Kafka's second format. `identity`: producer id and epoch. `timeless`: times go into `TIME_HEADER`."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, *identity, sequence, 1 << 30)
    for number, record in enumerate(records):
        time = record.timestamp_ms or now_ms
        headers = list(record.headers)
        if timeless:
            headers.append((TIME_HEADER, b"%d" % time))
            time = _NO_TIME
        builder.append(number, time, record.key, record.value, headers)
    return bytes(builder.build())


def delivered(topic: Topic, came: Any) -> Delivery:
    """`came`: a ConsumerRecord of aiokafka."""
    time, headers = came.timestamp, came.headers
    if headers:
        if any(value is None for _, value in headers):
            # The protocol has values that are null, which the contract has not.
            headers = tuple((name, value or b"") for name, value in headers)
        if headers[-1][0] == TIME_HEADER:
            said, headers = _time(headers, time)
            if not (topic.log_time and came.timestamp_type == _OF_LOG):
                time = said
    return Delivery(topic, came.partition, came.offset, Record(came.key or b"", came.value, headers, max(time, 0)))


def _time(headers: Headers, time: int) -> tuple[int, Headers]:
    word = headers[-1][1]
    # Anybody may write a header of this name. 14 digits are the year 5138.
    return (int(word), headers[:-1]) if word.isdigit() and len(word) < 15 else (time, headers)
