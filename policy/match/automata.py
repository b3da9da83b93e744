# SPDX-License-Identifier: Apache-2.0
"""Hot. All patterns of a table as one machine: a lazy DFA over a shared NFA, linear in the length of any path.

The NFA is a trie of pattern pieces (patterns with a common beginning share it). The DFA is built as paths are seen: a state is a
list with the next state per character class. What is not built yet is None, where nothing can match any more is an empty
tuple; indexing one raises TypeError, indexing the other IndexError, so the loop over a path tests nothing.

States are bounded by `MAX_CELLS`. When that is reached all are dropped and built again from the NFA (as RE2 does): a missing
transition costs one NFA step, never more, so hostile patterns cost time linear in path x pattern and no memory.
Never raises on a path. Neighbours: `policy/match/glob.py` (trees), `policy/judge/paths.py`, `policy/judge/sources.py` (users).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

from policy.match import glob

MAX_CELLS: Final = 1 << 19
"""Transitions kept per machine: 4 MiB of pointers."""

_NOTHING: Final[tuple[int, ...]] = ()
_DEAD: Final[tuple[Any, ...]] = ()
State = Any
"""`list[State | None]`, then its NFA nodes, then the accepted patterns; or `_DEAD`."""


class Automaton:
    """Matches paths against `patterns` (parsed globs); a pattern is named by its place in them."""

    def __init__(self, patterns: Sequence[glob.Sequence]) -> None:
        self._bounds = _boundaries(patterns)
        self._classes = len(self._bounds)
        self._ascii = bytes(bisect_right(self._bounds, code) - 1 for code in range(128)) + bytes(128)
        self._nfa = _Nfa(self._bounds)
        for number, pattern in enumerate(patterns):
            self._nfa.add(pattern, number)
        self._states: dict[frozenset[int], State] = {}
        self._cells = 0
        self._start = self._state(self._nfa.closure((0,)))

    @property
    def states(self) -> int:
        """DFA states in memory now; at most `MAX_CELLS` transitions together."""
        return len(self._states)

    def match(self, path: str) -> tuple[int, ...]:
        """The patterns that cover the whole of `path`, in ascending order."""
        symbols: bytes | list[int]
        if path.isascii():
            symbols = path.encode().translate(self._ascii)
        else:
            bounds = self._bounds
            symbols = [bisect_right(bounds, ord(letter)) - 1 for letter in path]
        state = self._start
        try:
            for symbol in symbols:
                state = state[symbol]
            found: tuple[int, ...] = state[-1]
        except IndexError:
            return _NOTHING
        except TypeError:
            return self._build(symbols)
        return found

    def ends(self, prefix: str) -> bool:
        """Whether no path that begins with `prefix` can match any pattern, as far as is known by now: False is no promise."""
        bounds = self._bounds
        state = self._start
        for letter in prefix:
            state = state[bisect_right(bounds, ord(letter)) - 1]
            if state is None:
                return False
            if not state:
                return True
        return False

    def _build(self, symbols: Iterable[int]) -> tuple[int, ...]:
        # The same walk, adding what is missing. A flush on the way leaves `state` outside the table, which harms nothing:
        # it carries its own nodes and is dropped with the loop.
        state = self._start
        for symbol in symbols:
            after = state[symbol]
            if after is None:
                after = state[symbol] = self._state(self._nfa.step(state[-2], symbol))
            state = after
            if not state:
                return _NOTHING
        found: tuple[int, ...] = state[-1]
        return found

    def _state(self, members: frozenset[int]) -> State:
        if not members:
            return _DEAD
        state = self._states.get(members)
        if state is not None:
            return state
        # A node costs about eight pointers in its frozenset.
        self._cells += self._classes + 2 + 8 * len(members)
        if self._cells > MAX_CELLS and self._states:
            self._states.clear()
            self._cells = 0
            # Dropped states stay alive through each other unless the one everybody starts from is dropped too.
            self._start = self._state(self._nfa.closure((0,)))
        state = [None] * self._classes
        state += (members, self._nfa.accepted(members))
        self._states[members] = state
        return state


def _boundaries(patterns: Sequence[glob.Sequence]) -> list[int]:
    # First code point of each class of characters that no pattern tells apart.
    found = {0, glob.SLASH, glob.SLASH + 1}
    stack: list[glob.Node] = [node for pattern in patterns for node in pattern]
    while stack:
        node = stack.pop()
        if isinstance(node, glob.Either):
            stack.extend(inner for option in node.options for inner in option)
            continue
        for low, high in node.ranges:
            found.add(low)
            if high < glob.LAST:
                found.add(high + 1)
    return sorted(found)


class _Nfa:
    """Numbered nodes. A node has edges that take one character, an optional loop, and edges that take nothing."""

    def __init__(self, bounds: list[int]) -> None:
        self._bounds = bounds
        self._known: dict[tuple[tuple[int, int], ...], frozenset[int]] = {}
        self.single: list[dict[int, int]] = []
        self.several: list[list[tuple[frozenset[int], int]]] = []
        self.loop: list[frozenset[int] | None] = []
        self.free: list[list[int]] = []
        self.accept: list[list[int]] = []
        self._edges: list[dict[glob.Node, int]] = []
        self._node()

    def _node(self) -> int:
        self.single.append({})
        self.several.append([])
        self.loop.append(None)
        self.free.append([])
        self.accept.append([])
        self._edges.append({})
        return len(self.loop) - 1

    def _symbols(self, ranges: tuple[tuple[int, int], ...]) -> frozenset[int]:
        known = self._known.get(ranges)
        if known is None:
            members: set[int] = set()
            for low, high in ranges:
                members.update(range(bisect_right(self._bounds, low) - 1, bisect_right(self._bounds, high)))
            known = self._known[ranges] = frozenset(members)
        return known

    def add(self, pattern: glob.Sequence, number: int) -> None:
        self.accept[self._walk(0, pattern)].append(number)

    def _walk(self, node: int, sequence: glob.Sequence) -> int:
        for piece in sequence:
            following = self._edges[node].get(piece)
            if following is None:
                following = self._edges[node][piece] = self._extend(node, piece)
            node = following
        return node

    def _extend(self, node: int, piece: glob.Node) -> int:
        if isinstance(piece, glob.Either):
            # Options branch in a node of their own: a branch of length zero must not share `node`'s edges.
            ends = []
            for option in piece.options:
                fork = self._node()
                self.free[node].append(fork)
                ends.append(self._walk(fork, option))
            join = self._node()
            for end in ends:
                self.free[end].append(join)
            return join
        following = self._node()
        symbols = self._symbols(piece.ranges)
        if isinstance(piece, glob.Many):
            self.loop[following] = symbols
            self.free[node].append(following)
        elif len(symbols) == 1:
            self.single[node][next(iter(symbols))] = following
        else:
            self.several[node].append((symbols, following))
        return following

    def closure(self, nodes: Iterable[int]) -> frozenset[int]:
        found = set(nodes)
        stack = list(found)
        free = self.free
        while stack:
            for following in free[stack.pop()]:
                if following not in found:
                    found.add(following)
                    stack.append(following)
        return frozenset(found)

    def step(self, nodes: frozenset[int], symbol: int) -> frozenset[int]:
        reached: list[int] = []
        single, several, loop = self.single, self.several, self.loop
        for node in nodes:
            following = single[node].get(symbol)
            if following is not None:
                reached.append(following)
            looped = loop[node]
            if looped is not None and symbol in looped:
                reached.append(node)
            if several[node]:
                reached += [target for symbols, target in several[node] if symbol in symbols]
        return self.closure(reached)

    def accepted(self, nodes: frozenset[int]) -> tuple[int, ...]:
        return tuple(sorted({number for node in nodes for number in self.accept[node]}))
