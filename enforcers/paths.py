# SPDX-License-Identifier: Apache-2.0
"""Path rules of a plan as entries of the kernel's `rules` map. Pure.

The kernel looks a path up in the judge's own order (`schemas.kernel.RuleKind`), so one entry for each rule says the same as
the ordered plan; of two rules on one key the first in the plan is kept. A rule that whole paths and names cannot say is
refused, and so is each Block rule behind an Allow rule that was refused: never wider than asked. Neighbours: `signal`
(whose map this is), `policy.kernel_plan` (who orders the rules).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from enforcers.contract import Entries, Ident
from schemas.enforcement import PathRule, Refusal
from schemas.kernel import RULE, RULE_KEY, STRING_LIMIT, RuleAction, RuleFlag, RuleKind
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action

_KINDS: Final = {
    "path": RuleKind.EXACT,
    "directory": RuleKind.DIRECTORY,
    "directory_recursive": RuleKind.RECURSIVE,
    "execname": RuleKind.EXECNAME,
}
_LONGEST: Final = STRING_LIMIT - 5
"""What the kernel keeps of an over-long path: the rest of STRING_LIMIT is the slash and the three dots that say so, and a NUL."""
ACTIONS: Final = {Action.ALLOW: RuleAction.ALLOW, Action.AUDIT: RuleAction.AUDIT, Action.BLOCK: RuleAction.BLOCK}


def stops(rule: PathRule) -> bool:
    """Whether anything is ever denied by the rule."""
    return rule.action is Action.BLOCK or rule.owner_only or rule.read_only


def encode(
    rules: Iterable[PathRule], ident: Ident, backend: Backend, uid: str
) -> tuple[Entries, tuple[Refusal, ...], set[Class]]:
    """Entries with table id 0; refusals; classes in which an Allow rule is missing, so that their posture must not be held."""
    entries: dict[bytes, bytes] = {}
    refused: list[Refusal] = []
    holes: set[Class] = set()
    for index, rule in enumerate(rules):
        if rule.match not in _KINDS:
            code, why = (
                RefusalCode.PATTERN,
                f"whole paths, names and directories are looked up in the kernel, not a `{rule.match}`",
            )
        elif len(rule.value.encode()) > _LONGEST:
            code, why = RefusalCode.PATH_TOO_LONG, f"its path is longer than {_LONGEST} bytes"
        elif rule.action is Action.BLOCK and rule.cls in holes:
            code = RefusalCode.EXCEPTION
            why = "an exception before it cannot be carried out, and without it too much would be stopped"
        else:
            source = ident(rule.source) if rule.source else 0
            key = RULE_KEY.struct.pack(0, ident(rule.value), source, rule.cls, _KINDS[rule.match])
            flags = RuleFlag.OWNER_ONLY * rule.owner_only | RuleFlag.READ_ONLY * rule.read_only
            entries.setdefault(key, RULE.struct.pack(ACTIONS[rule.action], flags, index, 0))
            continue
        if rule.action is Action.ALLOW:
            holes.add(rule.cls)
        refused.append(Refusal(ref=rule.ref, uid=uid, backend=backend, reason=why, code=code))
    return tuple(entries.items()), tuple(refused), holes
