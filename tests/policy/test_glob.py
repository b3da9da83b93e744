# SPDX-License-Identifier: Apache-2.0
"""Globs: the dialect, its errors, and the automaton against a slow reference on random patterns and paths."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.match import automata, glob
from policy.match.automata import Automaton
from schemas.errors import PolicyError


def matches(pattern: str, path: str) -> bool:
    return Automaton([glob.parse(pattern)]).match(path) == (0,)


@pytest.mark.parametrize(
    ("pattern", "path", "yes"),
    [
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/.hidden", True),
        ("/a/*", "/a/b/c", False),
        ("/a/**", "/a/b/c", True),
        ("/a/**", "/a", False),
        ("/**/x", "/x", True),
        ("/**/x", "/a/b/x", True),
        ("/**/x", "/ax", False),
        ("/**x", "/a/bx", True),
        ("/a?c", "/abc", True),
        ("/a?c", "/a/c", False),
        ("/a?c", "/aéc", True),
        ("/a?c", "/a\udcffc", True),
        ("/[a-c]x", "/bx", True),
        ("/[!a-c]x", "/bx", False),
        ("/[^a-c]x", "/dx", True),
        ("/[!a]x", "//x", False),
        ("/[]x]", "/]", True),
        ("/[a-]", "/-", True),
        ("/[\\]]", "/]", True),
        ("/{a,b}c", "/bc", True),
        ("/{a,b}c", "/abc", False),
        ("/{a,}c", "/c", True),
        ("/{a{b,c},d}", "/ac", True),
        ("/{usr/,}bin/*", "/usr/bin/x", True),
        ("/{usr/,}bin/*", "/bin/x", True),
        ("/\\*", "/*", True),
        ("/\\*", "/a", False),
        ("/a,b", "/a,b", True),
        ("/a", "/ab", False),
        ("/*/kubectl", "/opt/kubectl", True),
        ("/*/kubectl", "/opt/x/kubectl", False),
    ],
)
def test_dialect(pattern: str, path: str, yes: bool) -> None:
    assert matches(pattern, path) is yes


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("", "empty"),
        ("/[a", "closing `]`"),
        ("/{a,b", "closing `}`"),
        ("/a}", "opening `{`"),
        ("/a\\", "after the backslash"),
        ("/[z-a]", "from low to high"),
        ("/[/]", "other than `/`"),
        ("/" + "{" * 60 + "}" * 60, "nested braces"),
    ],
)
def test_errors_say_what_and_where(pattern: str, part: str) -> None:
    with pytest.raises(PolicyError, match=r"expected") as caught:
        glob.parse(pattern)
    assert part in str(caught.value)


def test_specificity_counts_what_every_match_has_fixed() -> None:
    assert glob.literals(glob.parse("/a*b")) == 3
    assert glob.literals(glob.parse("/{abc,d}?")) == 2
    assert glob.literals(glob.parse("/**/x")) == 2
    assert glob.plain(glob.parse("/a/b")) == "/a/b"
    assert glob.plain(glob.parse("/a/?")) is None


ATOMS = [
    "a",
    "b",
    "/",
    "*",
    "**",
    "?",
    "[ab]",
    "[!a]",
    "{a,b}",
    "{a*,/b}",
    "{,x}",
    "é",
    "[a-é]",
    ".",
    "\\*",
    "{a{b,},**}",
]
patterns = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=8).map(lambda parts: "/" + "".join(parts))
paths = st.lists(st.sampled_from("aab/b*é.x\udc80"), max_size=10).map(lambda letters: "/" + "".join(letters))


def reference(sequence: glob.Sequence, path: str) -> bool:
    """Sets of end positions, piece by piece: slow and obvious."""

    def ends(pieces: glob.Sequence, starts: set[int]) -> set[int]:
        for piece in pieces:
            reached: set[int] = set()
            for start in starts:
                if isinstance(piece, glob.Either):
                    for option in piece.options:
                        reached |= ends(option, {start})
                    continue
                fits = [any(low <= ord(letter) <= high for low, high in piece.ranges) for letter in path]
                if isinstance(piece, glob.One):
                    reached |= {start + 1} if start < len(path) and fits[start] else set()
                else:
                    end = start
                    reached.add(end)
                    while end < len(path) and fits[end]:
                        end += 1
                        reached.add(end)
            starts = reached
        return starts

    return len(path) in ends(sequence, {0})


@given(st.lists(patterns, min_size=1, max_size=6), st.lists(paths, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_automaton_agrees_with_the_reference(texts: list[str], seen: list[str]) -> None:
    sequences = [glob.parse(text) for text in texts]
    machine = Automaton(sequences)
    for path in seen * 2:
        wanted = tuple(number for number, sequence in enumerate(sequences) if reference(sequence, path))
        assert machine.match(path) == wanted


@given(st.lists(patterns, min_size=1, max_size=4), st.lists(paths, min_size=4, max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_full_machine_forgets_and_stays_right(texts: list[str], seen: list[str]) -> None:
    sequences = [glob.parse(text) for text in texts]
    small = pytest.MonkeyPatch()
    with small.context() as patch:
        patch.setattr(automata, "MAX_CELLS", 150)
        machine = Automaton(sequences)
        for path in seen * 2:
            wanted = tuple(number for number, sequence in enumerate(sequences) if reference(sequence, path))
            assert machine.match(path) == wanted
            assert machine.states <= 8


@given(st.text(max_size=30))
@settings(max_examples=500, deadline=None)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        sequence = glob.parse(text)
    except PolicyError:
        return
    Automaton([sequence]).match("/" + text)


def test_hostile_patterns_take_linear_time_and_bounded_memory() -> None:
    hostile = "/" + "*a" * 30 + "*{a,aa,aaa,b}" * 10 + "**b"
    machine = Automaton([glob.parse(hostile)])
    took = []
    for length in (2_000, 4_000):
        started = time.thread_time()
        assert machine.match("/" + "a" * length) == ()
        took.append(time.thread_time() - started)
    assert took[1] < 5
    assert machine.states * (machine._classes + 1) <= automata.MAX_CELLS


def test_doubling_patterns_do_not_exhaust_memory() -> None:
    # (a|b)*a(a|b)^n needs 2^n states as a whole DFA.
    machine = Automaton([glob.parse("/**a" + "?" * 16)])
    path = "/" + "".join("ab"[hash((number, 7)) & 1] for number in range(60_000))
    machine.match(path)
    assert machine.states * (machine._classes + 1) <= automata.MAX_CELLS


@pytest.mark.parametrize(
    ("pattern", "above", "movable"),
    [
        ("/srv/app/*.key", "/srv/app/", False),
        ("/srv/app/a.key", "/srv/app/", False),
        ("/srv/app/{a,b}.key", "/srv/app/", False),
        ("/srv/app{/a,/b}/key", "/srv/", True),
        ("/srv/a*", "/srv/", False),
        ("/srv/a*/key", "/srv/", True),
        ("/srv/[ab]/key", "/srv/", True),
        ("/srv/**", "/srv/", False),
        ("/srv/x?**", "/srv/", False),
        ("/srv/**/*", "/srv/", False),
        ("/srv/**/key", "/srv/", True),
        ("/srv/**.key", "/srv/", True),
        ("/srv/*/**", "/srv/", True),
        ("/**/key", "/", False),
        ("/**.key", "/", False),
        ("/**/.ssh/*", "/", True),
        ("/sr\\*v/*", "/sr*v/", False),
        ("**", "", False),
    ],
)
def test_the_directories_above_what_a_pattern_covers(pattern: str, above: str, movable: bool) -> None:
    """Known by name down to the first wildcard; others may be renamed, and then what lies in them may not match any more."""
    parsed = glob.parse(pattern)
    assert (glob.directory(parsed), glob.movable(parsed)) == (above, movable)
