# SPDX-License-Identifier: Apache-2.0
"""Whether two rules can ever speak about the same thing, and whether a rule covers a path.

Errs on the safe side: `may_overlap` says yes when it does not know. Pure. Users: `policy/kernel_plan.py` (never widen a rule),
`policy/tools/lint_checks.py`, `policy/tools/explain.py`.
"""

from __future__ import annotations

from functools import lru_cache

from policy.judge.compile import table_of
from policy.judge.sockets import words
from policy.match import glob
from policy.match.automata import Automaton
from schemas.rules import Match, Rule


def may_overlap(rule: Rule, other: Rule) -> bool:
    """False only when no behaviour can match both, whoever acts."""
    if table_of(rule) != table_of(other):
        return False
    first, second = sorted((rule, other), key=lambda one: _ORDER.get(one.match, 9))
    if first.match is Match.PATH:
        return covers_path(second, first.value)
    if first.match is Match.DIRECTORY and second.match is Match.DIRECTORY:
        # A directory object is an entry of its parent, so `/a/` and `/a/b/` meet in `/a/b` even when neither is recursive.
        return any(
            _nested(one, two) or covers_path(one, two.value.rstrip("/"))
            for one, two in ((first, second), (second, first))
        )
    if first.match is Match.EXECNAME and second.match is Match.EXECNAME:
        return first.value == second.value
    if first.match is Match.CAPABILITY:
        return first.value == second.value
    if first.match is Match.PROTOCOL:
        return bool(_SOCKETS[first.value] & _SOCKETS[second.value])
    if first.match is Match.DNS:
        return _below(first.value, second.value) or _below(second.value, first.value)
    return True


@lru_cache(maxsize=256)
def _automaton(pattern: str) -> Automaton:
    return Automaton([glob.parse(pattern)])


def covers_path(rule: Rule, path: str) -> bool:
    """Whether a rule on paths covers `path`, whoever acts; False for every other rule."""
    match rule.match:
        case Match.PATH:
            return rule.value == path
        case Match.EXECNAME:
            return path.rpartition("/")[2] == rule.value
        case Match.DIRECTORY:
            if path == rule.value.rstrip("/"):
                return True
            return path.startswith(rule.value) and (rule.recursive or "/" not in path[len(rule.value) :])
        case Match.PATTERN:
            return bool(_automaton(rule.value).match(path))
        case _:
            return False


def _nested(outer: Rule, inner: Rule) -> bool:
    if outer.recursive:
        return inner.value.startswith(outer.value)
    return outer.value == inner.value and not inner.recursive


def _below(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


_ORDER = {Match.PATH: 0, Match.EXECNAME: 1, Match.DIRECTORY: 2, Match.PATTERN: 3}
_FAMILIES = (1, 2, 10, 16, 17, 40)
_SOCKETS: dict[str, frozenset[tuple[int, int, int]]] = {}
# Which sockets a word means, by asking the function that the judge asks: every family, type and protocol that words exist for.
for _socket in ((f, t, p) for f in _FAMILIES for t in (1, 2, 3, 4, 5, 6, 10) for p in (0, 1, 6, 17, 33, 58, 132, 255)):
    for _word in words(*_socket):
        _SOCKETS[_word] = _SOCKETS.get(_word, frozenset()) | {_socket}
