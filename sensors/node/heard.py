# SPDX-License-Identifier: Apache-2.0
"""What name servers answered, taken out of the ring of definitions and put into frames: it is no definition, and is said once.

It goes with the first frame of a drain, before the rows that use its addresses; what does not fit, and what comes when there are no rows, has
frames of its own. Must never read a message. Neighbours: `definitions` (the ring's other records), `rings`, `schemas.dns_answer`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.frame import Frame
from schemas.kernel import DEFINITION, DefinitionKind
from sensors.node.frames import Stamp

_HEAD: Final = DEFINITION.struct.unpack_from
_ANSWER: Final = int(DefinitionKind.ANSWER)


class Heard:
    """`sort_out` records, then have the answers among them put `into` frames."""

    def __init__(self) -> None:
        self._runs: list[bytes] = []

    def sort_out(self, records: list[bytes]) -> list[bytes]:
        """The records that are not answers."""
        others = [record for record in records if len(record) < DEFINITION.size or _HEAD(record)[1] != _ANSWER]
        if len(others) != len(records):
            self._runs += [run for record in records if (run := _answer(record))]
        return others

    def into(self, made: list[Frame], stamp: Stamp, limit: int) -> None:
        """Put what was sorted out into the first of `made`; the rest into frames behind it, each of about `limit` bytes."""
        runs, self._runs = self._runs, []
        for number, run in enumerate(_pieces(runs, limit // 2)):
            if number >= min(1, len(made)):
                made.append(Frame(header=stamp(events=0, undefined=0), occurrences=b"", definitions=b"", answers=run))
            else:
                made[0] = msgspec.structs.replace(made[0], answers=run)


def _answer(record: bytes) -> bytes:
    """The record as frames have it; b"" when it is another, or shorter than it says."""
    if len(record) < DEFINITION.size:
        return b""
    _, kind, size = _HEAD(record)
    end = DEFINITION.size + size
    if kind != _ANSWER or len(record) < end:
        return b""
    # The kernel reserves room for the longest of a class: what lies behind the message is another's.
    return record[:end] + bytes(-size % 8)


def _pieces(runs: list[bytes], limit: int) -> list[bytes]:
    pieces: list[list[bytes]] = []
    size = 0
    for run in runs:
        if not pieces or size + len(run) > limit:
            pieces.append([])
            size = 0
        pieces[-1].append(run)
        size += len(run)
    return [b"".join(piece) for piece in pieces]
