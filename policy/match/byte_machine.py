# SPDX-License-Identifier: Apache-2.0
"""Patterns as one machine over bytes, whole and bounded, for a reader that cannot build states as it goes: the kernel.

The same language as `automata`, which the judge walks by characters; here a character is the bytes of its UTF-8, and a byte that is
none (a surrogate escape) is itself. Pure. Neighbours: `glob` (trees), `enforcers/machines.py` (cells of the kernel's table).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from policy.match import glob

Bytes = tuple[tuple[int, int], ...]
"""A run of bytes: (first, last) of each."""
Thread = tuple[int, Bytes]
"""A node, and what may not follow: the bytes that would make a character of the byte that was taken for none."""
_REST: Final = (0x80, 0xBF)
_LEADS: Final[tuple[tuple[int, int, Bytes], ...]] = (
    (0x80, 0xC1, ()), (0xC2, 0xDF, (_REST,)), (0xE0, 0xE0, ((0xA0, 0xBF), _REST)), (0xE1, 0xEC, (_REST, _REST)),
    (0xED, 0xED, ((0x80, 0x9F), _REST)), (0xEE, 0xEF, (_REST, _REST)), (0xF0, 0xF0, ((0x90, 0xBF), _REST, _REST)),
    (0xF1, 0xF3, (_REST, _REST, _REST)), (0xF4, 0xF4, ((0x80, 0x8F), _REST, _REST)), (0xF5, 0xFF, ()),
)  # fmt: skip
"""What follows the first byte of a character (RFC 3629, section 4)."""
_RAW: Final = (0xDC80, 0xDCFF)


class ByteMachine(msgspec.Struct, frozen=True):
    """`classes`: the class of each of the 256 bytes. `rows`: of each state the number of the set it accepts (0: none), then the next
    state by class; state 0 is dead, state 1 the first. `accepts[n - 1]`: the patterns of set n, by their places, ascending."""

    classes: bytes
    rows: list[list[int]]
    accepts: list[tuple[int, ...]]

    def match(self, path: bytes) -> tuple[int, ...]:
        """The patterns that cover the whole of `path`."""
        state = 1
        for byte in path:
            state = self.rows[state][1 + self.classes[byte]]
        found = self.rows[state][0]
        return self.accepts[found - 1] if found else ()


def compile_bytes(patterns: Sequence[glob.Sequence], most: int) -> ByteMachine | None:
    """The machine of `patterns`; None when it has more than `most` cells (rows times their length)."""
    nfa = _ByteGraph()
    for number, pattern in enumerate(patterns):
        exact = _takes_raw_bytes(pattern)
        at = 0
        for piece in pattern:
            at = nfa.piece(at, piece, exact)
        nfa.accepts.setdefault(at, []).append(number)
    spans = list(pairwise(sorted({0, 256, *nfa.bounds()})))
    width = 1 + len(spans)
    states: dict[frozenset[Thread], int] = {frozenset(): 0}
    sets: dict[tuple[int, ...], int] = {(): 0}
    rows: list[list[int]] = [[0] * width]
    first = nfa.closure({(0, ())})
    states[first] = 1
    order = [frozenset[Thread](), first]
    known: dict[frozenset[Thread], frozenset[Thread]] = {}
    at = 1
    while at < len(order):
        if (at + 1) * width > most:
            return None
        row = [sets.setdefault(nfa.accepted(order[at]), len(sets))]
        for reached in nfa.steps(order[at], spans):
            closed = known.get(reached)
            if closed is None:
                closed = known[reached] = nfa.closure(reached)
            state = states.get(closed)
            if state is None:
                state = states[closed] = len(order)
                order.append(closed)
            row.append(state)
        rows.append(row)
        at += 1
    return _narrowed(rows, spans, [one for one in sets if one])


def _takes_raw_bytes(pattern: glob.Sequence) -> bool:
    """Whether one character of the pattern may be a byte that is no UTF-8: then each run must end where a character ends. Without one a
    run of bytes will do: what follows it begins with a byte that no character has inside."""
    stack = list(pattern)
    while stack:
        node = stack.pop()
        if isinstance(node, glob.Either):
            stack.extend(inner for option in node.options for inner in option)
        elif isinstance(node, glob.Many) and node.ranges in (glob.ANYTHING, glob.NOT_SLASH):
            continue
        elif any(low <= _RAW[1] and high >= _RAW[0] for low, high in node.ranges):
            return True
    return False


def _narrowed(rows: list[list[int]], spans: list[tuple[int, int]], accepts: list[tuple[int, ...]]) -> ByteMachine:
    columns: dict[tuple[int, ...], int] = {}
    classes = bytearray(256)
    kept: list[int] = []
    for place, (low, high) in enumerate(spans):
        column = tuple(row[1 + place] for row in rows)
        if column not in columns:
            columns[column] = len(kept)
            kept.append(1 + place)
        classes[low:high] = bytes([columns[column]]) * (high - low)
    return ByteMachine(bytes(classes), [[row[0], *(row[place] for place in kept)] for row in rows], accepts)


class _ByteGraph:
    """Numbered nodes, their edges by bytes (first, last, node behind it, what may not follow), and those that take nothing. Patterns
    with a common beginning share it."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int, Bytes]]] = []
        self.free: list[list[int]] = []
        self.accepts: dict[int, list[int]] = {}
        self._known: dict[tuple[int, glob.Node, bool], int] = {}
        self._raw = False
        self._node()

    def _node(self) -> int:
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def bounds(self) -> Iterable[int]:
        """Where bytes begin that some edge tells from those before."""
        if self._raw:
            yield from (0x80, 0x90, 0xA0, 0xC0)
        for edges in self.edges:
            for low, high, _, _ in edges:
                yield low
                yield high + 1

    def piece(self, start: int, piece: glob.Node, exact: bool) -> int:
        """The node behind `piece` of `start`. `exact`: runs end where a character ends."""
        known = self._known.get((start, piece, exact))
        if known is not None:
            return known
        end = self._node()
        if isinstance(piece, glob.Either):
            for option in piece.options:
                at = self._node()
                self.free[start].append(at)
                for inner in option:
                    at = self.piece(at, inner, exact)
                self.free[at].append(end)
        elif isinstance(piece, glob.Many):
            self.free[start].append(end)
            if exact or piece.ranges not in (glob.ANYTHING, glob.NOT_SLASH):
                self._characters(end, end, piece.ranges)
            elif piece.ranges == glob.ANYTHING:
                self.edges[end].append((0, 255, end, ()))
            else:
                self.edges[end] += [(0, glob.SLASH - 1, end, ()), (glob.SLASH + 1, 255, end, ())]
        else:
            self._characters(start, end, piece.ranges)
        self._known[start, piece, exact] = end
        return end

    def _characters(self, start: int, end: int, ranges: tuple[tuple[int, int], ...]) -> None:
        # Characters of several bytes share the nodes of their last ones.
        behind: dict[Bytes, int] = {(): end}

        def node(rest: Bytes) -> int:
            if rest not in behind:
                behind[rest] = self._node()
                self.edges[behind[rest]].append((*rest[0], node(rest[1:]), ()))
            return behind[rest]

        for low, high in ranges:
            for run in encoded(low, high):
                self.edges[start].append((*run[0], node(run[1:]), ()))
            for first, last, rest in _LEADS:
                bottom, top = max(low - 0xDC00, first), min(high - 0xDC00, last)
                if bottom <= top:
                    self._raw = True
                    self.edges[start].append((bottom, top, end, rest))

    def steps(self, members: frozenset[Thread], spans: list[tuple[int, int]]) -> Iterable[frozenset[Thread]]:
        """Where `members` get by the bytes of each span, without what takes nothing."""
        reached: list[set[Thread]] = [set() for _ in spans]
        starts = [low for low, _ in spans]
        for node, forbidden in members:
            for low, high, following, rest in self.edges[node]:
                for at in range(bisect_left(starts, low), bisect_right(starts, high)):
                    left = rest
                    if forbidden and forbidden[0][0] <= starts[at] <= forbidden[0][1]:
                        left = forbidden[1:]
                        if not left:
                            continue
                    reached[at].add((following, left))
        return map(frozenset, reached)

    def closure(self, threads: Iterable[Thread]) -> frozenset[Thread]:
        """`threads` and those that are reached without a byte."""
        found = set(threads)
        stack = list(found)
        while stack:
            node, left = stack.pop()
            for following in self.free[node]:
                if (following, left) not in found:
                    found.add((following, left))
                    stack.append((following, left))
        return frozenset(found)

    def accepted(self, threads: frozenset[Thread]) -> tuple[int, ...]:
        """The patterns that end here, ascending."""
        return tuple(sorted({number for node, _ in threads for number in self.accepts.get(node, ())}))


def encoded(low: int, high: int) -> list[Bytes]:
    """The runs of bytes that the characters `low` to `high` are written as; surrogates are written as nothing."""
    found: list[Bytes] = []
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, glob.LAST)):
        bottom, top = max(low, first), min(high, last)
        if bottom <= top:
            found += _split(bottom, top)
    return found


def _split(low: int, high: int) -> list[Bytes]:
    # Ranges whose bytes vary independently: all that differ in their last 6, 12 or 18 bits cover those whole.
    size = len(chr(high).encode())
    for tail in range(1, size):
        mask = (1 << 6 * tail) - 1
        if low | mask != high | mask:
            if low & mask:
                return _split(low, low | mask) + _split((low | mask) + 1, high)
            if high & mask != mask:
                return _split(low, (high & ~mask) - 1) + _split(high & ~mask, high)
    return [tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))]
