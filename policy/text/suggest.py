# SPDX-License-Identifier: Apache-2.0
"""Did you mean: the nearest word by edit distance, and nothing when no word is near.

A wrong suggestion is worse than none, so the distance allowed grows with the length of the word: one edit for three
letters, a third of the letters at most.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 40
"""Longer words get no suggestion: nothing in the language is that long, and the table below is quadratic."""


def distance(left: str, right: str, limit: int) -> int:
    """Edits (insert, delete, replace, swap neighbours) from `left` to `right`; `limit + 1` when more than `limit`."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, char in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (char != other))
            if i > 1 and j > 1 and char == right[j - 2] and left[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most like `word`, upper and lower case alike; None when none is near. Ties go to the first."""
    if not word or len(word) > LONGEST:
        return None
    folded = word.casefold()
    best, found = (len(word) + 1) // 3 + 1, None
    for candidate in words:
        edits = distance(folded, candidate.casefold(), best - 1)
        if edits < best:
            best, found = edits, candidate
    return found
