# SPDX-License-Identifier: Apache-2.0
"""Hot. Which `fromSource` entries cover an executable: exact paths by hash, directories by walk, globs by one automaton.

All entries of a judge are classified together, so the cost does not grow with the number of rules. Executables repeat more than
anything else, so answers are kept (bounded). Never raises on a path.
"""

from __future__ import annotations

from typing import Final

from policy.match import glob
from policy.match.automata import Automaton
from schemas.rules import Source, SourceKind

KEPT: Final = 2048
"""Answers kept; then all are forgotten. By feel: a node runs some hundred different executables."""
KEPT_LENGTH: Final = 512
"""Longer paths are not kept, so that the answers stay below about a megabyte."""


class Actors:
    """`numbers[source]` is the name of an entry in the answers of `classify`."""

    def __init__(self, sources: list[Source]) -> None:
        self.numbers: dict[Source, int] = {}
        self._exact: dict[str, list[int]] = {}
        self._deep: dict[str, list[int]] = {}
        self._flat: dict[str, list[int]] = {}
        globs: list[glob.Sequence] = []
        self._globs: list[int] = []
        for source in sources:
            if source in self.numbers:
                continue
            number = self.numbers[source] = len(self.numbers)
            if source.kind is SourceKind.PATH:
                self._exact.setdefault(source.value, []).append(number)
            elif source.kind is SourceKind.PATTERN:
                globs.append(glob.parse(source.value))
                self._globs.append(number)
            else:
                (self._deep if source.recursive else self._flat).setdefault(source.value, []).append(number)
        self._automaton = Automaton(globs) if globs else None
        self._longest = max((len(value) for value in (*self._deep, *self._flat)), default=0)
        self._kept: dict[str, tuple[int, ...]] = {}

    def classify(self, path: str) -> tuple[int, ...]:
        """Names of the entries that cover `path`; empty when nobody is known to have acted."""
        known = self._kept.get(path)
        if known is None:
            known = tuple(self._find(path)) if path else ()
            if len(path) <= KEPT_LENGTH:
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                self._kept[path] = known
        return known

    def _find(self, path: str) -> list[int]:
        found = list(self._exact.get(path, ()))
        if self._automaton is not None:
            found += [self._globs[number] for number in self._automaton.match(path)]
        if self._longest:
            parent = path.rfind("/") + 1
            found += self._flat.get(path[:parent], ())
            end = path.find("/") + 1
            while 0 < end <= self._longest:
                found += self._deep.get(path[:end], ())
                end = path.find("/", end) + 1
        return found
