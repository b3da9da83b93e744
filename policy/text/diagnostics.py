# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a policy, where, and what to write instead: the record, its collector, and its two renderings.

A diagnostic never raises and never stops the others: the reader gets all of them at once. Neighbours: `codes` (what can
be said), `policy.parse` (which asks for it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from policy.text.codes import Code, Level

LIMIT = 500
"""Diagnostics kept per file: enough for any person, small enough for a file made of errors."""

LONGEST = 500
"""Characters of a message."""

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What libyaml counts as the end of a line."""


class Diagnostic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finding. Lines and columns count from 1, columns in characters; `width` is what the carets underline."""

    code: str
    level: Level
    message: str
    file: str = ""
    line: int = 1
    column: int = 1
    width: int = 1
    path: str = ""
    """Path in the document, `spec.process.matchPaths[2].path`."""
    expected: str = ""
    suggestion: str = ""
    """What to write instead, ready to be read after `help:`."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line, in the form compilers use, so that editors can jump to it."""
        tail = f"; expected {self.expected}" if self.expected else ""
        tail += f"; {self.suggestion}" if self.suggestion else ""
        return f"{self.file}:{self.line}:{self.column}: {self.level}[{self.code}]: {self.message}{tail}"


class Report:
    """Collects the diagnostics of one file. `strict` turns warnings into errors as they come."""

    def __init__(self, origin: str, strict: bool = False) -> None:
        self.origin = origin
        self.strict = strict
        self.found: list[Diagnostic] = []
        self.errors = 0

    @property
    def full(self) -> bool:
        """Whether there are more errors than anybody reads: what is still to be checked may be left."""
        return self.errors >= LIMIT

    def add(
        self,
        code: Code,
        message: str,
        *,
        line: int,
        column: int,
        width: int = 1,
        path: str = "",
        expected: str = "",
        suggestion: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        """Keep one finding; beyond `LIMIT` errors are counted, not kept."""
        level = Level.ERROR if self.strict and code.level is Level.WARNING else code.level
        self.errors += level is Level.ERROR
        if len(self.found) >= LIMIT:
            return
        self.found.append(
            Diagnostic(
                code=code.code,
                level=level,
                message=_one_line(message),
                file=self.origin,
                line=line,
                column=column,
                width=max(1, width),
                path=_one_line(path),
                expected=_one_line(expected),
                suggestion=_one_line(suggestion),
                notes=tuple(_one_line(note) for note in notes),
            )
        )

    def sorted(self) -> tuple[Diagnostic, ...]:
        """In the order of the file; each finding once."""
        return tuple(dict.fromkeys(sorted(self.found, key=lambda found: (found.line, found.column, found.code))))


def _one_line(text: str) -> str:
    """Text of a policy inside of a message: cut when long, control characters written as escapes."""
    if len(text) > LONGEST:
        text = text[: LONGEST - 3] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _width(text: str) -> int:
    return sum(2 if "\u1100" <= char <= "\uffdc" else 1 for char in text)


@lru_cache(maxsize=2)
def _lines(text: str) -> list[str]:
    # A file of 4 MiB with five hundred findings is split once.
    return LINE_BREAK.split(text)


def render(diagnostic: Diagnostic, text: str) -> str:
    """The finding with its line of `text` and carets under what it is about; several lines, no colour."""
    lines = _lines(text)
    head = f"{diagnostic.level}[{diagnostic.code}]: {diagnostic.message}"
    margin = " " * len(str(diagnostic.line))
    out = [head, f"{margin}--> {diagnostic.file}:{diagnostic.line}:{diagnostic.column}"]
    if 0 < diagnostic.line <= len(lines):
        line = lines[diagnostic.line - 1]
        shown, start = line, diagnostic.column - 1
        if len(line) > 160:
            # A JSON document is one line of any length: show what surrounds the place.
            cut = max(0, start - 60)
            shown, start = line[cut : cut + 160], start - cut
        shown = _printable(shown)
        carets = max(1, min(diagnostic.width, len(shown) - start))
        out += [
            f"{margin} |",
            f"{diagnostic.line} | {shown}".rstrip(),
            f"{margin} | {' ' * _width(shown[:start])}{'^' * max(1, _width(shown[start : start + carets]))}",
        ]
    if diagnostic.expected:
        out.append(f"{margin} = expected: {diagnostic.expected}")
    if diagnostic.suggestion:
        out.append(f"{margin} = help: {diagnostic.suggestion}")
    out += [f"{margin} = note: {note}" for note in diagnostic.notes]
    return "\n".join(out)


def to_json(diagnostics: Iterable[Diagnostic]) -> bytes:
    """A JSON array of objects with the field names of `Diagnostic`; fields that are empty are left out."""
    return msgspec.json.encode(list(diagnostics))
