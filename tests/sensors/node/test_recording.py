# SPDX-License-Identifier: Apache-2.0
"""Recordings: what is written is read, a torn tail is told, damage is named or skipped with a count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DecodeError, Incompatible
from sensors.recordings.recording import BLOCK_BYTES, BlockKind, RecordedEntry, RecordingReader, RecordingWriter

entries = st.lists(
    st.builds(
        RecordedEntry,
        kind=st.sampled_from(BlockKind),
        time_ns=st.integers(0, 2**62),
        key=st.binary(max_size=20),
        value=st.one_of(st.none(), st.binary(max_size=300)),
    ),
    max_size=40,
)


def write(path: Path, found: list[RecordedEntry]) -> None:
    with RecordingWriter(str(path), {"kernel": "test"}) as writer:
        for entry in found:
            writer.add(entry.kind, entry.time_ns, entry.key, entry.value)
            writer.flush()


def some(count: int) -> list[RecordedEntry]:
    return [RecordedEntry(BlockKind.FRAMES, n, b"node", os.urandom(50)) for n in range(count)]


@given(found=entries)
@settings(deadline=None, max_examples=50)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, found: list[RecordedEntry]) -> None:
    path = tmp_path_factory.mktemp("rec") / "r.hbrk"
    write(path, found)
    with RecordingReader(str(path)) as reader:
        assert list(reader) == found
        assert reader.header == {"kernel": "test"}
        assert (reader.truncated, reader.skipped) == (0, 0)


def test_appending_keeps_header_and_entries(tmp_path: Path) -> None:
    path = tmp_path / "r"
    first, second = some(3), some(4)
    write(path, first)
    write(path, second)
    with RecordingReader(str(path)) as reader:
        assert list(reader) == first + second


def test_a_torn_tail_is_told_and_cut_when_recording_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r"
    found = some(5)
    write(path, found)
    whole = path.read_bytes()
    for lost in (1, 20, 70):
        path.write_bytes(whole[:-lost])
        with RecordingReader(str(path)) as reader:
            assert list(reader) == found[:4]
            assert 0 < reader.truncated < 130
    with RecordingWriter(str(path)) as writer:
        assert writer.cut > 0
        writer.add(BlockKind.FRAMES, 9, b"node", b"new")
    with RecordingReader(str(path)) as reader:
        assert [entry.value for entry in reader][-1] == b"new"
        assert reader.truncated == 0


@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=80)
def test_any_flipped_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: float, flip: int) -> None:
    path = tmp_path_factory.mktemp("rec") / "r"
    found = some(8)
    write(path, found)
    data = bytearray(path.read_bytes())
    start = 20 + len(b'{"kernel":"test"}')
    place = start + int(at * (len(data) - start))
    data[place] ^= flip
    path.write_bytes(bytes(data))
    with pytest.raises(DecodeError, match=r"offset \d+ of .*skip.damaged"), RecordingReader(str(path)) as reader:
        list(reader)
    with RecordingReader(str(path), skip_damaged=True) as reader:
        left = list(reader)
    assert len(left) == 7
    assert [entry for entry in found if entry in left] == left
    assert reader.skipped == 1


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"#!/bin/sh\necho hello\n" * 10)
    with pytest.raises(DecodeError, match="expected a recording"):
        RecordingReader(str(path))
    with pytest.raises(DecodeError, match="expected a recording"):
        RecordingWriter(str(path))
    write(path := tmp_path / "s", some(1))
    data = bytearray(path.read_bytes())
    data[8] = 99
    path.write_bytes(bytes(data))
    with pytest.raises(Incompatible, match="version 99"):
        RecordingReader(str(path))


def test_blocks_are_written_as_they_fill(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RecordingWriter(str(path)) as writer:
        for n in range(4):
            writer.add(BlockKind.FRAMES, n, b"node", os.urandom(BLOCK_BYTES // 2 + 1))
        assert path.stat().st_size > BLOCK_BYTES
