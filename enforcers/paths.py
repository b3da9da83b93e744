# SPDX-License-Identifier: Apache-2.0
"""Path rules of a plan as entries of the kernel's `rules` map. Pure.

The kernel looks a path up in the judge's own order (`schemas.kernel.RuleKind`), so one entry for each rule says the same as
the ordered plan; of two rules on one key the first in the plan is kept. A rule that whole paths and names cannot say is
refused, and so is each rule that denies behind one that was refused and would have freed something: never wider than asked. Neighbours: `signal`
(whose map this is), `policy.kernel_plan` (who orders the rules).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from enforcers.contract import Entries, Ident
from policy.match import glob
from policy.rules.specificity import directory_weight
from schemas.enforcement import PathRule, Refusal
from schemas.kernel import RULE, RULE_KEY, STRING_LIMIT, RuleAction, RuleFlag, RuleKind
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode
from schemas.verdict import Action

_KINDS: Final = {
    "path": RuleKind.EXACT,
    "directory": RuleKind.DIRECTORY,
    "directory_recursive": RuleKind.RECURSIVE,
    "execname": RuleKind.EXECNAME,
}
_OTHERS: Final = {"capability": RefusalCode.WRONG_CLASS, "preset": RefusalCode.PRESET}
_EXCEPTION: Final = Cause(
    RefusalCode.EXCEPTION,
    "an exception before it cannot be carried out, and without it too much would be stopped",
)
_LONGEST: Final = STRING_LIMIT - 5
"""What the kernel keeps of an over-long path: the rest of STRING_LIMIT is the slash and the three dots that say so, and a NUL."""
_SOURCE_BITS: Final = 16
"""Room for the weight of a source: twice the longest path, and one."""
_MANY: Final = Cause(
    RefusalCode.SOURCE,
    "its `fromSource` is a directory or a pattern, and executables are looked up by their whole paths",
)
Key = tuple[int, Class, RuleKind]
ACTIONS: Final = {Action.ALLOW: RuleAction.ALLOW, Action.AUDIT: RuleAction.AUDIT, Action.BLOCK: RuleAction.BLOCK}


def rule_value(
    rule: PathRule,
    index: int,
    *,
    owner_only: bool | None = None,
    read_only: bool | None = None,
    no_terminal: bool | None = None,
) -> bytes:
    """`rule` as the value of a map, with its own limits unless others are given."""
    flags = (
        RuleFlag.OWNER_ONLY * (rule.owner_only if owner_only is None else owner_only)
        | RuleFlag.READ_ONLY * (rule.read_only if read_only is None else read_only)
        | RuleFlag.NO_TERMINAL * (rule.no_terminal if no_terminal is None else no_terminal)
    )
    return RULE.struct.pack(ACTIONS[rule.action], flags, index, source_rank(rule))


def source_rank(rule: PathRule) -> int:
    """How much the source of `rule` says of who acts, as `policy.rules.specificity`: of rules on one thing the greatest decides."""
    match rule.source_match if rule.source else "":
        case "":
            return 0
        case "path":
            return 3 << _SOURCE_BITS
        case "pattern":
            return 2 << _SOURCE_BITS | glob.literals(glob.parse(rule.source))
        case how:
            return 1 << _SOURCE_BITS | directory_weight(rule.source, how == "directory_recursive")


def key(rule: PathRule, ident: Ident) -> Key:
    """Path, class and kind of the key of `rule`, which is on whole paths, names or directories."""
    return ident(rule.value), rule.cls, _KINDS[rule.match]


def encode(
    rules: Iterable[PathRule],
    ident: Ident,
    backend: Backend,
    uid: str,
    *,
    left: Mapping[int, Cause] = {},
    elsewhere: Collection[str] = (),
    many: bool = False,
) -> tuple[Entries, tuple[Refusal, ...], set[Class]]:
    """Entries with table id 0; refusals; classes in which a rule that frees is missing, so that their posture must not be held. `left`:
    rules, by number, that the backend leaves out; `elsewhere`: kinds of match that it writes by itself, where nothing is refused here;
    `many`: so it does with sources that stand for many executables."""
    entries: dict[bytes, bytes] = {}
    refused: list[Refusal] = []
    holes: set[Class] = set()
    for index, rule in enumerate(rules):
        why = left.get(index) or (None if rule.match in elsewhere else _problem(rule, backend))
        if why is None and rule.many and not many:
            why = _MANY
        if why is None and rule.stops and rule.cls in holes and rule.match != "preset":
            why = _EXCEPTION
        if why is not None:
            if rule.frees:
                holes.add(rule.cls)
            refused.append(Refusal(ref=rule.ref, uid=uid, backend=backend, reason=why.text, code=why.code))
        elif rule.match not in elsewhere and not rule.many:
            path, class_, kind = key(rule, ident)
            source = ident(rule.source) if rule.source else 0
            entries.setdefault(RULE_KEY.struct.pack(0, path, source, class_, kind), rule_value(rule, index))
    return tuple(entries.items()), tuple(refused), holes


def _problem(rule: PathRule, backend: Backend) -> Cause | None:
    if rule.match not in _KINDS:
        code = _OTHERS.get(rule.match, RefusalCode.PATTERN)
        return Cause(
            code, f"whole paths, names and directories are looked up by the program that kills, not a `{rule.match}`"
        )
    if len(rule.value.encode("utf-8", "surrogateescape")) > _LONGEST:
        return Cause(RefusalCode.PATH_TOO_LONG, f"its path is longer than {_LONGEST} bytes")
    if rule.no_terminal and backend is not Backend.BPF_LSM:
        return Cause(RefusalCode.TERMINAL, "the program that kills does not look at the terminal")
    return None
