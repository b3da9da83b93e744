# SPDX-License-Identifier: Apache-2.0
"""Answers of name servers on their way from the ring into frames: whole, once, before the rows that need them."""

from __future__ import annotations

from pathlib import Path

from schemas.frame import Frame, FrameHeader, definitions
from schemas.kernel import ANSWER, DEFINITION, DefinitionKind
from sensors.node.definition_log import DefinitionLog
from sensors.node.heard import Heard
from sensors.node.rings import RingSettings, RingSource


def record(number: int, size: int = 40, room: int = 0) -> bytes:
    body = ANSWER.struct.pack(number, size, 0) + bytes([number % 251]) * size
    return DEFINITION.struct.pack(7, DefinitionKind.ANSWER, len(body)) + body + b"\xee" * room


class Stamp:
    def __init__(self) -> None:
        self.number = 0

    def __call__(self, *, events: int, undefined: int) -> FrameHeader:
        self.number += 1
        return FrameHeader(node="n", boot="b", run="r", number=self.number, clock_offset_ns=0, events=events)


def told(frames: list[Frame]) -> list[tuple[int, bytes]]:
    """(number, message) of the answers in frames."""
    return [
        (ANSWER.struct.unpack_from(body)[0], body[ANSWER.size :])
        for frame in frames
        for _, kind, body in definitions(frame.answers)
        if kind == DefinitionKind.ANSWER
    ]


def test_other_records_stay_and_the_room_behind_an_answer_goes() -> None:
    heard, stamp = Heard(), Stamp()
    string = DEFINITION.struct.pack(1, DefinitionKind.STRING, 3) + b"abc"
    torn = DEFINITION.struct.pack(7, DefinitionKind.ANSWER, 500) + b"less"
    assert heard.sort_out([string, record(1, 41, room=99), b"\0" * 5, record(2), torn]) == [string, b"\0" * 5]
    made: list[Frame] = []
    heard.into(made, stamp, 4096)
    assert told(made) == [(1, bytes([1]) * 41), (2, bytes([2]) * 40)]
    heard.into(made, stamp, 4096)
    assert len(made) == 1, "said once"


def test_they_go_with_the_first_frame_and_what_does_not_fit_behind_the_last() -> None:
    heard, stamp = Heard(), Stamp()
    made = [Frame(header=stamp(events=1, undefined=0), occurrences=b"", definitions=b"") for _ in range(2)]
    heard.sort_out([record(number, 1000) for number in range(10)])
    heard.into(made, stamp, 8192)
    assert [number for number, _ in told(made)] == list(range(10))
    assert [frame.header.number for frame in made] == [1, 2, 3, 4, 5]
    assert [bool(frame.answers) for frame in made] == [True, False, True, True, True]
    assert all(len(frame.answers) <= 4096 for frame in made)


def test_the_source_hands_them_on_and_keeps_none(stand_in, tmp_path: Path) -> None:
    stand_in.string(1, "/bin/app")
    stand_in.behaviour(5, executable=1)
    body = record(9)[DEFINITION.size :]
    stand_in.say(DefinitionKind.ANSWER, 7, body)
    stand_in.happen(5)
    source = RingSource(str(stand_in.pins), "n", "r", RingSettings(state_dir=str(tmp_path)))
    try:
        frames = list(source.drain().frames)
        source.release()
        assert told(frames) == [(9, bytes([9]) * 40)]
        assert frames[0].answers
        assert frames[0].occurrences, "with the rows of the same drain"
        stand_in.say(DefinitionKind.ANSWER, 7, body)
        assert told(list(source.drain().frames)) == [(9, bytes([9]) * 40)], "also where there are no rows"
        source.release()
    finally:
        source.close()
    # What the next agent reads back are definitions: an answer is not said again.
    log = DefinitionLog(str(tmp_path / "definitions"), f"{source._boot} {source._pins.load}")
    kinds = [DEFINITION.struct.unpack_from(one)[1] for one in log.read()]
    log.close()
    assert kinds
    assert DefinitionKind.ANSWER not in kinds
