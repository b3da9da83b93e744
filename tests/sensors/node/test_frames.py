# SPDX-License-Identifier: Apache-2.0
"""Frames are self-contained and exact, whatever is split, folded or forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import frame as words
from schemas.frame import FOLDED, Frame, FrameHeader
from schemas.kernel import PROCESS, STRIDE, DefinitionKind
from sensors.node.definitions import OVERHEAD, Definitions
from sensors.node.frames import Fold, FrameSettings, columns, frames

Build = Callable[..., bytes]


class Counting:
    """A stamp that numbers and remembers."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, *, events: int, undefined: int) -> FrameHeader:
        self.number += 1
        return FrameHeader(
            node="n", boot="b", run="r", number=self.number - 1, clock_offset_ns=0, events=events, undefined=undefined
        )


def total(made: list[Frame]) -> Counter[int]:
    counted: Counter[int] = Counter()
    for frame in made:
        counted.update(memoryview(frame.occurrences).cast("Q")[1::8].tolist())
        for row in FOLDED.iter_unpack(frame.folded):
            counted[row[0]] += row[1]
    return counted


def check_self_contained(frame: Frame) -> None:
    """Each id used is defined in the frame, or counted as undefined."""
    found = {(kind, ident): body for ident, kind, body in words.definitions(frame.definitions)}
    used, processes = columns(frame.occurrences)
    table = list(FOLDED.iter_unpack(frame.folded))
    used |= {row[0] for row in table}
    processes |= {row[5] for row in table}
    missing = {(DefinitionKind.BEHAVIOUR, ident) for ident in used if ident} - found.keys()
    missing |= {(DefinitionKind.PROCESS, ident) for ident in processes if ident} - found.keys()
    strings = set()
    for (kind, _), body in found.items():
        if kind != DefinitionKind.STRING:
            strings |= {int.from_bytes(body[at : at + 8], "little") for at in (8, 16, 24, 32)}
    missing |= {(DefinitionKind.STRING, ident) for ident in strings - {0}} - found.keys()
    assert frame.header.undefined == len(missing)
    assert len(found) == len(words.definitions(frame.definitions)), "a definition was sent twice"


rows_of = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=120)
known = st.tuples(st.sets(st.integers(1, 12)), st.sets(st.integers(1, 5)), st.sets(st.integers(1, 30)))


def memory(have: Any, build_behaviour: Any, **options: Any) -> Definitions:
    behaviours, processes, strings = have
    definitions = Definitions(1 << 20, **options)
    for ident in behaviours:
        definitions.define(DefinitionKind.BEHAVIOUR, ident, build_behaviour(1, ident, ident + 15))
    for ident in processes:
        definitions.define(DefinitionKind.PROCESS, ident, build_behaviour(ident, ident + 2, 0) + bytes(8))
    for ident in strings:
        definitions.define(DefinitionKind.STRING, ident, b"/" + b"x" * ident)
    return definitions


@given(rows=rows_of, have=known, limit=st.sampled_from([300, 2000, 1 << 20]))
@settings(deadline=None)
def test_split_frames_are_self_contained_and_complete(rows: Any, have: Any, limit: int) -> None:
    build_behaviour, build_row = _builders()
    definitions = memory(have, build_behaviour)
    data = b"".join(build_row(ident, n, process) for n, (ident, process) in enumerate(rows))
    made = frames(data, definitions.closure(*columns(data)), definitions, Counting(), limit)
    assert b"".join(frame.occurrences for frame in made) == data
    assert [frame.header.number for frame in made] == list(range(len(made)))
    for frame in made:
        check_self_contained(frame)
        assert words.decode(words.encode(frame)) == frame
        size = len(frame.occurrences) + len(frame.definitions)
        assert size <= limit or len(frame.occurrences) == STRIDE


@given(
    rows=rows_of,
    have=known,
    cuts=st.integers(1, 4),
    limit=st.sampled_from([300, 1 << 20]),
    fold_from=st.integers(2, 9),
    keep=st.integers(1, 5),
    few=st.sampled_from([0, 3, 32]),
)
@settings(deadline=None)
def test_folding_counts_exactly(
    rows: Any, have: Any, cuts: int, limit: int, fold_from: int, keep: int, few: int
) -> None:  # fmt: skip
    build_behaviour, build_row = _builders()
    definitions = memory(have, build_behaviour)
    fold = Fold(FrameSettings(fold_from=fold_from, keep=keep), few)
    table = [build_row(ident, n, process) for n, (ident, process) in enumerate(rows)]
    step = max(1, len(table) // cuts)
    for start in range(0, len(table), step):
        fold.add(b"".join(table[start : start + step]))
    kept, folded = fold.rows, fold.folded
    count = len(kept) // STRIDE
    closure = definitions.closure(fold.behaviours, fold.processes | columns(kept)[1])
    made = frames(kept, closure, definitions, Counting(), limit, folded, fold.events - count)
    assert total(made) == Counter(ident for ident, _ in rows)
    assert sum(frame.header.events for frame in made) == len(rows)
    for frame in made:
        check_self_contained(frame)
    for ident, number, first, last, sequence, process in FOLDED.iter_unpack(folded):
        mine = [n for n, row in enumerate(rows) if row[0] == ident]
        left = [n for n in mine if table[n] not in {kept[i : i + STRIDE] for i in range(0, len(kept), STRIDE)}]
        assert (number, first, last) == (len(left), 1_000_000 + left[0], 1_000_000 + left[-1])
        assert (sequence, process) == (left[0], rows[left[0]][1])


@given(uses=st.lists(st.integers(1, 40), min_size=50, max_size=400))
@settings(deadline=None)
def test_a_small_memory_forgets_only_what_the_kernel_will_announce_again(uses: list[int]) -> None:
    build_behaviour, _ = _builders()
    announced: set[int] = set()

    def forget(kind: DefinitionKind, idents: list[int]) -> None:
        announced.difference_update(idents)

    definitions = Definitions(12_000, forget)
    for ident in uses:
        if ident not in announced:
            announced.add(ident)
            definitions.define(DefinitionKind.BEHAVIOUR, ident, build_behaviour(1, 0, 0))
        # A row that was in the ring when the kernel was told to forget still finds its definition.
        assert definitions.closure({ident}, set()).missing.total == 0
        definitions.settle()
    assert len(definitions) <= 40


def test_memory_stays_under_its_cap() -> None:
    build_behaviour, _ = _builders()
    definitions = Definitions(300_000)
    for ident in range(1, 20_000):
        definitions.define(DefinitionKind.BEHAVIOUR, ident, build_behaviour(1, 0, 0))
        definitions.settle()
    assert len(definitions) * (112 + 16 + 200) < 400_000
    assert definitions.rotations > 10
    held = sum(len(record) + OVERHEAD for record in definitions.records())
    assert held <= definitions.held_bytes <= 2 * held


def _image(process: int, executable: int, arguments: int) -> bytes:
    return PROCESS.struct.pack(process, executable, 0, arguments, 0, 0, 0, 1, 0, 1, 0, 0, 0, b"")


def test_what_still_runs_is_known_however_long_it_was_silent() -> None:
    build_behaviour, _ = _builders()
    kept = {(DefinitionKind.STRING, ident) for ident in (5, 6, 8)}
    announced = set(kept)
    # Its parent is not that of its record: it called exec twice, and who forked it has ended.
    running = {(1001, 5, 8)}
    definitions = Definitions(
        30_000,
        lambda kind, idents: announced.difference_update((kind, ident) for ident in idents),
        living=lambda: running,
    )
    for string in (5, 6, 7, 8):
        definitions.define(DefinitionKind.STRING, string, b"/a/path/of/some/length")
    definitions.define(DefinitionKind.PROCESS, 1001, _image(1001, 5, 6))
    definitions.define(DefinitionKind.PROCESS, 1002, _image(1002, 5, 7))
    for ident in range(1, 2000):
        definitions.define(DefinitionKind.BEHAVIOUR, ident, build_behaviour(1, 0, 0))
        definitions.settle()
    assert definitions.rotations > 10
    assert definitions.closure(set(), {1001}).missing.total == 0
    # Its strings are held, so the kernel was not told to say them again; those of one that has ended are gone.
    assert announced == kept
    definitions.define(DefinitionKind.BEHAVIOUR, 9000, build_behaviour(1, 5, 8))
    assert definitions.closure({9000}, {1001}).missing.total == 0
    assert definitions.closure(set(), {1002}).missing.processes == (1002,)
    running.clear()
    for ident in range(2000, 4000):
        definitions.define(DefinitionKind.BEHAVIOUR, ident, build_behaviour(1, 0, 0))
        definitions.settle()
    assert definitions.closure(set(), {1001}).missing.processes == (1001,)


def test_very_many_processes_leave_room_for_what_they_do() -> None:
    build_behaviour, _ = _builders()
    running: list[tuple[int, int, int]] = []
    definitions = Definitions(60_000, living=lambda: running)
    for process in range(1, 3000):
        running.append((process, 0, 0))
        definitions.define(DefinitionKind.PROCESS, process, _image(process, 0, 0))
        definitions.define(DefinitionKind.BEHAVIOUR, process, build_behaviour(1, 0, 0))
        assert definitions.closure({process}, {process}).missing.total == 0
        definitions.settle()
    assert len(definitions) < 400
    assert definitions.rotations < 200


def _builders() -> tuple[Any, Build]:
    # Hypothesis calls a body many times per fixture, so these are plain functions here.
    import struct

    from schemas.kernel import BEHAVIOUR, OCCURRENCE

    def behaviour(cgroup: int, executable: int, resource: int) -> bytes:
        return struct.pack("=5Q", cgroup, executable, 0, resource, 0) + bytes(BEHAVIOUR.size - 40)

    def row(ident: int, sequence: int, process: int = 0) -> bytes:
        body = OCCURRENCE.struct.pack(ident, 1_000_000 + sequence, sequence, process, 1, 0, 1, 0, 0, 0)
        return struct.pack("=II", OCCURRENCE.size, 0) + body

    return behaviour, row
