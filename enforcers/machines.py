# SPDX-License-Identifier: Apache-2.0
"""Pattern rules of a plan as a machine in the kernel's `patterns` map, and as entries of `rules` for the sets that it accepts. Pure.

All patterns of a table are one machine, so what a path costs does not depend on how many there are. A machine is bounded by
`CELLS`; patterns that do not fit are refused by name, from the last one on. Of the patterns that cover a path the judge takes the one
with the most fixed characters, and Block of equals: that is decided here for each set. Neighbours: `bpf_lsm` (who asks), `tables`
(where the cells go), programs/lsm_match.c (who walks them), `policy/match/byte_machine.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final

from enforcers.contract import Entries, Ident
from enforcers.paths import rule_value
from policy.match import glob
from policy.match.byte_machine import ByteMachine, compile_bytes
from schemas.enforcement import PathRule
from schemas.kernel import RULE_KEY, RuleKind
from schemas.verdict import Action

CELLS: Final = 1 << 18
"""Most cells of one table's machine: a quarter of what the kernel's map has by default. 10,000 patterns `/**/NAME` take 190,000."""
HEAD: Final = 66
"""Cells before the states: how many cells there are in all, the length of a row, the class of each byte (four in a cell)."""

Indexed = tuple[int, PathRule]
"""A rule and its number in the plan."""


def encode(rules: Sequence[Indexed], ident: Ident) -> tuple[Entries, bytes, list[Indexed]]:
    """Entries with table id 0, the machine's cells, and the rules that do not fit: the last ones."""
    if not rules:
        return (), b"", []
    fit, machine = _fitting([glob.parse(rule.value) for _, rule in rules])
    if machine is None:
        return (), b"", list(rules)
    entries: dict[bytes, bytes] = {}
    for number, accepted in enumerate(machine.accepts, 1):
        best: dict[tuple[int, str], list[Indexed]] = {}
        for which in accepted:
            best.setdefault((rules[which][1].cls, rules[which][1].source), []).append(rules[which])
        for (cls, source), found in best.items():
            key = RULE_KEY.struct.pack(0, number, ident(source) if source else 0, cls, RuleKind.PATTERN)
            entries[key] = _strictest(found)
    return tuple(entries.items()), cells(machine), list(rules[fit:])


def cells(machine: ByteMachine) -> bytes:
    """The machine as the kernel's map holds it, four bytes a cell."""
    flat = list(chain.from_iterable(machine.rows))
    stride = len(machine.rows[0])
    return struct.pack("=II", HEAD + len(flat), stride) + machine.classes + struct.pack(f"={len(flat)}I", *flat)


def _fitting(patterns: Sequence[glob.Sequence]) -> tuple[int, ByteMachine | None]:
    """How many of the first patterns fit, and their machine."""
    machine = compile_bytes(patterns, CELLS - HEAD)
    if machine is not None:
        return len(patterns), machine
    fits, not_, best = 0, len(patterns), None
    while not_ - fits > 1:
        half = (fits + not_) // 2
        machine = compile_bytes(patterns[:half], CELLS - HEAD)
        if machine is None:
            not_ = half
        else:
            fits, best = half, machine
    return fits, best


def _strictest(found: Sequence[Indexed]) -> bytes:
    # As the judge decides between rules that all match: the greatest rank alone counts.
    most = max(glob.literals(glob.parse(rule.value)) for _, rule in found)
    return strictest([(index, rule) for index, rule in found if glob.literals(glob.parse(rule.value)) == most])


def strictest(equal: Sequence[Indexed]) -> bytes:
    """The value of rules that all match and rank the same: every limit of theirs holds, and Block."""
    for index, rule in equal:
        if rule.action is Action.BLOCK and not rule.limited:
            return rule_value(rule, index)
    index, first = next((one for one in equal if one[1].limited), equal[0])
    return rule_value(
        first, index,
        owner_only=any(rule.owner_only for _, rule in equal),
        read_only=any(rule.read_only for _, rule in equal),
        no_terminal=any(rule.no_terminal for _, rule in equal),
    )  # fmt: skip
