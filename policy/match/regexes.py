# SPDX-License-Identifier: Apache-2.0
"""Regular expressions from policies, in time linear in the text: a Thompson automaton, no backtracking.

A policy author chooses the expression and a container's owner chooses the name it is matched against, so Python's `re`,
which can take exponential time on `(a+)+$`, is not asked. Syntax: that of POSIX extended expressions as Go takes them:
literals, `.`, `[...]` with ranges, negation and `[:alpha:]` classes, `( )`, `|`, `* + ? {m,n}`, `^ $`, and the escapes
`\\d \\w \\s \\D \\W \\S`. No back references, no look-around. A match anywhere in the text counts, as in Go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

STATES: Final = 4000
"""Size of an automaton: `(a{1000}){1000}` is refused, every expression a person writes is far below."""
DEPTH: Final = 50
"""Nested groups."""
LENGTH: Final = 1000
"""Characters of an expression."""
REPEATS: Final = 1000
"""Largest count in braces, as in Go."""

Test = Callable[[str], bool]


class BadExpression(ValueError):
    """The text is not an expression of this dialect; the message says why and where."""


_CLASSES: Final[dict[str, Test]] = {
    "alpha": str.isalpha, "digit": lambda c: "0" <= c <= "9", "alnum": str.isalnum, "upper": str.isupper,
    "lower": str.islower, "space": str.isspace, "blank": lambda c: c in " \t", "punct": lambda c: c.isprintable() and not c.isalnum() and c != " ",
    "xdigit": lambda c: c in "0123456789abcdefABCDEF", "print": str.isprintable, "graph": lambda c: c.isprintable() and c != " ",
    "cntrl": lambda c: c < " " or c == "\x7f",
}  # fmt: skip
_ESCAPES: Final[dict[str, Test]] = {
    "d": lambda c: "0" <= c <= "9",
    "w": lambda c: c == "_" or (c.isascii() and c.isalnum()),
    "s": lambda c: c in " \t\n\r\f\v",
}

# An instruction is (test, next) for a character, or (None, targets) for a split; assertions are (BEGIN|END, next).
_BEGIN, _END, _SPLIT = "begin", "end", "split"


class _Program:
    def __init__(self) -> None:
        self.code: list[tuple[object, list[int]]] = []

    def emit(self, what: object, targets: list[int]) -> int:
        if len(self.code) >= STATES:
            raise BadExpression(f"needs more than {STATES} states")
        self.code.append((what, targets))
        return len(self.code) - 1


Tree = tuple[object, ...]


class _Parser:
    """Recursive descent to a tree of tuples; repeats are kept as counts and unrolled by `_build`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def fail(self, why: str) -> BadExpression:
        return BadExpression(f"{why} at character {self.at + 1} of `{self.text}`")

    def either(self) -> Tree:
        self.depth += 1
        if self.depth > DEPTH:
            raise self.fail("too many nested groups")
        branches = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.sequence())
        self.depth -= 1
        return ("either", branches)

    def sequence(self) -> Tree:
        parts: list[Tree] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeat(self.atom()))
        return ("sequence", parts)

    def repeat(self, tree: Tree) -> Tree:
        while True:
            char = self.peek()
            bounds = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}.get(char)
            if bounds is None and char == "{":
                bounds = self.counts()
            elif bounds is not None:
                self.at += 1
            if bounds is None:
                return tree
            tree = ("repeat", tree, *bounds)

    def counts(self) -> tuple[int, int] | None:
        """`{m}`, `{m,}`, `{m,n}`; anything else after a brace is the brace itself."""
        end = self.text.find("}", self.at)
        body = self.text[self.at + 1 : end] if end > 0 else ""
        low, comma, high = body.partition(",")
        if (
            not (low.isdecimal() and low.isascii() and (not high or (high.isdecimal() and high.isascii())))
            or len(body) > 9
        ):
            return None
        self.at = end + 1
        least = int(low)
        most = -1 if comma and not high else int(high or low)
        if max(least, most) > REPEATS:
            raise self.fail(f"a repeat of more than {REPEATS}")
        if most != -1 and most < least:
            raise self.fail("a repeat whose end is below its start")
        return least, most

    def atom(self) -> Tree:
        char = self.peek()
        self.at += 1
        match char:
            case "(":
                if self.text[self.at : self.at + 2] == "?:":
                    self.at += 2
                elif self.peek() == "?":
                    raise self.fail("a group that starts with `?`")
                tree = self.either()
                if self.peek() != ")":
                    raise self.fail("a missing `)`")
                self.at += 1
                return tree
            case "[":
                return ("char", self.bracket())
            case ".":
                return ("char", lambda c: c != "\n")
            case "^":
                return (_BEGIN,)
            case "$":
                return (_END,)
            case "*" | "+" | "?":
                raise self.fail(f"`{char}` repeats nothing")
            case "\\":
                return ("char", self.escape())
        return ("char", char.__eq__)

    def escape(self) -> Test:
        char = self.peek()
        self.at += 1
        if not char:
            raise self.fail("an escape of nothing")
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.lower() in _ESCAPES:
            inner = _ESCAPES[char.lower()]
            return lambda c: not inner(c)
        if char.isalnum():
            raise self.fail(f"an unknown escape `\\{char}`")
        return char.__eq__

    def bracket(self) -> Test:
        negated = self.peek() == "^"
        self.at += negated
        tests: list[Test] = []
        first = True
        while first or self.peek() != "]":
            first = False
            char = self.peek()
            if not char:
                raise self.fail("a missing `]`")
            if self.text.startswith("[:", self.at):
                end = self.text.find(":]", self.at)
                name = self.text[self.at + 2 : end] if end > 0 else ""
                if name not in _CLASSES:
                    raise self.fail("an unknown character class")
                tests.append(_CLASSES[name])
                self.at = end + 2
                continue
            self.at += 1
            if char == "\\":
                tests.append(self.escape())
                continue
            last = char
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                last = self.text[self.at + 1]
                self.at += 2
                if last < char:
                    raise self.fail("a range whose end is before its start")
            tests.append(lambda c, low=char, high=last: low <= c <= high)  # type: ignore[misc]
        self.at += 1
        return (lambda c: not any(test(c) for test in tests)) if negated else (lambda c: any(test(c) for test in tests))


def _build(program: _Program, tree: Tree, after: int) -> int:
    """Emit `tree` so that it goes on at `after`; returns where it starts."""
    kind = tree[0]
    if kind == "char":
        return program.emit(tree[1], [after])
    if kind in (_BEGIN, _END):
        return program.emit(kind, [after])
    if kind == "sequence":
        for part in reversed(tree[1]):  # type: ignore[call-overload]
            after = _build(program, part, after)
        return after
    if kind == "either":
        starts = [_build(program, branch, after) for branch in tree[1]]  # type: ignore[attr-defined]
        return starts[0] if len(starts) == 1 else program.emit(_SPLIT, starts)
    _, inner, least, most = tree
    assert isinstance(inner, tuple)
    assert isinstance(least, int)
    assert isinstance(most, int)
    start = after
    if most == -1:
        loop = program.emit(_SPLIT, [after])
        program.code[loop][1].insert(0, _build(program, inner, loop))
        start = loop
    else:
        for _ in range(most - least):
            start = program.emit(_SPLIT, [_build(program, inner, start), after])
    for _ in range(least):
        before, start = start, _build(program, inner, start)
        if start == before:
            break
    return start


class Regex:
    """A compiled expression."""

    def __init__(self, text: str) -> None:
        if len(text) > LENGTH:
            raise BadExpression(f"expected at most {LENGTH} characters, got {len(text)}")
        parser = _Parser(text)
        tree = parser.either()
        if parser.at < len(text):
            raise parser.fail("an unexpected `)`")
        program = _Program()
        self._accept = program.emit("accept", [])
        try:
            self._start = _build(program, tree, self._accept)
        except RecursionError as error:
            raise BadExpression(f"`{text[:40]}` is nested too deeply") from error
        self._code = program.code

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in `text`; at most states x characters steps."""
        current: set[int] = set()
        for at in range(len(text) + 1):
            self._follow(current, [self._start], at == 0, at == len(text))
            if self._accept in current:
                return True
            if at == len(text):
                break
            char = text[at]
            reached: list[int] = []
            for state in current:
                what, targets = self._code[state]
                if not isinstance(what, str) and what(char):  # type: ignore[operator]
                    reached += targets
            current = set()
            self._follow(current, reached, False, at + 1 == len(text))
        return False

    def _follow(self, states: set[int], todo: list[int], begin: bool, end: bool) -> None:
        todo = list(todo)
        while todo:
            state = todo.pop()
            if state in states:
                continue
            states.add(state)
            what, targets = self._code[state]
            if what == _SPLIT or (what == _BEGIN and begin) or (what == _END and end):
                todo += targets


def glob(text: str) -> Regex:
    """`*` is any text, everything else is itself; the whole text must match."""
    escaped = "".join(".*" if char == "*" else char if char.isalnum() or char in "-_" else f"\\{char}" for char in text)
    return Regex(f"^{escaped}$")
