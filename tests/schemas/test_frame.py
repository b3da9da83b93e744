# SPDX-License-Identifier: Apache-2.0
"""Frames: what is encoded is decoded, and any damage is told, never passed on."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DecodeError, HauberkError, Incompatible
from schemas.frame import FOLDED, VERSION, Frame, FrameHeader, decode, definition, definitions, encode
from schemas.kernel import STRIDE, DefinitionKind


def header(**changes: object) -> FrameHeader:
    facts: dict[str, object] = {"node": "n", "boot": "b", "run": "r", "number": 1, "clock_offset_ns": -5, "events": 2}
    return FrameHeader(**(facts | changes))  # type: ignore[arg-type]


frames = st.builds(
    Frame,
    header=st.builds(
        FrameHeader, node=st.text(), boot=st.text(), run=st.text(), number=st.integers(0, 2**63),
        clock_offset_ns=st.integers(-(2**63), 2**63 - 1), events=st.integers(0, 2**40), lost=st.lists(st.integers(0, 2**40)).map(tuple),
    ),
    occurrences=st.integers(0, 5).flatmap(lambda rows: st.binary(min_size=rows * STRIDE, max_size=rows * STRIDE)),
    definitions=st.binary(max_size=100),
    folded=st.integers(0, 2).flatmap(lambda rows: st.binary(min_size=rows * FOLDED.size, max_size=rows * FOLDED.size)),
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
