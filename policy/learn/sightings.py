# SPDX-License-Identifier: Apache-2.0
"""One stored behaviour as the learner takes it, and which of them are evidence of what a workload needs.

Denied, alerted and shadow-blocked behaviours are never evidence: learning them would turn an attack into a permission. What failed
by itself never happened. Pure. Neighbours: `policy/learn/learner.py` reads these, the summary store is where they come from.

The store gives equal behaviours as one object (`sinks/store/queries.py`), so what depends on a behaviour alone is asked once for all
instances that showed it: `by_behaviour`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from policy.judge.judge import considered
from policy.judge.precedence import changes
from policy.judge.sockets import LOCAL
from policy.learn.components import UNDECODED
from policy.learn.evidence import NEVER, just
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.identity import Identity
from schemas.operations import Access, Class, Operation

ALLOWED: Final = "Allow"

_UNTOLD: Final = int(Access.UNTOLD)
_PARTIAL: Final = int(Access.PARTIAL)
"""As plain numbers: an operation on flags makes a flag, and there is one for each stored behaviour."""
_TWO_PATHS: Final = frozenset((Operation.RENAME, Operation.LINK))
_OPEN: Final = Operation.OPEN
_FILE: Final = Class.FILE
_bits: Final = int.__and__


class Sighting(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A behaviour of an identity: how often, when first and last (Unix ns). `status`: Allow, Audit or Deny, as it was told.
    `shadowed`: a shadow policy or a baseline in force spoke against it."""

    identity: Identity
    behaviour: Behaviour
    status: str = ALLOWED
    count: int = 1
    first: int = 0
    last: int = 0
    shadowed: bool = False


class Use(StrEnum):
    """What a sighting is to the learner."""

    EVIDENCE = "evidence"
    NOTHING = "nothing"
    """No rule can be about it: it failed by itself, or no whitelist covers its class."""
    REFUSED = "refused"
    """Denied, alerted or shadow-blocked."""
    NAMELESS = "nameless"
    """A rule would be needed and none can name it: a path that is not whole, a program without a file, one of too many new names."""


class Shown:
    """A behaviour and its sightings, mostly one for each instance that showed it, and what they add up to. `first` to `last`: Unix ns, the
    former by the instance `uid`; `latest`: the latest first one. `write`: a file is changed. `spoken`: somebody spoke against one."""

    __slots__ = ("behaviour", "cls", "count", "first", "last", "latest", "some", "spoken", "uid", "write")

    def __init__(self, behaviour: Behaviour, some: Sequence[Sighting]) -> None:
        self.behaviour = behaviour
        self.some = some
        self.cls = cls = behaviour.cls
        self.write = cls is _FILE and changes(behaviour)
        one = some[0]
        if len(some) == 1:
            self.count = one.count
            self.first = self.latest = one.first
            self.last = one.last
            self.uid = one.identity.uid
            self.spoken = one.status != ALLOWED or one.shadowed
            return
        count = last = latest = 0
        first, uid = NEVER, ""
        spoken = False
        for one in some:
            count += one.count
            at = one.first
            if at <= first and (at < first or one.identity.uid < uid):
                first, uid = at, one.identity.uid
            if at > latest:
                latest = at
            if one.last > last:
                last = one.last
            if one.status != ALLOWED or one.shadowed:
                spoken = True
        self.count, self.first, self.last, self.latest, self.uid, self.spoken = count, first, last, latest, uid, spoken

    @property
    def instances(self) -> frozenset[str]:
        """Who showed it, by uid."""
        return just(self.uid) if len(self.some) == 1 else frozenset([one.identity.uid for one in self.some])

    def only(self, wanted: Callable[[Sighting], bool]) -> Shown | None:
        """The same of some of the sightings; None where there are none of these."""
        kept = [one for one in self.some if wanted(one)]
        return self if len(kept) == len(self.some) else Shown(self.behaviour, kept) if kept else None


class SightingGroups:
    """Sightings by behaviour, as they come."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        # One alone, which most are, as itself.
        self._found: dict[int, Sighting | list[Sighting]] = {}

    def add(self, one: Sighting) -> None:
        """One more."""
        found = self._found
        ident = id(one.behaviour)
        known = found.get(ident)
        if known is None:
            found[ident] = one
        elif isinstance(known, list):
            known.append(one)
        else:
            found[ident] = [known, one]

    def shown(self) -> list[Shown]:
        """Each behaviour with its sightings, in the order of the first. Equal behaviours that are several objects come several times."""
        return [
            Shown(some[0].behaviour, some) if isinstance(some, list) else Shown(some.behaviour, (some,))
            for some in self._found.values()
        ]


def by_behaviour(sightings: Iterable[Sighting]) -> list[Shown]:
    """What `SightingGroups` makes of them."""
    grouped = SightingGroups()
    for one in sightings:
        grouped.add(one)
    return grouped.shown()


def flat(shown: Iterable[Shown]) -> list[Sighting]:
    """The sightings of all of them."""
    return [one for each in shown for one in each.some]


def use(sighting: Sighting) -> Use:
    """Which of the four."""
    return Use.REFUSED if refused(sighting) else use_of(sighting.behaviour)


def refused(sighting: Sighting) -> bool:
    """Whether somebody spoke against it, as far as enough of it was told to be spoken about."""
    return (sighting.status != ALLOWED or sighting.shadowed) and not int(sighting.behaviour.access) & _UNTOLD


_EVIDENCE: Final = Use.EVIDENCE
_NAMELESS: Final = Use.NAMELESS


def plain_open(behaviour: Behaviour) -> bool:
    """Whether it is the opening of one file, which passed and of which all was told: nearly all that there is."""
    return behaviour.operation is _OPEN and not behaviour.result and not _bits(behaviour.access, _UNTOLD | _PARTIAL)


def use_of(behaviour: Behaviour) -> Use:
    """Which of the four, when nobody spoke against it."""
    if plain_open(behaviour):
        path = behaviour.resource
        return _EVIDENCE if path.startswith("/") and "\0" not in path else _NAMELESS
    if int(behaviour.access) & _UNTOLD:
        # What was left out of it cannot be learnt, and is not to be missed unseen.
        cls = behaviour.cls
        remote = cls is Class.NETWORK and behaviour.operation is not Operation.DNS and behaviour.family not in LOCAL
        missed = not behaviour.result and (cls is Class.FILE or behaviour.operation is Operation.EXEC or remote)
        return Use.NAMELESS if missed else Use.NOTHING
    if behaviour.result and _denied(behaviour):
        return Use.REFUSED
    if behaviour.result and not considered(behaviour):
        return Use.NOTHING
    cls = behaviour.cls
    if cls is Class.PROCESS:
        if behaviour.operation is not Operation.EXEC:
            return Use.NOTHING
        # A program is named exactly or not at all.
        exact = _nameable(behaviour) and not any(UNDECODED.search(path) for path in paths(behaviour))
        return Use.EVIDENCE if exact else Use.NAMELESS
    if cls is Class.FILE:
        return Use.EVIDENCE if _nameable(behaviour) else Use.NAMELESS
    if cls is Class.NETWORK and behaviour.operation is not Operation.DNS:
        return Use.EVIDENCE
    return Use.NOTHING


_TOLD_BYTE: Final = re.compile(r"\\x([89a-f][0-9a-f])")
_NAMES: Final = ("executable", "parent", "resource", "resource2", "script")


def as_judged(behaviour: Behaviour) -> Behaviour:
    """A stored behaviour with its bytes that are not UTF-8 as a judge has them, one surrogate each. Stores carry them as `\\xff`; a file may
    be called that too, so rules for it take both (`components.escape`)."""
    if not (
        "\\x" in behaviour.resource or "\\x" in behaviour.executable or "\\x" in behaviour.parent
        or "\\x" in behaviour.resource2 or "\\x" in behaviour.script
    ):  # fmt: skip
        return behaviour
    whole = {name: _TOLD_BYTE.sub(_surrogate, getattr(behaviour, name)) for name in _NAMES}
    return msgspec.structs.replace(behaviour, **whole)


def _surrogate(told: re.Match[str]) -> str:
    return chr(0xDC00 + int(told[1], 16))


def writes(behaviour: Behaviour) -> bool:
    """Whether a file behaviour is more than reading: what `readOnly` would deny."""
    return changes(behaviour)


def owned(behaviour: Behaviour) -> bool:
    """Whether whoever did it is known to own the file: what `ownerOnly` would let pass."""
    return behaviour.owner != NO_OWNER and behaviour.uid == behaviour.owner


def paths(behaviour: Behaviour) -> tuple[str, ...]:
    """The paths that the judge asks file or process rules about."""
    if behaviour.resource2 and (behaviour.operation in _TWO_PATHS or behaviour.operation is Operation.EXEC):
        return behaviour.resource, behaviour.resource2
    return (behaviour.resource,) if behaviour.operation not in _TWO_PATHS else (behaviour.resource, "")


def _denied(behaviour: Behaviour) -> bool:
    return considered(behaviour) and behaviour.result in (-1, -13)  # EPERM, EACCES


def _nameable(behaviour: Behaviour) -> bool:
    return not int(behaviour.access) & _PARTIAL and all(
        path.startswith("/") and "\0" not in path for path in paths(behaviour)
    )
