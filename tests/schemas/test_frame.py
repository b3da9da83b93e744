# SPDX-License-Identifier: Apache-2.0
"""Frames: what is encoded is decoded, and any damage is told, never passed on."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.decoding import LATEST_NS
from schemas.errors import DecodeError, HauberkError, Incompatible
from schemas.frame import FOLDED, LONGEST_NS, VERSION, Frame, FrameHeader, decode, definition, definitions, encode
from schemas.kernel import OCCURRENCE, RING_HEADER, STRIDE, DefinitionKind


def header(**changes: object) -> FrameHeader:
    facts: dict[str, object] = {"node": "n", "boot": "b", "run": "r", "number": 1, "clock_offset_ns": 5, "events": 2}
    return FrameHeader(**(facts | changes))  # type: ignore[arg-type]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\x7f", min_codepoint=32), min_size=1, max_size=63)


def at_time(row: bytes, at: int) -> bytes:
    """The row with its boot time replaced."""
    where = RING_HEADER + OCCURRENCE.offsets["time"]
    return row[:where] + at.to_bytes(8, "little") + row[where + 8 :]


frames = st.builds(
    Frame,
    header=st.builds(
        FrameHeader, node=names, boot=names, run=names, number=st.integers(0, 2**63 - 1),
        clock_offset_ns=st.integers(0, LATEST_NS), events=st.integers(0, 2**40), lost=st.lists(st.integers(0, 2**40)).map(tuple),
    ),
    occurrences=st.lists(st.tuples(st.binary(min_size=STRIDE, max_size=STRIDE), st.integers(0, LONGEST_NS - 1)), max_size=5).map(
        lambda rows: b"".join(at_time(row, at) for row, at in rows)
    ),
    definitions=st.binary(max_size=100),
    folded=st.lists(st.tuples(st.integers(1, 2**48), st.integers(0, LONGEST_NS // 2), st.integers(0, LONGEST_NS // 4)), max_size=2).map(
        lambda rows: b"".join(FOLDED.pack(7, many, first, first + more, 1, 2) for many, first, more in rows)
    ),
)  # fmt: skip


@given(frames)
def test_round_trip(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(frames, st.data())
def test_a_cut_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    whole = encode(frame)
    with pytest.raises(DecodeError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_an_error_of_ours(junk: bytes) -> None:
    with contextlib.suppress(HauberkError):
        assert isinstance(decode(junk), Frame)


def test_a_newer_version_says_to_upgrade() -> None:
    with pytest.raises(Incompatible, match="upgrade"):
        decode(encode(Frame(header=header(version=VERSION + 1), occurrences=b"", definitions=b"")))


@pytest.mark.parametrize("field", ["occurrences", "folded"])
def test_half_a_row_is_refused(field: str) -> None:
    with pytest.raises(DecodeError, match="rows of"):
        decode(encode(Frame(**({"header": header(), "occurrences": b"", "definitions": b""} | {field: b"x"}))))  # type: ignore[arg-type]


def test_a_field_added_at_the_end_is_ignored_by_an_old_reader() -> None:
    raw = msgspec.msgpack.decode(encode(Frame(header=header(), occurrences=b"", definitions=b"")))
    raw[0].append("from the future")
    raw.append({"more": 1})
    assert decode(msgspec.msgpack.encode(raw)).header.node == "n"


def test_an_old_writer_without_the_last_fields_is_read() -> None:
    raw = msgspec.msgpack.decode(
        encode(Frame(header=header(), occurrences=b"", definitions=b"", folded=bytes(FOLDED.size)))
    )
    assert decode(msgspec.msgpack.encode(raw[:3])).folded == b""


@given(st.lists(st.tuples(st.sampled_from(DefinitionKind), st.integers(0, 2**64 - 1), st.binary(max_size=70))))
def test_definitions_round_trip(records: list[tuple[DefinitionKind, int, bytes]]) -> None:
    run = b"".join(definition(kind, ident, body) for kind, ident, body in records)
    assert len(run) % 8 == 0
    assert definitions(run) == [(ident, kind, body) for kind, ident, body in records]


@given(st.binary(min_size=1, max_size=64), st.integers(1, 40))
def test_a_definition_that_points_past_the_end_is_refused(body: bytes, cut: int) -> None:
    whole = definition(DefinitionKind.STRING, 7, body)
    # Only padding may be missing without loss.
    lost = cut - (-len(body) % 8)
    if lost <= 0:
        return
    with pytest.raises(DecodeError, match="expected"):
        definitions(whole[: max(1, len(whole) - cut)])


ROW = bytes(STRIDE)


@pytest.mark.parametrize(
    "changes",
    [
        {"node": ""}, {"node": "a/b"}, {"node": "a\n\x1b[31m"}, {"node": "n" * 100_000}, {"node": "n\n"}, {"boot": "b" * 1000},
        {"number": -1}, {"number": 2**63}, {"clock_offset_ns": -1}, {"clock_offset_ns": 2**63}, {"events": -1},
        {"lost": (-5,)}, {"lost": (2**63,)}, {"undefined": -1}, {"run": "\0"},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_no_node_writes_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError, match="expected a frame"):
        decode(encode(Frame(header=header(**changes), occurrences=ROW, definitions=b"")))


@pytest.mark.parametrize("at", [LONGEST_NS, 2**63, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1, 9])
def test_one_time_that_no_machine_ran_refuses_the_frame(at: int, position: int) -> None:
    rows = [ROW] * 10
    rows[position] = at_time(ROW, at)
    with pytest.raises(DecodeError, match="since the boot"):
        decode(encode(Frame(header=header(), occurrences=b"".join(rows), definitions=b"")))
    rows[position] = at_time(ROW, LONGEST_NS - 1)
    assert decode(encode(Frame(header=header(), occurrences=b"".join(rows), definitions=b"")))


@pytest.mark.parametrize("folded", [(0, 1, 2), (2**48 + 1, 1, 2), (1, 2, 1), (1, 0, 2**64 - 1)])
def test_folded_counts_that_cannot_be_are_refused(folded: tuple[int, int, int]) -> None:
    many, first, last = folded
    row = FOLDED.pack(1, many, first, last, 0, 0)
    with pytest.raises(DecodeError, match="folded count"):
        decode(encode(Frame(header=header(), occurrences=b"", definitions=b"", folded=row)))
