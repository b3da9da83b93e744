# SPDX-License-Identifier: Apache-2.0
"""A policy that is there already, extended by what was seen since: only the rules that something denied needs, nothing taken away. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final

from policy.learn.documents import checked
from policy.learn.learner import LearntPolicy
from policy.learn.replay import TrainingReplay
from schemas.errors import PolicyError

_POSITION: Final = re.compile(r"spec\.(\w+)\.(\w+)\[(\d+)\]")
_VALUES: Final = ("path", "dir", "pattern", "protocol", "execname")
_LIMITS: Final = ("readOnly", "ownerOnly")


def merged(body: Mapping[str, Any], learnt: LearntPolicy) -> tuple[dict[str, Any], int]:
    """(`body` extended so that it allows everything `learnt` was learnt from, how many of its rules were added or widened).

    PolicyError when it cannot: a Block rule of `body` denies something that was seen."""
    made: dict[str, Any] = copy.deepcopy(dict(body))
    own = TrainingReplay([learnt.document])
    changed: set[tuple[str, str, int]] = set()
    denied = list(TrainingReplay([checked(made)]).denied(learnt.evidence))
    for one in denied:
        scope = own.scope(one.identity)
        for _, candidates, _ in scope.enforced.candidates(one.behaviour):
            for candidate in candidates:
                match = _POSITION.fullmatch(candidate.rule.ref.position)
                if match is not None:
                    changed.add((match[1], match[2], int(match[3])))
    for section, name, number in sorted(changed):
        _put(made, section, name, learnt.body["spec"][section][name][number])
    if denied:
        left = next(TrainingReplay([checked(made)]).denied(learnt.evidence), None)
        if left is not None:
            raise PolicyError(
                f"expected `{made['metadata']['name']}` to take what was seen, its own rules deny {left.behaviour.operation.name.lower()} of "
                f"`{left.behaviour.resource}`; change that rule, or discover without --merge",
                (),
            )
    return made, len(changed)


def _put(made: dict[str, Any], section: str, name: str, item: Mapping[str, Any]) -> None:
    items = made["spec"].setdefault(section, {}).setdefault(name, [])
    value = next(item[key] for key in _VALUES if key in item)
    for old in items:
        if value in (old.get(key) for key in _VALUES) and bool(old.get("recursive")) == bool(item.get("recursive")):
            for limit in _LIMITS:
                if limit in old and not item.get(limit):
                    del old[limit]
            sources = old.get("fromSource")
            if sources and item.get("fromSource"):
                sources += [source for source in item["fromSource"] if source not in sources]
            elif sources:
                del old["fromSource"]
            return
    items.append(dict(item))
