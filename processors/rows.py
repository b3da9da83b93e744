# SPDX-License-Identifier: Apache-2.0
"""Hot: find and cut rows of a frame by id: one pass for all wanted ids together, or a search for the first few of a flood.

Must never walk the frame once per id. Neighbours: `processors.alerts`, `processors.telemetry`, `processors.parking`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import compress

from processors.judge import Tally
from schemas.expand import ROW
from schemas.kernel import RING_HEADER, STRIDE

Row = tuple[int, int, int, int, int, int, int, int, int, int, int, int]
"""Fields of `schemas.expand.ROW`."""


def positions(tally: Tally, wanted: Container[int]) -> list[int]:
    """Row numbers whose id is in `wanted`, in ring order."""
    return list(compress(range(len(tally.ids)), map(wanted.__contains__, tally.ids)))


def cut(tally: Tally, wanted: Container[int]) -> bytes:
    """The rows whose id is in `wanted`, as they lay."""
    data = tally.frame.occurrences
    return b"".join([data[at * STRIDE : at * STRIDE + STRIDE] for at in positions(tally, wanted)])


def row(tally: Tally, position: int) -> Row:
    """One row, unpacked."""
    return ROW.unpack_from(tally.frame.occurrences, position * STRIDE)


def search(tally: Tally, ident: int) -> Iterator[int]:
    """Row numbers of one id, found one after the other: for an id of which there are many and few are needed."""
    data, needle, at = tally.frame.occurrences, ident.to_bytes(8, "little"), 0
    while (at := data.find(needle, at)) >= 0:
        if at % STRIDE == RING_HEADER:
            yield at // STRIDE
            at += STRIDE
        else:
            at += 1
