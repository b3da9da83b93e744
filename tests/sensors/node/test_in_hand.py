# SPDX-License-Identifier: Apache-2.0
"""The word that is left of what is handed over: up with each batch in memory, down with each commit, silent for the log."""

from __future__ import annotations

from schemas.frame import Frame, FrameHeader
from sensors.node.in_hand import InHand
from sensors.source import Batch


def batch(*events: int) -> Batch:
    headers = [FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=0, events=one) for one in events]
    return Batch(frames=tuple(Frame(header=header, occurrences=b"", definitions=b"") for header in headers))


def test_it_goes_up_and_down() -> None:
    end, words = [4], []
    word = InHand(lambda: end[0], words.append)
    end[0] = 6
    word.handed(batch(10, 5))
    # Into the log.
    word.handed(batch(100))
    end[0] = 7
    word.handed(batch(1))
    assert words == [15, 16]
    word.settled(5)
    assert words == [15, 16]
    word.settled(6)
    word.settled(7)
    word.settled(7)
    assert words == [15, 16, 1, 0]
    assert word.events == 0
