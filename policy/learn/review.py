# SPDX-License-Identifier: Apache-2.0
"""What is set apart instead of learnt, with the reason: refused, odd, late. Pure.

*Late* is what appears first when the workload had been known for a while: after three instances ran without it (programs), or after a
time in which nothing new came (everything that the policy of before would deny). A sighting that is odd or late is learnt once two
instances showed it, or when its id is accepted. What a program does that is set apart is set apart with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final

import msgspec

from policy.learn import zones
from policy.learn.components import skeleton
from policy.learn.evidence import Evidence
from policy.learn.rules import word
from policy.learn.sightings import (
    Shown,
    Sighting,
    Use,
    by_behaviour,
    paths,
    refused,
    use,
    use_of,
)
from policy.learn.suspicion import executed, reason
from schemas.behaviour import Behaviour
from schemas.identity import Kind
from schemas.operations import Access, Class, Operation

KNOWN: Final = 3
"""Instances after which a program that none of them ran is new."""
TWICE: Final = 2
"""Instances that must have done an odd thing before it is believed."""

UNTOLD: Final = "told without names, for there were too many new ones"
_READ, _WRITE = "read", "write"
_PLACES: Final = frozenset((_READ, _WRITE))
_SHADOWED: Final = "a shadow policy or a baseline spoke against it"

Subject = tuple[str, str, str]
"""What is odd: the class, the path or protocol, the reason."""
Moment = tuple[int, str, str]
"""When a program was first executed (Unix ns), which one, by whom: what puts programs of one moment in an order."""


class ReviewItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something set apart. `ident` is the same in every run: what `accept` takes. `first`/`last`: Unix ns."""

    ident: str
    reason: str
    operation: str
    resource: str
    sources: tuple[str, ...]
    count: int
    first: int
    last: int
    instances: int
    pods: tuple[str, ...]


class Sorted(msgspec.Struct, kw_only=True):
    """The sightings of one workload's container: what is learnt, what is set apart. `accepted`: ids that were accepted and that something
    here has or would have had."""

    shown: list[Shown] = []
    apart: list[ReviewItem] = []
    accepted: set[str] = set()


def sort_out(
    name: str, shown: Iterable[Shown], accepted: Collection[str], quiet_ns: int,
    denied: Callable[[list[Shown], list[Shown]], list[Sighting]],
) -> Sorted:  # fmt: skip
    """`name`: the workload's, for the ids. `denied(base, late)`: which of `late` a policy learnt from `base` would deny."""
    grouped: list[Shown] = []
    items: dict[Subject, _Item] = {}
    answers = _Accepted(name, accepted)
    for each in shown:
        behaviour = each.behaviour
        plain = use_of(behaviour)
        if not each.spoken:
            if plain is Use.EVIDENCE:
                grouped.append(each)
                continue
            if plain is Use.NOTHING:
                continue
        heard: list[Sighting] = []
        for one in each.some:
            match Use.REFUSED if refused(one) else plain:
                case Use.EVIDENCE:
                    heard.append(one)
                case Use.REFUSED if (taken := _heard(one, answers)) is not None:
                    heard.append(taken)
                case Use.REFUSED:
                    why = _SHADOWED if one.shadowed else f"told as {one.status}" if one.status != "Allow" else "denied"
                    _put(items, one, why, final=True)
                case Use.NAMELESS:
                    untold = int(behaviour.access) & int(Access.UNTOLD)
                    why = UNTOLD if untold else "no rule can name it"
                    _put(items, one, why, final=True)
        if heard:
            grouped.append(Shown(behaviour, heard))
    written: dict[str, int] = {}
    for each in grouped:
        if each.write:
            first = each.first
            for path in paths(each.behaviour):
                known = written.get(path)
                if known is None or first < known:
                    written[path] = first
    entries, births = _starts(grouped)
    odd: dict[Subject, list[Sighting]] = {}
    kept: list[Shown] = []
    for each in grouped:
        behaviour = each.behaviour
        if behaviour.operation is not Operation.EXEC:
            why = reason(behaviour, each.write)
            if why:
                odd.setdefault(_subject(behaviour, why), []).extend(each.some)
            else:
                kept.append(each)
            continue
        late = max(births[path] for path in paths(behaviour)) >= KNOWN
        plainly: list[Sighting] = []
        for one in each.some:
            # What a container was started with is what it is for, also a tool that would be odd later.
            entry = one.identity.kind is Kind.CONTAINER and entries[one.identity.uid] == _moment(one)
            why = executed(one, written, entry=entry)
            if not why and late:
                why = f"a program that the first {KNOWN} instances did not run"
            (odd.setdefault(_subject(behaviour, why), []) if why else plainly).append(one)
        if plainly:
            kept.append(Shown(behaviour, plainly))
    for subject, some in odd.items():
        if answers.has(subject) or len({one.identity.uid for one in some}) >= TWICE:
            kept += by_behaviour(some)
        else:
            for one in some:
                _put(items, one, subject[2])
    kept = _without_strangers(kept, items)
    kept = _after_quiet(kept, items, answers, quiet_ns, denied)
    apart = [item.finish(name, subject) for subject, item in items.items()]
    apart.sort(key=lambda item: (item.reason, item.operation, item.resource))
    return Sorted(shown=kept, apart=apart, accepted=answers.met)


def _without_strangers(kept: list[Shown], items: dict[Subject, _Item]) -> list[Shown]:
    """What programs did that are set apart is set apart with them, from the moment on at which they were first run."""
    run = {path for each in kept if each.behaviour.operation is Operation.EXEC for path in paths(each.behaviour)}
    strangers = {
        resource: item.evidence.first for (cls, resource, _), item in items.items()
        if cls == "Process" and not item.final and resource not in run
    }  # fmt: skip
    if not strangers:
        return kept
    done: list[Shown] = []
    for each in kept:
        since = strangers.get(each.behaviour.executable) if each.cls is not Class.PROCESS else None
        if since is None:
            done.append(each)
            continue
        for one in each.some:
            if since <= one.first:
                _put(items, one, f"done by `{each.behaviour.executable}`, which is set apart")
        _keep(done, each, since - 1)
    return done


def _keep(into: list[Shown], each: Shown, last: int) -> None:
    """What of it was first seen at `last` (Unix ns) at the latest."""
    if each.latest <= last:
        into.append(each)
    elif each.first <= last:
        into.append(Shown(each.behaviour, [one for one in each.some if one.first <= last]))


def _starts(grouped: Iterable[Shown]) -> tuple[dict[str, Moment], dict[str, int]]:
    """(the first program of each instance; for each program, how many instances had begun when the first of those that ran it did)."""
    begun: dict[str, int] = {}
    run: list[Shown] = []
    for each in grouped:
        if each.behaviour.operation is Operation.EXEC:
            run.append(each)
        for one in each.some:
            uid = one.identity.uid
            known = begun.get(uid)
            if known is None or one.first < known:
                begun[uid] = one.first
    rank = {uid: at for at, uid in enumerate(sorted(begun, key=lambda uid: (begun[uid], uid)))}
    started: dict[str, Moment] = {}
    births: dict[str, int] = {}
    for each in run:
        for one in each.some:
            uid = one.identity.uid
            started[uid] = min(_moment(one), started.get(uid, _moment(one)))
            for path in paths(each.behaviour):
                births[path] = min(births.get(path, 1 << 31), rank[uid])
    return started, births


def _moment(one: Sighting) -> Moment:
    return one.first, one.behaviour.resource, one.behaviour.executable


def _after_quiet(
    grouped: list[Shown], items: dict[Subject, _Item], accepted: _Accepted, quiet_ns: int,
    denied: Callable[[list[Shown], list[Shown]], list[Sighting]],
) -> list[Shown]:  # fmt: skip
    since = quiet_since(grouped, quiet_ns)
    if since is None:
        return grouped
    base: list[Shown] = []
    late: list[Shown] = []
    for each in grouped:
        _keep(base, each, since)
        if each.first > since:
            late.append(each)
        elif each.latest > since:
            late.append(Shown(each.behaviour, [one for one in each.some if one.first > since]))
    refused: dict[Subject, list[Sighting]] = {}
    why = "new after the workload had been doing nothing new"
    for one in denied(base, late):
        refused.setdefault(_subject(one.behaviour, why), []).append(one)
    out: set[int] = set()
    for subject, some in refused.items():
        if not accepted.has(subject) and len({one.identity.uid for one in some}) < TWICE:
            for one in some:
                _put(items, one, why)
                out.add(id(one))
    if not out:
        return grouped
    return [part for each in grouped if (part := each.only(lambda one: id(one) not in out)) is not None]


def quiet_since(grouped: Sequence[Shown], quiet_ns: int) -> int | None:
    """When (Unix ns) a workload had been doing nothing new for `quiet_ns` while it ran; None when it never had.

    New is a program, a protocol, a directory: names of files alone go on changing."""
    begin = min((each.first for each in grouped), default=0)
    end = max((each.last for each in grouped), default=0)
    if end - begin < quiet_ns:
        # Nothing can have been quiet for longer than all of it took.
        return None
    births: dict[tuple[str, str], int] = {}
    for each in grouped:
        first = each.first
        if each.cls is Class.FILE:
            kind = _WRITE if each.write else _READ
            features = [(kind, path[: path.rfind("/")]) for path in paths(each.behaviour)]
        else:
            features = _features(each.behaviour)
        for feature in features:
            known = births.get(feature)
            if known is None or first < known:
                births[feature] = first
    if not births:
        return None
    # From the oldest on, and no further than to the first quiet time: to say of what kind a directory is takes long.
    met: set[tuple[str, str]] = set()
    before = min(births.values())
    for (kind, name), first in sorted(births.items(), key=itemgetter(1)):
        if first - before >= quiet_ns:
            return before + quiet_ns
        feature = (kind, _directory(name or "/")) if kind in _PLACES else (kind, name)
        if feature not in met:
            met.add(feature)
            before = first
    return before + quiet_ns if end - before >= quiet_ns else None


def _features(behaviour: Behaviour) -> list[tuple[str, str]]:
    if behaviour.cls is Class.NETWORK:
        return [("socket", word(behaviour))]
    return [("exec", path) for path in paths(behaviour)]


@lru_cache(maxsize=65536)
def _directory(path: str) -> str:
    """A directory by the kinds of its names."""
    made_up = zones.temporary(path)
    return "/".join(skeleton(name, made_up) for name in path.split("/"))


class _Item:
    def __init__(self, final: bool) -> None:
        self.operations: set[str] = set()
        self.final = final
        self.evidence = Evidence()
        self.pods: set[str] = set()

    def finish(self, name: str, subject: Subject) -> ReviewItem:
        found = self.evidence
        return ReviewItem(
            ident=_ident(name, subject), reason=subject[2], operation=",".join(sorted(self.operations)), resource=subject[1],
            sources=tuple(sorted(found.sources)), count=found.count, first=found.first, last=found.last,
            instances=len(found.instances), pods=tuple(sorted(self.pods)),
        )  # fmt: skip


def _subject(behaviour: Behaviour, why: str) -> Subject:
    resource = word(behaviour) if behaviour.cls is Class.NETWORK else behaviour.resource2 or behaviour.resource
    if behaviour.cls is Class.PROCESS:
        resource = behaviour.resource
    return behaviour.cls.label, resource, why


class _Accepted:
    """What somebody accepted, of one workload. `met`: which of it there was."""

    def __init__(self, name: str, idents: Collection[str]) -> None:
        self._name = name
        self._idents = idents
        self.met: set[str] = set()

    def has(self, subject: Subject) -> bool:
        """Whether this was accepted."""
        if not self._idents or (ident := _ident(self._name, subject)) not in self._idents:
            return False
        self.met.add(ident)
        return True


def _heard(one: Sighting, accepted: _Accepted) -> Sighting | None:
    """What only a shadow policy spoke against, once somebody has accepted it."""
    plain = msgspec.structs.replace(one, shadowed=False)
    if not one.shadowed or use(plain) is not Use.EVIDENCE or not accepted.has(_subject(one.behaviour, _SHADOWED)):
        return None
    return plain


def _put(items: dict[Subject, _Item], one: Sighting, why: str, *, final: bool = False) -> None:
    subject = _subject(one.behaviour, why)
    item = items.get(subject)
    if item is None:
        item = items[subject] = _Item(final)
    item.operations.add(one.behaviour.operation.name.lower())
    item.evidence.add(one.count, one.first, one.last, one.identity.uid, one.behaviour.executable)
    item.pods.add(one.identity.pod or one.identity.container_name or one.identity.node)


def _ident(name: str, subject: Subject) -> str:
    return hashlib.blake2b("\0".join((name, *subject)).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
