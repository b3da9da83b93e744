# SPDX-License-Identifier: Apache-2.0
"""The glob dialect of patterns: text -> syntax tree. `policy/match/automata.py` makes machines of the trees.

====== =========================================================================
text   matches
====== =========================================================================
`*`    any run of characters without `/`, also none
`**`   any run of characters, `/` among them; `/**/` also matches a single `/`
`?`    one character that is not `/`
`[..]` one of the characters; ranges `a-z`; `[!..]` or `[^..]` none of them; never `/`
`{..}` one of the alternatives between commas; they may be empty, nested, and hold globs
`\\x`   the character x itself
====== =========================================================================

A pattern covers the whole path. A character is one UTF-8 character, or one byte that is not valid UTF-8 (in text: a surrogate
escape, as Python's `os.fsdecode` makes them), so paths that are not UTF-8 can be matched too.
Never matches anything itself, never uses regular expressions: their time on hostile input has no bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from schemas.errors import PolicyError

LAST: Final = 0x10FFFF
MAX_DEPTH: Final = 50
"""Nesting of braces. By feel: people write two; the limit keeps the parser off the recursion limit."""


class One(msgspec.Struct, frozen=True):
    """One character out of `ranges`: sorted, disjoint (first, last) pairs of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def literal(self) -> bool:
        """Whether exactly one character fits."""
        return len(self.ranges) == 1 and self.ranges[0][0] == self.ranges[0][1]


class Many(msgspec.Struct, frozen=True):
    """Any run of characters out of `ranges`, also none."""

    ranges: tuple[tuple[int, int], ...]


class Either(msgspec.Struct, frozen=True):
    """One of several sequences."""

    options: tuple[tuple[Node, ...], ...]


Node = One | Many | Either
Sequence = tuple[Node, ...]

SLASH: Final = ord("/")
NOT_SLASH: Final = ((0, SLASH - 1), (SLASH + 1, LAST))
ANYTHING: Final = ((0, LAST),)
SEPARATOR: Final = One(((SLASH, SLASH),))
STAR: Final = Many(NOT_SLASH)
DOUBLE_STAR: Final = Many(ANYTHING)
DIRECTORIES: Final = Either(((SEPARATOR,), (SEPARATOR, DOUBLE_STAR, SEPARATOR)))


@lru_cache(maxsize=4096)
def parse(pattern: str) -> Sequence:
    """The tree of `pattern`. PolicyError says what is wrong and at which character (from 1)."""
    if not pattern:
        raise PolicyError("expected a glob over a path, got empty text")
    sequence, end = _sequence(pattern, 0, 0)
    if end < len(pattern):
        raise _error(pattern, end, "an opening `{` before this `}`; write `\\}` for the character itself")
    return sequence


def literals(sequence: Sequence) -> int:
    """How many characters every match has fixed: the specificity of a pattern (docs/semantics.md)."""
    total = 0
    for node in sequence:
        if isinstance(node, One):
            total += node.literal
        elif isinstance(node, Either):
            total += min(literals(option) for option in node.options)
    return total


def plain(sequence: Sequence) -> str | None:
    """The one text that matches, when there is only one; None for a real pattern."""
    letters = []
    for node in sequence:
        if not isinstance(node, One) or not node.literal:
            return None
        letters.append(chr(node.ranges[0][0]))
    return "".join(letters)


def directory(sequence: Sequence) -> str:
    """The deepest directory, with its slash, that everything that matches lies below: as deep as the pattern is plain text. "" when it does
    not begin with a slash."""
    letters = []
    for node in sequence:
        if node == DIRECTORIES:
            letters.append("/")
        if not isinstance(node, One) or not node.literal:
            break
        letters.append(chr(node.ranges[0][0]))
    text = "".join(letters)
    return text[: text.rfind("/") + 1]


def movable(sequence: Sequence) -> bool:
    """Whether what matches may lie in a directory below `directory` that does not match itself, and by another name of which it would not
    match any more. True also where that is not known."""
    above = directory(sequence)
    start = len(above)  # each letter of it is a node
    if start and sequence[start - 1] == DIRECTORIES:
        start -= 1
    rest = sequence[start:]
    if above == "/" and rest[:1] in ((DIRECTORIES,), (DOUBLE_STAR,)):
        rest = rest[1:]  # anywhere: no other name leads out of it
    if rest[-1:] == (DOUBLE_STAR,):
        rest = rest[:-1]
    elif rest[-2:] == (DIRECTORIES, STAR):
        rest = rest[:-2]  # all that lies below, directories too
    return _crosses(rest)


def _crosses(sequence: Sequence) -> bool:
    """Whether anything in `sequence` may be a slash."""
    return any(
        any(map(_crosses, node.options))
        if isinstance(node, Either)
        else any(low <= SLASH <= high for low, high in node.ranges)
        for node in sequence
    )


def _error(pattern: str, at: int, expected: str) -> PolicyError:
    return PolicyError(f"expected {expected} at character {at + 1} of the pattern `{pattern}`")


def _sequence(pattern: str, at: int, depth: int) -> tuple[Sequence, int]:
    # Ends before `,` or `}` inside braces (depth > 0), before a stray `}` outside, or at the end of the text.
    if depth > MAX_DEPTH:
        raise _error(pattern, at, f"at most {MAX_DEPTH} nested braces")
    nodes: list[Node] = []
    while at < len(pattern):
        letter = pattern[at]
        if letter == "}" or (letter == "," and depth):
            break
        if letter == "*":
            at = _stars(pattern, at, nodes)
        elif letter == "?":
            nodes.append(One(NOT_SLASH))
            at += 1
        elif letter == "[":
            one, at = _class(pattern, at)
            nodes.append(one)
        elif letter == "{":
            either, at = _braces(pattern, at, depth)
            nodes.append(either)
        else:
            if letter == "\\":
                at += 1
                if at == len(pattern):
                    raise _error(pattern, at - 1, "a character after the backslash")
            code = ord(pattern[at])
            nodes.append(One(((code, code),)))
            at += 1
    return tuple(nodes), at


def _stars(pattern: str, at: int, nodes: list[Node]) -> int:
    end = at
    while end < len(pattern) and pattern[end] == "*":
        end += 1
    if end - at == 1:
        nodes.append(STAR)
    elif nodes and nodes[-1] == SEPARATOR and pattern[end : end + 1] == "/":
        nodes[-1] = DIRECTORIES
        return end + 1
    else:
        nodes.append(DOUBLE_STAR)
    return end


def _braces(pattern: str, opened: int, depth: int) -> tuple[Either, int]:
    options: list[Sequence] = []
    at = opened + 1
    while True:
        option, at = _sequence(pattern, at, depth + 1)
        options.append(option)
        if at == len(pattern):
            raise _error(pattern, opened, "a closing `}` for the `{`")
        at += 1
        if pattern[at - 1] == "}":
            return Either(tuple(dict.fromkeys(options))), at


def _class(pattern: str, opened: int) -> tuple[One, int]:
    at = opened + 1
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    first = at
    found: list[tuple[int, int]] = []
    while True:
        if at >= len(pattern):
            raise _error(pattern, opened, "a closing `]` for the `[`")
        # As in every shell, a `]` right at the start stands for itself.
        if pattern[at] == "]" and at > first:
            break
        low, at = _letter(pattern, at, opened)
        high = low
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] not in ("]", ""):
            high, at = _letter(pattern, at + 1, opened)
        if high < low:
            raise _error(pattern, opened, f"a range from low to high, got `{chr(low)}-{chr(high)}`")
        found.append((low, high))
    ranges = _merge(found)
    ranges = _complement((*ranges, (SLASH, SLASH))) if negated else _without_slash(ranges)
    if not ranges:
        raise _error(pattern, opened, "a class with a character other than `/`")
    return One(ranges), at + 1


def _letter(pattern: str, at: int, opened: int) -> tuple[int, int]:
    if pattern[at] == "\\":
        at += 1
        if at == len(pattern):
            raise _error(pattern, opened, "a closing `]` for the `[`")
    return ord(pattern[at]), at + 1


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    holes: list[tuple[int, int]] = []
    start = 0
    for low, high in _merge(list(ranges)):
        if start < low:
            holes.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        holes.append((start, LAST))
    return tuple(holes)


def _without_slash(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    kept: list[tuple[int, int]] = []
    for low, high in ranges:
        if low <= SLASH <= high:
            kept += [pair for pair in ((low, SLASH - 1), (SLASH + 1, high)) if pair[0] <= pair[1]]
        else:
            kept.append((low, high))
    return tuple(kept)
