# SPDX-License-Identifier: Apache-2.0
"""What takes the place of the library's decoders, without a broker: what is whole is read, anything else is one error and costs little."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

from bus.kafka import unpacking
from bus.kafka.batches import encoded

TEXT = bytes(range(256)) * 20
PACKED = {
    unpacking._gzip: gzip.compress(TEXT),
    unpacking._zstd: bytes(cramjam.zstd.compress(TEXT)),
    unpacking._lz4: bytes(cramjam.lz4.compress(TEXT)),
    unpacking._snappy: bytes(cramjam.snappy.compress_raw(TEXT)),
}


@pytest.mark.parametrize("decode", PACKED)
def test_what_is_damaged_is_an_error_or_content(decode) -> None:
    packed = PACKED[decode]
    assert decode(packed) == decode(memoryview(packed)) == TEXT
    turns = random.Random(7)
    for _ in range(500):
        damaged = bytearray(packed[: turns.choice((len(packed), turns.randrange(1, len(packed))))])
        for _ in range(turns.randrange(1, 4)):
            damaged[turns.randrange(len(damaged))] = turns.randrange(256)
        try:
            assert len(decode(bytes(damaged))) <= unpacking.most.get()
        except unpacking.Unpackable:
            continue


@pytest.mark.fault(
    "batch of gzip made of many streams of nothing", "left out and told; it takes no longer than another of its size"
)
def test_streams_of_nothing() -> None:
    """A megabyte of them took four seconds, and four times as many sixteen times as long: the loop of the reader stood still."""
    with pytest.raises(unpacking.Unpackable, match="goes on behind"):
        unpacking._gzip(gzip.compress(b"") * 50_000)
    with pytest.raises(unpacking.Unpackable, match="ends before"):
        unpacking._gzip(PACKED[unpacking._gzip][:-1])


class Assigned:
    """A partition that somebody reads, as the library's results ask it."""

    active = True
    paused = False
    position = 0

    def state_value(self, _: object) -> Assigned:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def fetched(value: bytes, batches: int, headers: int = 0) -> tuple[Any, Assigned]:
    """What a fetch brought: `batches` of one record each."""
    codec = 4
    one = SimpleNamespace(key=b"n1", value=value, headers=(("", b""),) * headers, timestamp_ms=1)
    data = b""
    for number in range(batches):
        data += struct.pack(">q", number) + encoded([cast(Any, one)], codec, (-1, -1), -1, 1)[8:]
    place, assigned = TopicPartition("t", 0), Assigned()
    records = fetcher.PartitionRecords(place, MemoryRecords(data), [], 0, None, None, False, 0)
    return fetcher.FetchResult(place, assignment=assigned, partition_records=records, backoff=0), assigned


@pytest.mark.fault(
    "some kilobytes that unpack to gigabytes: many batches, each of them no larger than is taken, of many partitions",
    "handed out some at a time, so that memory stays bounded; nothing is left out",
)
def test_many_batches_are_handed_out_some_at_a_time() -> None:
    most = unpacking.most.get()
    results = [fetched(bytes(most // 4), 20)[0] for _ in range(3)]
    taken = 0
    for _ in range(60):
        unpacking.hand_out()
        found = [one for result in results if result.has_more() for one in result.getall(2048)]
        assert sum(len(one.value) for one in found) <= most + most // 4
        taken += len(found)
    assert taken == 60
    assert not any(result.has_more() for result in results)


def test_headers_count() -> None:
    result, _ = fetched(b"", 2000, headers=unpacking.MOST_HEADERS)
    unpacking.hand_out()
    assert 1 <= len(result.getall(2048)) <= 110


@pytest.mark.fault(
    "record with more than 1,024 headers in a packed batch", "left out and told, before any of them is made"
)
def test_headers_without_end() -> None:
    result, assigned = fetched(b"x" * 5000, 1, headers=500_000)
    unpacking.hand_out()
    tracemalloc.start()
    try:
        (one,) = result.getall(2048)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(one, unpacking.UnreadBatch)
    assert one.why == "a record has 500000 headers, at most 1024 are read"
    assert peak < 4 << 20
    assert assigned.position == 1


def test_small_ones_are_handed_out_as_many_as_were_asked_for() -> None:
    result, assigned = fetched(b"x", 30)
    unpacking.hand_out()
    assert (len(result.getall(20)), assigned.position) == (20, 20)
    assert (len(result.getall(20)), assigned.position, result.has_more()) == (10, 30, False)
