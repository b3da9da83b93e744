# SPDX-License-Identifier: Apache-2.0
"""The sightings of one workload's container -> the Allow rules that they need. Pure.

Executables are exact, with the executables that started them; sockets by protocol, with those that use them; files by `paths`,
reading and changing apart. A limit (`readOnly`, `ownerOnly`, `fromSource`) only ever goes away when evidence is added, so a policy that
is learnt again from more of the same never allows less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

import msgspec

from policy.judge.sockets import LOCAL, words
from policy.learn import zones
from policy.learn.components import escape
from policy.learn.evidence import Evidence, just
from policy.learn.paths import PlaceRule, generalise
from policy.learn.sightings import Shown, owned, paths
from policy.match import glob
from policy.match.automata import Automaton
from schemas.behaviour import Behaviour
from schemas.operations import Access, Class, Operation

_OWN: Final = int(Access.OWN)
_bits: Final = int.__and__
SOURCES: Final = 16
"""Sources written under a rule; where more do it, anybody may."""
_PREFERRED: Final = (
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
    "sctp",
    "raw",
    "stream",
    "dgram",
    "seqpacket",
    "rdm",
    "dccp",
    "packet",
    "all",
)
_ORDER: Final = {"dir": 0, "pattern": 1, "path": 2}


class LearntRule(msgspec.Struct, frozen=True, kw_only=True):
    """One Allow rule. `section`: process, file or network; `kind`: path, dir, pattern or protocol. `sources`: empty for anybody."""

    section: str
    kind: str
    value: str
    recursive: bool = False
    read_only: bool = False
    owner_only: bool = False
    sources: tuple[str, ...] = ()
    evidence: Evidence

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What makes it this rule and no other."""
        return self.section, self.kind, self.value, self.recursive


class Uses:
    """Everything that one workload's container was seen using. The order of `add` changes nothing."""

    def __init__(self) -> None:
        self.executed: dict[str, Evidence] = {}
        self.files: dict[str, Evidence] = {}
        self.changed: dict[str, Evidence] = {}
        self.sockets: dict[str, Evidence] = {}

    @classmethod
    def of(cls, shown: Iterable[Shown]) -> Self:
        """All that these sightings used."""
        made = cls()
        for one in shown:
            made.add(one)
        return made

    def add(self, one: Shown) -> None:
        """Sightings of one behaviour that are evidence."""
        behaviour, cls = one.behaviour, one.cls
        if cls is Class.NETWORK and behaviour.family in LOCAL:
            return
        source = (behaviour.parent or behaviour.executable) if cls is Class.PROCESS else behaviour.executable
        seen = Evidence(one.count, one.first, one.last, one.uid, one.instances, just(source))
        if cls is Class.FILE:
            write = seen.write = one.write
            seen.foreign = not owned(behaviour)
            seen.others = not _bits(behaviour.access, _OWN)
            if behaviour.operation is Operation.OPEN:
                path = behaviour.resource
                if path not in self.files:
                    # Then it was not changed either.
                    self.files[path] = seen
                    if write:
                        self.changed[path] = seen
                    return
                _into(self.files, path, seen, self.changed)
                if write:
                    _into(self.changed, path, seen, self.files)
                return
            for number, path in enumerate(paths(behaviour)):
                mine = Evidence.of((seen,)) if number else seen
                _into(self.files, path, mine, self.changed)
                if write:
                    _into(self.changed, path, mine, self.files)
        elif cls is Class.NETWORK:
            _into(self.sockets, word(behaviour), seen, {})
        else:
            for number, path in enumerate(paths(behaviour)):
                _into(self.executed, path, Evidence.of((seen,)) if number else seen, {})


def word(behaviour: Behaviour) -> str:
    """The narrowest protocol word that the judge knows a socket by; `all` where nothing of it was told."""
    known = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
    return next((name for name in _PREFERRED if name in known), "all")


def rules(uses: Uses, *, patterns: bool = True) -> list[LearntRule]:
    """The rules, sorted. `patterns` False: no globs, for enforcers that have none."""
    made = [
        LearntRule(section="process", kind="path" if _plain(path) else "pattern", value=path if _plain(path) else escape(path),
                   sources=_sources(evidence), evidence=evidence)
        for path, evidence in uses.executed.items()
    ]  # fmt: skip
    made += [
        LearntRule(section="network", kind="protocol", value=name, sources=_sources(evidence), evidence=evidence)
        for name, evidence in uses.sockets.items()
    ]
    made += _files(uses, patterns)
    return sorted(made, key=lambda rule: (rule.section, _ORDER.get(rule.kind, 3), rule.value, rule.recursive))


def _files(uses: Uses, patterns: bool) -> list[LearntRule]:
    joined: dict[tuple[str, str, bool], tuple[PlaceRule, bool]] = {}
    for rule in generalise(uses.changed, reading=False, patterns=patterns):
        joined[rule.kind, rule.value, rule.recursive] = (rule, True)
    for rule in generalise(uses.files, reading=True, patterns=patterns):
        place = (rule.kind, rule.value, rule.recursive)
        joined[place] = (rule, place in joined)
    made: list[LearntRule] = []
    # From the least specific on: a rule that what was made before covers is left out, one that it overlaps gets its freedoms.
    table = _Covering([rule for rule, _ in joined.values()])
    kept: dict[tuple[str, str, bool], LearntRule] = {}
    for rule, write in sorted(joined.values(), key=_specificity):
        evidence = rule.evidence
        free_write = write
        free_owner = evidence.foreign or not zones.private(rule.value)
        covers = [kept[place] for place in table.over(rule) if place in kept]
        whole = [one for one in covers if _stands_for(one, rule)]
        if any((not one.read_only or not free_write) and (not one.owner_only or not free_owner) for one in whole):
            for one in whole:
                one.evidence.merge(evidence)
            continue
        for one in covers:
            free_write |= not one.read_only
            free_owner |= not one.owner_only
        secret = rule.kind == "path" and zones.secret(rule.value)
        odd = rule.kind == "path" and not _plain(rule.value)
        kept[rule.kind, rule.value, rule.recursive] = LearntRule(
            section="file", kind="pattern" if odd else rule.kind, value=escape(rule.value) if odd else rule.value, recursive=rule.recursive, read_only=not free_write,
            owner_only=not free_owner, sources=_sources(evidence) if secret else (), evidence=evidence,
        )  # fmt: skip
    made += kept.values()
    return made


def _stands_for(wide: LearntRule, rule: PlaceRule) -> bool:
    """Whether `wide` holds for everything that `rule` does: a directory for what lies in it, a glob for one path."""
    return rule.kind == "path" or wide.kind == "dir"


def _specificity(item: tuple[PlaceRule, bool]) -> tuple[int, int, bool, str]:
    rule = item[0]
    fixed = glob.literals(glob.parse(rule.value)) if rule.kind == "pattern" else len(rule.value)
    return _ORDER[rule.kind], fixed, not rule.recursive, rule.value


class _Covering:
    """Which rules hold for a place of another: directories by walking up, patterns by one automaton over samples."""

    def __init__(self, every: list[PlaceRule]) -> None:
        self._directories = {(rule.value, rule.recursive) for rule in every if rule.kind == "dir"}
        self._patterns = sorted({rule.value for rule in every if rule.kind == "pattern"})
        self._automaton = Automaton([glob.parse(value) for value in self._patterns]) if self._patterns else None

    def over(self, rule: PlaceRule) -> list[tuple[str, str, bool]]:
        found: list[tuple[str, str, bool]] = []
        # Of a pattern what is fixed at its beginning says in which directories all of it lies.
        place = rule.value
        if rule.kind == "pattern":
            cut = min((place.find(mark) for mark in "*?[{\\" if mark in place), default=len(place))
            place = place[: place.rfind("/", 0, cut) + 1]
            direct = "/" not in rule.value[len(place) :]
        elif rule.kind == "dir":
            direct = False
        else:
            direct = True
        parent = place[: place.rfind("/") + 1]
        if rule.kind == "dir":
            parent = place
        end = parent.find("/") + 1
        while end > 0:
            above = parent[:end]
            if (above, True) in self._directories and not (
                rule.kind == "dir" and above == rule.value and rule.recursive
            ):
                found.append(("dir", above, True))
            if above == parent and direct and (above, False) in self._directories:
                found.append(("dir", above, False))
            end = parent.find("/", end) + 1
        if rule.kind == "path":
            own = [(f"{place}/", recursive) for recursive in (True, False)]
            found += [("dir", *each) for each in own if each in self._directories]
        if self._automaton is not None and rule.kind != "dir":
            numbers = {number for sample in rule.samples for number in self._automaton.match(sample)}
            found += [
                ("pattern", self._patterns[number], False)
                for number in sorted(numbers)
                if self._patterns[number] != rule.value
            ]
        return found


def _into(table: dict[str, Evidence], key: str, seen: Evidence, beside: dict[str, Evidence]) -> None:
    """Adds `seen`, which is the entry itself where there was none. What lies in `beside` too is copied before it is added to."""
    found = table.get(key)
    if found is None:
        table[key] = seen
        return
    if beside.get(key) is found:
        found = table[key] = Evidence.of((found,))
    found.merge(seen)


def _sources(evidence: Evidence) -> tuple[str, ...]:
    """Who did it; nobody in particular where one is not known or there are many."""
    if len(evidence.sources) > SOURCES or not all(
        source.startswith("/") and _plain(source) for source in evidence.sources
    ):
        return ()
    return tuple(sorted(evidence.sources))


def _plain(path: str) -> bool:
    """Whether `matchPaths` can name it: text, in the shape that the judge compares, with no slash at its end."""
    return path.isprintable() and not path.endswith("/") and "//" not in path and "/./" not in path
