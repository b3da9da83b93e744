# SPDX-License-Identifier: Apache-2.0
"""Which of two rules is the more specific: the order that `docs/semantics.md` writes as a table, in one place.

A rank is a tuple; the greater one wins. It says nothing about actions: those decide only between equal ranks.
Never looks at where or when a rule was written, so the order of policies cannot matter.
"""

from __future__ import annotations

from typing import Final

from policy.match import glob
from schemas.rules import Match, Rule, Source, SourceKind

Rank = tuple[int, int, int, int, int]
"""(limited to a source, shape, weight within the shape, shape of the source, weight of the source)"""

TYPES: Final = frozenset({"stream", "dgram", "raw", "rdm", "seqpacket", "dccp", "packet"})

_SOURCES: Final = {SourceKind.PATH: 3, SourceKind.PATTERN: 2, SourceKind.DIRECTORY: 1}


def rank(rule: Rule, source: Source | None = None, *, prefix: int = -1, ports: int = 0) -> Rank:
    """Rank of `rule` when it is limited to `source` (one of `rule.sources`), or to nobody.

    `prefix` (length of the matched network, -1 any) and `ports` (2 one port, 1 a range, 0 any) are for PEER rules alone.
    """
    shape, weight = _shape(rule, prefix, ports)
    if source is None:
        return (0, shape, weight, 0, 0)
    return (1, shape, weight, _SOURCES[source.kind], _source_weight(source))


def _shape(rule: Rule, prefix: int, ports: int) -> tuple[int, int]:
    match rule.match:
        case Match.PATH:
            return 5, 0
        case Match.EXECNAME:
            return 4, 0
        case Match.PATTERN:
            return 3, glob.literals(glob.parse(rule.value))
        case Match.DIRECTORY:
            return 2, directory_weight(rule.value, rule.recursive)
        case Match.PROTOCOL:
            return (1, 0) if rule.value == "all" else (2, 0) if rule.value in TYPES else (3, 0)
        case Match.DNS:
            return 1, len(rule.value)
        case Match.DEVICE:
            device = rule.device
            assert device is not None
            weight = 100 * (device.class_ >= 0) + 10 * (device.sub_class >= 0) + (device.protocol >= 0)
            return 1, weight + 100 * (device.level >= 0)
        case Match.PEER:
            return 1, (prefix + 1) * 4 + ports
        case Match.SYSCALL:
            return 1, 0
        case Match.CAPABILITY | Match.PRESET:
            return 1, 0


def directory_weight(value: str, recursive: bool) -> int:
    """Deeper is heavier; of one directory, the rule for its own entries alone is heavier than the recursive one."""
    return 2 * len(value) + (not recursive)


def _source_weight(source: Source) -> int:
    match source.kind:
        case SourceKind.PATH:
            return 0
        case SourceKind.PATTERN:
            return glob.literals(glob.parse(source.value))
        case SourceKind.DIRECTORY:
            return directory_weight(source.value, source.recursive)
