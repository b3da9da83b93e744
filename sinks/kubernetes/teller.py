# SPDX-License-Identifier: Apache-2.0
"""The engine that tells a cluster what became of its policies: follows the bus, writes status and Events.

::

    cluster (policy objects), policies, plans, receipts ─► Answers ─► status, when it says something else than the one there
    alerts ─► AlertCounts ─► status, now and then; an Event for a storm of Block
    cluster (pods, namespaces, nodes) ─► AnnotationEvents ─► an Event where a word is not understood

Nothing is kept beside the cluster's own objects: counts go on from the status that is there, which says of which alerts
they are; alerts are committed once their counts are written, and none that comes again is counted twice. What cannot be written is tried again after a back-off, and what nodes enforce never waits for it. Run by the
replica of `hauberk cluster` that works. Neighbours: `answers`, `policy_status`, `policy_hits`, `writes`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from bus.backoff import Backoff
from bus.contract import Bus, Subscription
from bus.follow import Changes, Follower
from bus.paced_log import PacedLog
from bus.side_by_side import SideBySide
from cluster.server import Conflict, Server, TooLarge
from schemas.cluster import PolicyFact
from schemas.cluster import decode as decode_fact
from schemas.enforcement import decode_plan_head, decode_receipt
from schemas.errors import DecodeError, HauberkError, Incompatible
from schemas.policy import reference
from schemas.stats import Gauge
from schemas.topics import ALERTS, CLUSTER, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, POLICIES, Topic
from sinks.kubernetes import event as events
from sinks.kubernetes.annotation_events import AnnotationEvents
from sinks.kubernetes.answers import Answers
from sinks.kubernetes.policy_hits import AlertCounts
from sinks.kubernetes.policy_status import Hits, differs, shortened, status, told
from sinks.kubernetes.settings import ClusterStatusSettings
from sinks.kubernetes.writes import Writes

log = logging.getLogger(__name__)

GROUP: Final = "cluster"
"""Group of the alerts that are counted."""
_OTHERS: Final = (b"pod/", b"namespace/", b"node/", b"service/", b"endpoints/")
"""Keys of facts that are no policy: not followed here."""
_UNTOLD: Final = "Waiting"
"""The word of a status that no Event tells of: it is over in a moment."""


class TellerStats(msgspec.Struct):
    """Plain counts since start. `written`: statuses; `events`; `lost_events`: Events that were not taken; `failures`: writes that are
    tried again; `untold`: statuses that a definition without status, or an object without room, did not take; `waiting`: policies whose status is to be looked at; `undecoded`: records left out."""

    written: int = 0
    events: int = 0
    lost_events: int = 0
    failures: int = 0
    untold: int = 0
    waiting: Gauge = 0
    undecoded: int = 0


class Teller:
    """`run` until cancelled. `problem`: why the cluster cannot be told, "" when it can."""

    def __init__(self, bus: Bus, server: Server, settings: ClusterStatusSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._writes = Writes(server, settings.writes_per_second)
        self._backoff = Backoff(first_seconds=0.2, max_seconds=30.0)
        self._left_out = PacedLog(log)
        self._begin()
        self.stats = TellerStats()
        self.problem = ""

    def _begin(self) -> None:
        self._answers = Answers()
        self._hits = AlertCounts()
        self._there: dict[str, tuple[str, bytes]] = {}
        self._changed = asyncio.Event()
        self._statusless: set[str] = set()
        self._wordy: set[str] = set()

    async def run(self) -> None:
        """From what the cluster's objects say now."""
        self._begin()
        self._there = await self._insist_statuses()
        self._good()
        self._hits.restart({key: _hits_of(_status_of(there)) for key, (_, there) in self._there.items()})
        topics = (CLUSTER, POLICIES, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS)
        follower = Follower(self._bus, topics, wanted=lambda key: not key.startswith(_OTHERS))
        async with SideBySide() as parts:
            parts.start(follower.run(self._apply))
            # Strictly before anything is told: half of the answers would be a status that nobody should see.
            await parts.until(follower.ready.wait())
            parts.start(self._tell_all(), self._count_all())
            if self._settings.events:
                parts.start(AnnotationEvents(self._bus, self._event).run())
            await parts.first()

    async def _insist_statuses(self) -> dict[str, tuple[str, bytes]]:
        attempt = 0
        while True:
            try:
                return await self._writes.statuses()
            except HauberkError as error:
                await self._pause(error, attempt)
            except msgspec.MsgspecError as error:
                await self._pause(DecodeError(f"expected policy objects of the cluster, got: {error}"), attempt)
            attempt += 1

    async def _apply(self, changes: Changes) -> None:
        if changes.whole:
            # What went while the bus was away is touched too: it may have been selected.
            before, self._answers = self._answers, Answers()
            self._answers.touched |= before.policies.keys()
        for topic, record in changes.records:
            key = record.key.decode("utf-8", "replace")
            try:
                self._take(topic, key, record.value)
            except DecodeError as error:
                self.stats.undecoded += 1
                self._left_out.say(logging.WARNING, f"a record is left out of what the cluster is told: {error}")
        if any(topic is CLUSTER for topic, _ in changes.records) or changes.whole:
            self._hits.know(self._answers.policies.keys())
        if self._answers.touched:
            self._changed.set()

    def _take(self, topic: Topic, key: str, value: bytes | None) -> None:
        if topic.name == CLUSTER.name:
            fact = None if value is None else decode_fact(value)
            self._answers.policy(key.removeprefix("policy/"), fact if isinstance(fact, PolicyFact) else None)
        elif topic.name == POLICIES.name:
            self._answers.document(key, value)
        elif topic.name == ENFORCEMENT_DESIRED.name:
            self._answers.plan(key, None if value is None else decode_plan_head(value))
        else:
            self._answers.receipt(key, None if value is None else decode_receipt(value))

    async def _tell_all(self) -> None:
        attempt = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._round()
                attempt = 0
                self._good()
            except HauberkError as error:
                self._changed.set()
                await self._pause(error, attempt)
                attempt += 1

    async def _round(self) -> None:
        """Look at every policy that was touched. What fails is looked at again last, so that it holds up no other."""
        failed: HauberkError | None = None
        for key in in_turns(self._answers.touched):
            self._answers.touched.discard(key)
            self.stats.waiting = len(self._answers.touched)
            try:
                await self._tell(key, hits_alone=False)
            except HauberkError as error:
                self._answers.touched.add(key)
                if failed is not None and str(failed) == str(error):
                    raise
                failed = error
        if failed is not None:
            raise failed

    async def _tell(self, key: str, hits_alone: bool) -> None:
        fact = self._answers.policies.get(key)
        if fact is None:
            self._there.pop(key, None)
            return
        uid, there = self._there.get(key, ("", b"{}"))
        before = _status_of(there)
        if uid != fact.uid:
            # Made anew under the same name: what the one before was told is not its.
            before = {}
            self._hits.forget(key)
        outcome, now = self._answers.outcome(key), _now()
        made = status(fact, outcome, self._hits.hits.get(key, Hits()), before, now)
        other, more = differs(made, before)
        if not (other if hits_alone else more):
            self._there[key] = fact.uid, msgspec.json.encode(before)
            return
        try:
            if not await self._written(fact, made, before):
                return
        except (Conflict, Incompatible) as error:
            if isinstance(error, Incompatible) and await self._writes.still_there(fact):
                self._older(fact)
                return
            # It is gone, or another by now: the watch says so in a moment, and that touches it.
            log.info("the status of %s was not written: %s", reference(key), error)
            return
        self.stats.written += 1
        self._there[key] = fact.uid, msgspec.json.encode(made)
        word = told(fact, outcome)
        if word.word not in (before.get("status"), _UNTOLD) and (before or word.word != "NoEffect"):
            await self._event(
                events.of_policy(fact), "NotEnforced" if word.word == "Partial" else word.word, word.sentence
            )

    async def _written(self, fact: PolicyFact, made: dict[str, Any], before: dict[str, Any]) -> bool:
        """Write `made`, or its short form; False when the object has no room even for that, which is told."""
        try:
            if not await self._writes.status(fact, made):
                self._word_alone(fact)
        except TooLarge:
            # The author's part fills the object: the word and one reason still say what to do.
            brief = shortened(made)
        else:
            return True
        try:
            if brief != shortened(before):
                await self._writes.status(fact, brief)
        except TooLarge as error:
            self.stats.untold += 1
            self._there[fact.policy] = fact.uid, msgspec.json.encode(made)
            log.error(
                "what became of %s is told in no status, `hauberk get policies` has it: %s",
                reference(fact.policy),
                error,
            )
            return False
        return True

    def _word_alone(self, fact: PolicyFact) -> None:
        """The definition of its kind is another's: told once."""
        if fact.kind not in self._wordy:
            self._wordy.add(fact.kind)
            log.warning(
                "expected the definition of %s to keep a whole status, got one that keeps its word alone, as KubeArmor's own does; its policies "
                "are in force as ever, Events tell the reasons, and numbers and hits are told nowhere in the cluster: "
                "`kubectl apply --server-side --force-conflicts -f deploy/kubernetes/crds`, and start `hauberk cluster` again", fact.kind,
            )  # fmt: skip

    def _older(self, fact: PolicyFact) -> None:
        """The definition of its kind is older than statuses: told once, and counted."""
        self.stats.untold += 1
        if fact.kind not in self._statusless:
            self._statusless.add(fact.kind)
            log.error(
                "expected the definition of %s to have a status, got an older one without; its policies are in force as before, and what "
                "became of them is told nowhere: apply deploy/kubernetes/crds and start `hauberk cluster` again", fact.kind,
            )  # fmt: skip

    async def _event(self, subject: events.EventSubject, reason: str, message: str, once: str = "") -> bool:
        """Whether it was taken, or Events are off."""
        if not self._settings.events:
            return True
        try:
            await self._writes.event(subject, reason, message, _now(), once)
        except HauberkError as error:
            self.stats.lost_events += 1
            log.warning(
                "an Event about %s %s was not taken: %s", subject.kind, f"{subject.namespace}/{subject.name}", error
            )
            return False
        self.stats.events += 1
        return True

    async def _count_all(self) -> None:
        attempt = 0
        while True:
            try:
                async with self._bus.subscribe((ALERTS,), GROUP, "latest") as subscription:
                    attempt = 0
                    while True:
                        await self._window(subscription)
            except HauberkError as error:
                # What was taken since the last commit comes again: counts go on from what is written, and from there.
                self._hits.restart({key: _hits_of(_status_of(there)) for key, (_, there) in self._there.items()})
                await self._pause(error, attempt)
                attempt += 1

    async def _window(self, subscription: Subscription) -> None:
        """Count alerts for a while, write what they changed, commit them."""
        clock = asyncio.get_running_loop().time
        ends = clock() + self._settings.hits_seconds
        changed: set[str] = set()
        while (left := ends - clock()) > 0:
            for delivery in await subscription.take(1000, min(left, 5.0)):
                try:
                    changed.add(self._hits.take(delivery))
                except DecodeError:
                    self.stats.undecoded += 1
            if subscription.revoking:
                break
        for key in sorted(changed - {""}):
            await self._insist_hits(key)
        for key, storm in self._hits.storms(self._settings.storm).items():
            if (fact := self._answers.policies.get(key)) is not None:
                await self._event(events.of_policy(fact), "Blocked", storm.sentence)
        await subscription.commit()
        await subscription.release()

    async def _insist_hits(self, key: str) -> None:
        """Write them, however long the API server is away: taken from the bus again, they would be counted twice."""
        attempt = 0
        while True:
            try:
                await self._tell(key, hits_alone=True)
                return
            except HauberkError as error:
                await self._pause(error, attempt)
                attempt += 1

    def _good(self) -> None:
        if self.problem:
            # As loud as the outage was.
            log.warning("the cluster is told again what became of its policies")
        self.problem = ""

    async def _pause(self, error: HauberkError, attempt: int) -> None:
        self.stats.failures += 1
        if str(error) != self.problem:
            log.warning("the cluster cannot be told what became of its policies; what is in force stays: %s", error)
        self.problem = str(error)
        await asyncio.sleep(self._backoff.delay(attempt, 0.5 + random.random() / 2))


def in_turns(keys: Collection[str]) -> list[str]:
    """Keys of policies, one of each namespace after the other: thousands of one do not hold up another's."""
    turn: Counter[str] = Counter()
    ranked = []
    for key in sorted(keys):
        place = key.split("/", 2)[1]
        ranked.append((turn[place], key))
        turn[place] += 1
    return [key for _, key in sorted(ranked)]


def _status_of(there: bytes) -> dict[str, Any]:
    """A status as it stands in an object; what is no object begins at none."""
    found = msgspec.json.decode(there)
    return found if isinstance(found, dict) else {}


def _hits_of(there: dict[str, Any]) -> Hits:
    """Counts go on from those in the status; what is no count there begins at none."""
    found = there.get("hits")
    if not isinstance(found, dict):
        return Hits()
    try:
        return msgspec.convert({name: value for name, value in found.items() if value is not None}, Hits)
    except msgspec.ValidationError:
        return Hits()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
