# SPDX-License-Identifier: Apache-2.0
"""Annotations of pods, namespaces and nodes that are not understood, told to whoever wrote them: as an Event on the object.

What many pods of a namespace have alike is one Event, on the first of them. It is said once while it is there: facts are published when
they change alone, so a list that is read again says nothing, and a replica that takes over finds the Event that is there. When that pod
goes and others still have it, the next one is told. Neighbours: `schemas.workload_annotations` (what is understood), `teller` (who runs it).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from bus.contract import Bus
from bus.follow import Changes, Follower
from bus.paced_log import PacedLog
from bus.rest import until_look
from schemas.cluster import NamespaceFact, NodeFact, PodFact, decode
from schemas.errors import DecodeError
from schemas.topics import CLUSTER
from schemas.workload_annotations import misread
from sinks.kubernetes.event import EventSubject, of

log = logging.getLogger(__name__)

REASON: Final = "AnnotationNotUnderstood"
MOST: Final = 20
"""Sentences about pods of one namespace that are told at a time: who may make pods may write another word into each."""
_FOLLOWED: Final = (b"pod/", b"namespace/", b"node/")
_AGAIN: Final = 30.0
"""Seconds until what could not be said is tried again."""
_TOGETHER: Final = (0.2, 2.0)
"""Seconds: pods of one rollout come together."""

Say = Callable[[EventSubject, str, str, str], Awaitable[bool]]
"""`await say(subject, reason, message, once)`: whether it was taken."""


class Alike(NamedTuple):
    """What is told as one: objects of a kind in a namespace that have the same sentence."""

    kind: str
    namespace: str
    sentence: str


class AnnotationEvents:
    """`run` until cancelled."""

    def __init__(self, bus: Bus, say: Say) -> None:
        self._follower = Follower(bus, (CLUSTER,), wanted=lambda key: key.startswith(_FOLLOWED))
        self._say = say
        self._left_out = PacedLog(log)
        self._members: dict[Alike, dict[bytes, EventSubject]] = {}
        self._said: dict[bytes, tuple[Alike, ...]] = {}
        self._told: dict[tuple[str, str], dict[Alike, bytes]] = {}
        self._unsaid: set[Alike] = set()

    async def run(self) -> None:
        """Follow the cluster's facts."""
        await self._follower.run(self._apply, wait=lambda: _AGAIN if self._unsaid else until_look(), together=_TOGETHER)

    async def _apply(self, changes: Changes) -> None:
        touched, self._unsaid = self._unsaid, set()
        if changes.whole:
            touched |= self._members.keys()
            self._members, self._said = {}, {}
        for _, record in changes.records:
            try:
                touched |= self._take(record.key, record.value)
            except DecodeError as error:
                self._left_out.say(
                    logging.WARNING, f"a fact is left out of what the cluster is told of annotations: {error}"
                )
        for one in sorted(touched):
            await self._tell(one)

    def _take(self, key: bytes, value: bytes | None) -> set[Alike]:
        """What is other than before. Raises DecodeError."""
        fact = None if value is None else decode(value)
        now: tuple[Alike, ...] = ()
        if isinstance(fact, PodFact | NamespaceFact | NodeFact) and not getattr(fact, "ended", 0.0):
            subject = of(fact)
            now = tuple(Alike(subject.kind, subject.namespace, sentence) for sentence in misread(fact.annotations))
            for one in now:
                self._members.setdefault(one, {})[key] = subject
        before = self._said.pop(key, ())
        if now:
            self._said[key] = now
        for one in set(before) - set(now):
            del self._members[one][key]
            if not self._members[one]:
                del self._members[one]
        return {*before, *now}

    async def _tell(self, one: Alike) -> None:
        members = self._members.get(one, {})
        place = one.kind, one.namespace
        told = self._told.get(place, {})
        if told.get(one) in members:
            return
        told.pop(one, None)
        if not told:
            self._told.pop(place, None)
        if not members or len(told) >= MOST:
            return
        # By name: another replica finds the same one, and its Event.
        key = min(members, key=lambda member: (members[member].name, member))
        more = len(members) - 1
        others = (
            f"; {more} more {one.kind.lower()}{'s' * (more != 1)} here ha{'ve' if more != 1 else 's'} the same"
            if more
            else ""
        )
        message = f"{one.sentence}; it changes nothing, what is in force without it stays{others}"
        if await self._say(members[key], REASON, message, one.sentence):
            self._told.setdefault(place, {})[one] = key
        else:
            self._unsaid.add(one)
