# SPDX-License-Identifier: Apache-2.0
"""What takes the place of the library's decoders, without a broker: what is whole is read, anything else is one error and costs little."""

from __future__ import annotations

import gzip
import random

import cramjam
import pytest

from bus.kafka import unpacking

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
