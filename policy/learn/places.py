# SPDX-License-Identifier: Apache-2.0
"""Paths that were seen -> the place that stands for each, for people: what `paths` would make rules of. Pure, the same in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policy.learn.evidence import Evidence
from policy.learn.paths import generalise
from policy.match import glob
from policy.match.automata import Automaton


def places(seen: Mapping[str, Evidence]) -> Callable[[str], str]:
    """A function from a path of `seen` to its place: itself, the directory that it lies in, a glob. What is no absolute path is itself."""
    made = generalise(
        {path: evidence for path, evidence in seen.items() if path.startswith("/") and "\0" not in path}, reading=True
    )
    exact = {rule.value for rule in made if rule.kind == "path"}
    directories = {(rule.value, rule.recursive) for rule in made if rule.kind == "dir"}
    patterns = sorted({rule.value for rule in made if rule.kind == "pattern"}, key=lambda text: (-len(text), text))
    automaton = Automaton([glob.parse(text) for text in patterns]) if patterns else None

    def place(path: str) -> str:
        parent = path[: path.rfind("/") + 1]
        if (parent, False) in directories:
            return parent
        end = path.find("/") + 1
        while end > 0:
            if (path[:end], True) in directories:
                return path[:end]
            end = path.find("/", end) + 1
        if path in exact or automaton is None:
            return path
        found = automaton.match(path)
        return patterns[found[0]] if found else path

    return place
