# SPDX-License-Identifier: Apache-2.0
"""What no sensor of this version reports: rules about it are taken, and neither tell nor hold anything.

Said by `check` (P607), `lint` (L113), `apply`, `explain` and the receipts, each with these words, so that a rule without effect is
never taken for one that is in force. Pure. What is watched: `schemas/watched.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from schemas.operations import Class
from schemas.rules import Match, Rule
from schemas.syscalls import ALIASES
from schemas.watched import CALLS, REPORTED

WATCHED: Final = tuple(sorted(CALLS))
"""System calls that a rule can name and that are reported."""
UNSEEN_PRESETS: Final = {"anonymousMapExec": "mmap and mprotect are not watched"}
_CLASSES: Final = {
    Class.CAPABILITIES: "capability checks are not watched",
    Class.DEVICE: "USB devices are not watched",
}
CANNOT: Final = "this node cannot see it"


def unwatched(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are no watched call, in their order."""
    return tuple(name for name in names if ALIASES.get(name, name) not in CALLS)


def unseen_class(class_: Class) -> str | None:
    """Why nothing of a class is reported; None when it is."""
    return None if class_ in REPORTED else _CLASSES[class_]


def missing(rule: Rule) -> str | None:
    """What of `rule` no sensor reports, as a sentence without its subject; None when all of it is reported."""
    why = unseen_class(rule.class_) if rule.match is not Match.PRESET else UNSEEN_PRESETS.get(rule.value)
    if why is None and (names := unwatched(rule.syscalls)):
        why = f"{listed(names)} {'is' if len(names) == 1 else 'are'} not watched"
    return why


def unseen(rule: Rule) -> str | None:
    """Why nothing that `rule` asks about is ever reported; None when something is."""
    if rule.syscalls and len(unwatched(rule.syscalls)) < len(rule.syscalls):
        return None
    return missing(rule)


def listed(names: Iterable[str], most: int = 12) -> str:
    """`a`, `b` and 3 more."""
    every = [f"`{name}`" for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
