# SPDX-License-Identifier: Apache-2.0
"""Sources of rules that stand for any number of executables (`fromSource` with `dir` or `pattern`), as a machine that the kernel asks once
for each executable, and as the numbers that stand in `rule_key.source` and `net_key.source`. Pure.

An executable's path leads the machine to a set of sources, numbered from 1. A rule has an entry for each set that its source is in; of
several in one set the judge's order is kept here. An executable whose path the kernel does not know any more has the set ACTOR_UNKNOWN,
with what denies alone. What protects the programs that a node lives on goes before every such set. Neighbours: `machines` (the cells),
`bpf_lsm` (who asks), programs/lsm_actors.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from enforcers.contract import Entries
from enforcers.machines import Indexed, cells, strictest
from enforcers.paths import Key, source_rank
from policy.match import glob
from policy.match.byte_machine import compile_bytes
from schemas.enforcement import NetworkRule, PathRule
from schemas.kernel import RULE_KEY
from schemas.lsm import ACTOR_UNKNOWN
from schemas.refusals import Cause, RefusalCode
from schemas.verdict import PROTECTED, Action

CELLS: Final = 1 << 16
"""Most cells of one table's machine for executables: by feel, 2,000 directories of five names."""
ENTRIES: Final = 1 << 16
"""Most entries that the rules of one workload with such sources are written out to."""
_TOO_MANY: Final = Cause(
    RefusalCode.SOURCE,
    f"the directories and patterns of `fromSource` in this workload need a machine of more than {CELLS} cells, or more than {ENTRIES} entries "
    "of the kernel's table; none of them is held",
)


class ActorMachine:
    """The sources of a scope's rules. `cells`: the machine, empty when there is none; `problem`: why these rules cannot be held."""

    def __init__(self, paths: Sequence[PathRule], network: Sequence[NetworkRule]) -> None:
        rules: tuple[PathRule | NetworkRule, ...] = (*paths, *network)
        many = [rule for rule in rules if rule.many]
        sources = list(dict.fromkeys((rule.source_match, rule.source) for rule in many))
        kept_out = sorted(
            {rule.source for rule in rules if rule.source and not rule.many and rule.ref.policy == PROTECTED}
        )
        self.cells = b""
        self.problem: Cause | None = None
        self._sets: dict[tuple[str, str], list[int]] = {}
        if not sources:
            return
        machine = compile_bytes([*(_tree(*one) for one in sources), *map(_text, kept_out)], CELLS)
        if machine is not None:
            for number, accepted in enumerate(machine.accepts, 1):
                if all(which < len(sources) for which in accepted):
                    for which in accepted:
                        self._sets.setdefault(sources[which], []).append(number)
        if machine is None or sum(map(len, map(self.numbers, many))) > ENTRIES:
            self.problem = _TOO_MANY
        else:
            self.cells = cells(machine)

    def numbers(self, rule: PathRule | NetworkRule) -> tuple[int, ...]:
        """What stands for the source of `rule`, which is for many, in its keys."""
        known = self._sets.get((rule.source_match, rule.source), ())
        return (*known, ACTOR_UNKNOWN) if rule.stops else tuple(known)

    def entries(self, rules: Iterable[Indexed], what: Callable[[PathRule], Key]) -> Entries:
        """Entries with table id 0 of those of `rules` that are for many. `what`: path, class and kind of a rule's key."""
        found: dict[tuple[Key, int], list[Indexed]] = {}
        for index, rule in rules:
            if rule.many:
                for number in self.numbers(rule):
                    found.setdefault((what(rule), number), []).append((index, rule))
        return tuple(
            (RULE_KEY.struct.pack(0, path, number, class_, kind), _best(those, number))
            for ((path, class_, kind), number), those in found.items()
        )


def _best(those: Sequence[Indexed], number: int) -> bytes:
    """Of rules on one thing those whose sources say the most; of an executable that is not known any may be the one."""
    if number == ACTOR_UNKNOWN:
        plain = [one for one in those if one[1].action is Action.BLOCK and not one[1].limited]
        those = plain or [one for one in those if one[1].stops]
    most = max(source_rank(rule) for _, rule in those)
    return strictest([one for one in those if source_rank(one[1]) == most])


def _tree(match: str, value: str) -> glob.Sequence:
    if match == "pattern":
        return glob.parse(value)
    return (*_text(value), glob.DOUBLE_STAR if match == "directory_recursive" else glob.STAR)


def _text(text: str) -> glob.Sequence:
    return tuple(glob.One(((ord(letter), ord(letter)),)) for letter in text)
