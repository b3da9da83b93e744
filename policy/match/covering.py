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
    from schemas.enforcement import NetworkRule, PathRule


def covers(rule: PathRule, name: str) -> bool:
    """Whether `rule` is about `name`: an absolute path, with a trailing slash or without, a capability or a preset. Its source, owner and
    action are not asked for."""
    path = name.rstrip("/") or "/"
    match rule.match:
        case "directory":
            return name == rule.value or _holds(rule.value, path)
        case "directory_recursive":
            return name.startswith(rule.value)
        case "execname":
            return posixpath.basename(path) == rule.value
        case "pattern":
            return bool(_pattern(rule.value).match(path))
        case _:
            return rule.value == path


def acts(rule: PathRule | NetworkRule, executable: str) -> bool:
    """Whether `rule` is for what `executable` does, "" for nobody who is known: one that is limited to no source is for everybody."""
    if not rule.source or not executable:
        return not rule.source
    match rule.source_match:
        case "directory":
            return _holds(rule.source, executable)
        case "directory_recursive":
            return executable.startswith(rule.source)
        case "pattern":
            return bool(_pattern(rule.source).match(executable))
        case _:
            return rule.source == executable


def _holds(directory: str, path: str) -> bool:
    return posixpath.dirname(path).rstrip("/") + "/" == directory


@lru_cache(maxsize=1024)
def _pattern(text: str) -> Automaton:
    return Automaton([glob.parse(text)])
