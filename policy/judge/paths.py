# SPDX-License-Identifier: Apache-2.0
"""Hot. Rules on paths: exact ones by hash, names by hash, patterns by one automaton, directories by a walk over the path.

The cost of a path that nothing matches depends on the path, not on the number of rules. Neighbours: `policy/judge/precedence.py`
(the choice between what is found here), `policy/judge/compile.py` (fills the table).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from policy.judge.precedence import Candidate
from policy.judge.sources import Actors
from policy.match import glob
from policy.match.automata import Automaton
from schemas.rules import Match, Source

KEPT: Final = 1024
"""Directories whose chain of rules is remembered; then all are forgotten."""
KEPT_LENGTH: Final = 256
"""Longer directories are not remembered: together the chains stay below about half a megabyte."""

Entry = tuple[Candidate, Source | None]
NOWHERE: Final[list[Group]] = []
"""What covers a path in a directory that no rule reaches. Never added to."""


class Group:
    """Rules on one path, directory, pattern or name: those of each source, and those for anybody."""

    __slots__ = ("anybody", "sourced")

    def __init__(self, entries: Iterable[Entry], actors: Actors) -> None:
        self.anybody: list[Candidate] = []
        self.sourced: dict[int, list[Candidate]] = {}
        for candidate, source in entries:
            if source is None:
                self.anybody.append(candidate)
            else:
                self.sourced.setdefault(actors.numbers[source], []).append(candidate)


def gather(groups: Iterable[Group], actor: str, actors: Actors, script: str = "") -> list[Candidate]:
    """The rules of `groups` that hold for what `actor` does; `script`: the `#!` file that it runs."""
    found: list[Candidate] = []
    classified: tuple[int, ...] | None = None
    for group in groups:
        if group.sourced:
            if classified is None:
                classified = actors.classify(actor)
                if script:
                    classified = tuple(dict.fromkeys((*classified, *actors.classify(script))))
            for number in classified:
                found += group.sourced.get(number, ())
        found += group.anybody
    return found


class PathTable:
    """All rules of one class on paths."""

    __slots__ = (
        "_automaton", "_chains", "_deep", "_exact", "_flat", "_free", "_longest", "_names", "_objects", "_parents", "_patterns",
    )  # fmt: skip

    def __init__(self, entries: list[Entry], actors: Actors) -> None:
        self._names = _groups(entries, actors, Match.EXECNAME)
        patterns = _groups(entries, actors, Match.PATTERN)
        self._automaton = Automaton([glob.parse(pattern) for pattern in patterns]) if patterns else None
        self._patterns = list(patterns.values())
        directories = [entry for entry in entries if entry[0].rule.match is Match.DIRECTORY]
        self._deep = _groups([entry for entry in directories if entry[0].rule.recursive], actors, Match.DIRECTORY)
        self._flat = _groups([entry for entry in directories if not entry[0].rule.recursive], actors, Match.DIRECTORY)
        # A directory rule covers the directory object too, whose path has no slash at the end.
        self._objects: dict[str, list[Group]] = {}
        for found in (self._deep, self._flat):
            for value, group in found.items():
                self._objects.setdefault(value.rstrip("/"), []).append(group)
        self._longest = max((len(value) for value in (*self._deep, *self._flat)), default=0)
        self._exact = _groups(entries, actors, Match.PATH)
        self._chains: dict[str, list[Group]] = {}
        self._parents = {path[: path.rfind("/") + 1] for path in (*self._exact, *self._objects)}
        self._free: dict[str, bool] = {}

    def lookup(self, path: str) -> list[Group]:
        """The groups that cover `path`, in no particular order."""
        cut = path.rfind("/") + 1
        parent = path[:cut]
        free = self._free.get(parent)
        if free:
            return NOWHERE
        found = []
        group = self._exact.get(path)
        if group is not None:
            found.append(group)
        if self._longest:
            chain = self._chains.get(parent)
            if chain is None:
                chain = self._chain(parent)
            found += chain
            if path in self._objects:
                found += self._objects[path]
        if self._names and (group := self._names.get(path[cut:])) is not None:
            found.append(group)
        if self._automaton is not None:
            for number in self._automaton.match(path):
                found.append(self._patterns[number])
        if free is None and not found and len(parent) <= KEPT_LENGTH:
            if len(self._free) >= KEPT:
                self._free.clear()
            self._free[parent] = self._nothing_in(parent)
        return found

    def free(self, directory: str) -> bool:
        """Whether nothing that lies in this directory, given with its trailing slash, can ever match."""
        return self._nothing_in(directory)

    def _nothing_in(self, parent: str) -> bool:
        # Then its files are not looked up one by one.
        if self._names or parent in self._parents or (self._longest and self._chain(parent)):
            return False
        return self._automaton is None or self._automaton.ends(parent)

    def _chain(self, parent: str) -> list[Group]:
        chain = []
        if parent in self._flat:
            chain.append(self._flat[parent])
        end = parent.find("/") + 1
        while 0 < end <= self._longest:
            group = self._deep.get(parent[:end])
            if group is not None:
                chain.append(group)
            end = parent.find("/", end) + 1
        if len(parent) <= KEPT_LENGTH:
            if len(self._chains) >= KEPT:
                self._chains.clear()
            self._chains[parent] = chain
        return chain


def _groups(entries: list[Entry], actors: Actors, match: Match) -> dict[str, Group]:
    sorted_out: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry[0].rule.match is match:
            sorted_out.setdefault(entry[0].rule.value, []).append(entry)
    return {value: Group(found, actors) for value, found in sorted_out.items()}
