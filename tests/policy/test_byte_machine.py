# SPDX-License-Identifier: Apache-2.0
"""The machine over bytes and the judge's over characters match the same paths."""

from __future__ import annotations

import random

import pytest

from policy.match import glob
from policy.match.automata import Automaton
from policy.match.byte_machine import compile_bytes, encoded

PIECES = (
    "*", "**", "?", "/", "/**/", "a", "b", "[a-c]", "[!a]", "[^/x]", "{a,b}", "{,a/}", "ä", "[ä-ю]", "😀", "[!😀]", "\\*", "\udcff", ".", "etc",
)  # fmt: skip
LETTERS = (
    "\udcc3",
    "\udca4",
    "\udcf0",
    "\udc9f",
    "a",
    "b",
    "c",
    "x",
    "/",
    "ä",
    "я",
    "😀",
    "*",
    ".",
    "etc",
    "\udcff",
    "\udc80",
    "\x01",
)


@pytest.mark.parametrize("seed", range(60))
def test_it_matches_what_the_judge_matches(seed: int) -> None:
    chance = random.Random(seed)
    patterns = [
        glob.parse("/" + "".join(chance.choices(PIECES, k=chance.randint(1, 6)))) for _ in range(chance.randint(1, 8))
    ]
    judge, machine = Automaton(patterns), compile_bytes(patterns, 1 << 20)
    assert machine is not None
    for _ in range(300):
        path = "/" + "".join(chance.choices(LETTERS, k=chance.randint(0, 8)))
        raw = path.encode("utf-8", "surrogateescape")
        # Bytes that stand beside each other may be UTF-8 after all; then the path is another one.
        path = raw.decode("utf-8", "surrogateescape")
        assert machine.match(raw) == judge.match(path), (patterns, path)


def test_a_machine_that_would_grow_too_large_is_none() -> None:
    patterns = [glob.parse("/**x" + "?" * number) for number in (2, 14)]
    assert compile_bytes(patterns, 4096) is None
    assert compile_bytes(patterns[:1], 4096) is not None


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0x10FFFF), (0x41, 0x5A), (0x7F, 0x800), (0xD000, 0xE000), (0xFFFF, 0x10000)]
)
def test_a_range_is_written_as_its_characters_are(low: int, high: int) -> None:
    runs = encoded(low, high)
    for code in {low, high, (low + high) // 2, low + 1, high - 1, 0xD7FF, 0xE000}:
        try:
            raw = chr(code).encode("utf-8", "strict")
        except UnicodeEncodeError:
            continue
        fits = any(
            len(run) == len(raw) and all(a <= byte <= b for byte, (a, b) in zip(raw, run, strict=True)) for run in runs
        )
        assert fits == (low <= code <= high), hex(code)
