# SPDX-License-Identifier: Apache-2.0
"""Whether a rule of a plan is about a path, as text: what decides in the kernel is asked of the kernel. Pure.

Neighbours: `policy.rules.lockout` (does a rule close a way in), `enforcers.apparmor_alerts` (which rule a denial was of).
"""

from __future__ import annotations

import posixpath
from functools import lru_cache
from typing import TYPE_CHECKING

from policy.match import glob
from policy.match.automata import Automaton

if TYPE_CHECKING:
    from schemas.enforcement import PathRule


def covers(rule: PathRule, name: str) -> bool:
    """Whether `rule` is about `name`: an absolute path, with a trailing slash or without, a capability or a preset. Its source, owner and
    action are not asked for."""
    path = name.rstrip("/") or "/"
    match rule.match:
        case "directory":
            return name == rule.value or posixpath.dirname(path).rstrip("/") + "/" == rule.value
        case "directory_recursive":
            return name.startswith(rule.value)
        case "execname":
            return posixpath.basename(path) == rule.value
        case "pattern":
            return bool(_pattern(rule.value).match(path))
        case _:
            return rule.value == path


@lru_cache(maxsize=1024)
def _pattern(text: str) -> Automaton:
    return Automaton([glob.parse(text)])
