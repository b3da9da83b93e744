# SPDX-License-Identifier: Apache-2.0
"""A policy as a container's symlinks make it: each rule on a link holds for what it points to as well. Pure.

The kernel tells real paths, policies name `/bin/sh`. `linked` adds to a rule its variants with real paths, under the same name
(policy, position, index), so that the judge, the planner and the counts see them as the one rule. A program that is many
programs (busybox) is told by the name it was called with: blocking `/bin/wget` must not stop `/bin/sh`. Neighbours:
`schemas/links.py` (the keys), `policy/ruleset.py` (the caller), the sensor that resolves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from schemas.links import MULTI_CALL, asked, directory_before
from schemas.operations import Class
from schemas.rules import Match, Policy, Rule, Source, SourceKind

_PATHS: Final = frozenset({Match.PATH, Match.DIRECTORY, Match.PATTERN})
_CLASSES: Final = frozenset({Class.PROCESS, Class.FILE, Class.SYSCALL})


def names(rules: Iterable[Rule]) -> frozenset[str]:
    """The keys of `Identity.links` that can matter to `rules`."""
    found: set[str] = set()
    for rule in rules:
        if rule.void:
            continue
        if rule.class_ in _CLASSES and rule.match in _PATHS:
            found.update(asked(rule.value))
        for source in rule.sources:
            found.update(asked(source.value))
    return frozenset(found)


def linked(policy: Policy, links: Mapping[str, str]) -> Policy:
    """`policy` for a root where `links` hold; the same object when none matters."""
    rules = tuple(variant for rule in policy.rules for variant in _variants(rule, links))
    return policy if rules == policy.rules else msgspec.structs.replace(policy, rules=rules)


def _variants(rule: Rule, links: Mapping[str, str]) -> Iterator[Rule]:
    if rule.sources:
        sources = tuple(dict.fromkeys(one for source in rule.sources for one in _sources(source, links)))
        if sources != rule.sources:
            rule = msgspec.structs.replace(rule, sources=sources)
    yield rule
    if rule.void or rule.class_ not in _CLASSES or rule.match not in _PATHS:
        return
    for real in _real(rule.match, rule.value, links):
        base = real.rpartition("/")[2]
        if rule.class_ is Class.PROCESS and rule.match is Match.PATH and base in MULTI_CALL:
            name = rule.value.rpartition("/")[2]
            if name not in MULTI_CALL:
                yield msgspec.structs.replace(rule, value=real, called=name)
                continue
        yield msgspec.structs.replace(rule, value=real)


def _sources(source: Source, links: Mapping[str, str]) -> Iterator[Source]:
    yield source
    match = {SourceKind.PATH: Match.PATH, SourceKind.PATTERN: Match.PATTERN}.get(source.kind, Match.DIRECTORY)
    for real in _real(match, source.value, links):
        # Which of its programs a busybox is acting as is not known later on: a source is not stretched to all of them.
        if match is not Match.PATH or real.rpartition("/")[2] not in MULTI_CALL:
            yield msgspec.structs.replace(source, value=real)


def _real(match: Match, value: str, links: Mapping[str, str]) -> list[str]:
    """Other names of `value`, without `value` itself."""
    found: list[str] = []
    if match is Match.PATTERN:
        directory, rest = directory_before(value)
        if (real := links.get(directory)) is not None:
            found.append(_escaped(real) + rest)
    else:
        if (real := links.get(value)) is not None:
            found.append(real)
        # The link itself, in the real directory: what unlinking or renaming it is told as, and what is not there yet.
        if match is Match.PATH:
            directory, _, base = value.rpartition("/")
            if (real := links.get(directory + "/")) is not None:
                found.append(real + base)
    # A link to the root would make a rule on one directory a rule on everything.
    return [one for one in dict.fromkeys(found) if one not in (value, "/") and len(one) > 1]


def _escaped(directory: str) -> str:
    return "".join("\\" + letter if letter in "*?[]{}\\," else letter for letter in directory)


def called_as(name: str, arguments: tuple[str, ...]) -> bool:
    """Whether a multi-call program that was started with `arguments` acts as `name`."""
    first = arguments[0].rpartition("/")[2].lstrip("-") if arguments else ""
    return first == name or (first in MULTI_CALL and len(arguments) > 1 and arguments[1].rpartition("/")[2] == name)
