# SPDX-License-Identifier: Apache-2.0
"""Directories that a rename must not take away: those above what rules on paths forbid. Pure.

Rules are about names, so a directory that gets another name takes what lies in it out of them. The `bpf-lsm` backend denies such a
rename by entries of the kind GUARD (programs/lsm_tell.c, `sub_object`). Directories that a wildcard stands for are not known by name:
`unguarded` says of which rules that is left. Neighbours: `bpf_lsm` (who asks), `policy/match/glob.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from enforcers.contract import Entries, Ident
from policy.match import glob
from schemas.enforcement import PathRule, Refusal
from schemas.kernel import RULE, RULE_KEY, RuleAction, RuleKind
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode

_MOVED: Final = Cause(
    RefusalCode.MOVED,
    "a directory that wildcards of the pattern stand for can be renamed, and what lies in it then has a path that the pattern may not "
    "cover; those above the first wildcard cannot",
)


def guards(rules: Iterable[PathRule], ident: Ident) -> Entries:
    """An entry for each directory above what `rules` forbid, as far as it is known by its name."""
    above: set[str] = set()
    for rule in rules:
        if not rule.stops:
            continue
        if rule.match == "pattern":
            parts = glob.directory(glob.parse(rule.value)).split("/")
        elif rule.match in ("path", "directory", "directory_recursive"):
            parts = rule.value.rstrip("/").split("/")
        else:
            continue
        above.update("/".join(parts[:end]) + "/" for end in range(2, len(parts)))
    value = RULE.struct.pack(RuleAction.BLOCK, 0, 0, 0)
    return tuple((RULE_KEY.struct.pack(0, ident(path), 0, Class.FILE, RuleKind.GUARD), value) for path in sorted(above))


def unguarded(rules: Iterable[PathRule], backend: Backend, uid: str) -> tuple[Refusal, ...]:
    """What is left of those of `rules` that are patterns over directories without a name."""
    return tuple(
        Refusal(ref=ref, uid=uid, backend=backend, reason=_MOVED.text, code=_MOVED.code)
        for ref in dict.fromkeys(
            rule.ref
            for rule in rules
            if rule.cls is Class.FILE
            and rule.match == "pattern"
            and rule.stops
            and glob.movable(glob.parse(rule.value))
        )
    )
