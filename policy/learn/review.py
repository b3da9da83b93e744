# SPDX-License-Identifier: Apache-2.0
"""What is set apart instead of learnt, with the reason: refused, odd, late. Pure.

*Late* is what appears first when the workload had been known for a while: after three instances ran without it (programs), or after a
time in which nothing new came (everything that the policy of before would deny). A sighting that is odd or late is learnt once two
instances showed it, or when its id is accepted. What a program does that is set apart is set apart with it.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Final

import msgspec

from policy.learn import zones
from policy.learn.components import skeleton
from policy.learn.evidence import Evidence
from policy.learn.rules import word
from policy.learn.sightings import SLOT, Sighting, Use, paths, use, writes
from policy.learn.suspicion import reason
from schemas.identity import Kind
from schemas.operations import Access, Class, Operation

KNOWN: Final = 3
"""Instances after which a program that none of them ran is new."""
TWICE: Final = 2
"""Instances that must have done an odd thing before it is believed."""

_SHADOWED: Final = "a shadow policy would have blocked or told it"

Subject = tuple[str, str, str]
"""What is odd: the class, the path or protocol, the reason."""


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
    """The sightings of one workload's container: what is learnt, what is set apart."""

    evidence: list[Sighting] = []
    apart: list[ReviewItem] = []


def sort_out(
    name: str, sightings: Iterable[Sighting], accepted: Collection[str], quiet_ns: int,
    denied: Callable[[list[Sighting], list[Sighting]], list[Sighting]],
) -> Sorted:  # fmt: skip
    """`name`: the workload's, for the ids. `denied(base, late)`: which of `late` a policy learnt from `base` would deny."""
    evidence: list[Sighting] = []
    items: dict[Subject, _Item] = {}
    for one in sightings:
        match use(one):
            case Use.EVIDENCE:
                evidence.append(one)
            case Use.REFUSED if (heard := _heard(name, one, accepted)) is not None:
                evidence.append(heard)
            case Use.REFUSED:
                why = _SHADOWED if one.shadowed else f"told as {one.status}" if one.status != "Allow" else "denied"
                _put(items, one, why, final=True)
            case Use.NAMELESS:
                untold = one.behaviour.access & Access.UNTOLD
                why = "told without names, for there were too many new ones" if untold else "no rule can name it"
                _put(items, one, why, final=True)
    written: dict[str, int] = {}
    for one in evidence:
        if one.behaviour.cls is Class.FILE and writes(one.behaviour):
            for path in paths(one.behaviour):
                written[path] = min(one.first, written.get(path, one.first))
    begun: dict[str, int] = {}
    for one in evidence:
        begun[one.identity.uid] = min(one.first, begun.get(one.identity.uid, one.first))
    rank = {uid: at for at, uid in enumerate(sorted(begun, key=lambda uid: (begun[uid], uid)))}
    births: dict[str, int] = {}
    started: dict[str, Sighting] = {}
    for one in evidence:
        if one.behaviour.operation is Operation.EXEC:
            known = started.get(one.identity.uid)
            if known is None or _moment(one) < _moment(known):
                started[one.identity.uid] = one
            for path in paths(one.behaviour):
                births[path] = min(births.get(path, 1 << 31), rank[one.identity.uid])
    odd: dict[Subject, list[Sighting]] = {}
    kept: list[Sighting] = []
    for one in evidence:
        # What a container was started with is what it is for, also a tool that would be odd later.
        entry = one.identity.kind is Kind.CONTAINER and started.get(one.identity.uid) is one
        why = reason(one, written, entry=entry)
        if (
            not why
            and one.behaviour.operation is Operation.EXEC
            and max(births[path] for path in paths(one.behaviour)) >= KNOWN
        ):
            why = f"a program that the first {KNOWN} instances did not run"
        if why:
            odd.setdefault(_subject(one, why), []).append(one)
        else:
            kept.append(one)
    for subject, some in odd.items():
        if len({one.identity.uid for one in some}) >= TWICE or _ident(name, subject) in accepted:
            kept += some
        else:
            for one in some:
                _put(items, one, subject[2])
    run = {path for one in kept if one.behaviour.operation is Operation.EXEC for path in paths(one.behaviour)}
    strangers = {
        resource: item.evidence.first for (cls, resource, _), item in items.items()
        if cls == "Process" and not item.final and resource not in run
    }  # fmt: skip
    done: list[Sighting] = []
    for one in kept:
        if (
            one.behaviour.cls is not Class.PROCESS
            and strangers.get(one.behaviour.executable, one.first + 1) <= one.first
        ):
            _put(items, one, f"done by `{one.behaviour.executable}`, which is set apart")
        else:
            done.append(one)
    done = _after_quiet(name, done, items, accepted, quiet_ns, denied)
    apart = [item.finish(name, subject) for subject, item in items.items()]
    apart.sort(key=lambda item: (item.reason, item.operation, item.resource))
    return Sorted(evidence=done, apart=apart)


def _moment(one: Sighting) -> tuple[int, str, str]:
    return one.first, one.behaviour.resource, one.behaviour.executable


def _after_quiet(
    name: str, evidence: list[Sighting], items: dict[Subject, _Item], accepted: Collection[str], quiet_ns: int,
    denied: Callable[[list[Sighting], list[Sighting]], list[Sighting]],
) -> list[Sighting]:  # fmt: skip
    since = quiet_since(evidence, quiet_ns)
    if since is None:
        return evidence
    base = [one for one in evidence if one.first <= since]
    late = [one for one in evidence if one.first > since]
    refused: dict[Subject, list[Sighting]] = {}
    why = "new after the workload had been doing nothing new"
    for one in denied(base, late):
        refused.setdefault(_subject(one, why), []).append(one)
    out: set[int] = set()
    for subject, some in refused.items():
        if len({one.identity.uid for one in some}) < TWICE and _ident(name, subject) not in accepted:
            for one in some:
                _put(items, one, why)
                out.add(id(one))
    return [one for one in evidence if id(one) not in out]


def quiet_since(evidence: Iterable[Sighting], quiet_ns: int) -> int | None:
    """When (Unix ns) a workload had been doing nothing new for `quiet_ns` while it ran; None when it never had.

    New is a program, a protocol, a directory: names of files alone go on changing."""
    births: dict[tuple[str, str], int] = {}
    end = 0
    for one in evidence:
        end = max(end, one.last)
        for feature in _features(one):
            births[feature] = min(one.first, births.get(feature, one.first))
    moments = sorted(set(births.values()))
    if not moments:
        return None
    for before, after in zip(moments, [*moments[1:], end], strict=True):
        if after - before >= quiet_ns:
            return before + quiet_ns
    return None


def _features(one: Sighting) -> list[tuple[str, str]]:
    behaviour = one.behaviour
    if behaviour.cls is Class.NETWORK:
        return [("socket", word(one))]
    if behaviour.cls is Class.PROCESS:
        return [("exec", path) for path in paths(behaviour)]
    kind = "write" if writes(behaviour) else "read"
    return [(kind, _directory(posixpath.dirname(path))) for path in paths(behaviour)]


@lru_cache(maxsize=65536)
def _directory(path: str) -> str:
    """A directory by the kinds of its names."""
    made_up = zones.temporary(path)
    return "/".join(skeleton(name, temporary=made_up) for name in path.split("/"))


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


def _subject(one: Sighting, why: str) -> Subject:
    behaviour = one.behaviour
    resource = word(one) if behaviour.cls is Class.NETWORK else behaviour.resource2 or behaviour.resource
    if behaviour.cls is Class.PROCESS:
        resource = behaviour.resource
    return behaviour.cls.label, resource, why


def _heard(name: str, one: Sighting, accepted: Collection[str]) -> Sighting | None:
    """What only a shadow policy spoke against, once somebody has accepted it."""
    plain = msgspec.structs.replace(one, shadowed=False)
    if not one.shadowed or use(plain) is not Use.EVIDENCE or _ident(name, _subject(one, _SHADOWED)) not in accepted:
        return None
    return plain


def _put(items: dict[Subject, _Item], one: Sighting, why: str, *, final: bool = False) -> None:
    subject = _subject(one, why)
    item = items.get(subject)
    if item is None:
        item = items[subject] = _Item(final)
    item.operations.add(one.behaviour.operation.name.lower())
    item.evidence.add(one.count, one.first, one.last, (one.identity.uid, one.first // SLOT), one.behaviour.executable)
    item.pods.add(one.identity.pod or one.identity.container_name or one.identity.node)


def _ident(name: str, subject: Subject) -> str:
    return hashlib.blake2b("\0".join((name, *subject)).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
