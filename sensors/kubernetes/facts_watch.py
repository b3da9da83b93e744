# SPDX-License-Identifier: Apache-2.0
"""Pods, namespaces, nodes, services, endpoints and owners as they change, made into facts; a fact that is as before is not published.

Each kind is told of by a reflector: a whole list, which alone may say that something is gone, then changes. A pod's fact is
made again when an owner above it becomes known. Neighbours: `facts` (the pure part), `published` (the way to the bus).
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.paced_log import PacedLog
from cluster.reflector import Apply, Resource, decoded
from schemas.cluster import encode
from sensors.kubernetes import facts
from sensors.kubernetes.ended_facts import EndedFacts
from sensors.kubernetes.objects import (
    EndpointSliceObject,
    MetadataOnly,
    NodeObject,
    ObjectMeta,
    PodObject,
    ServiceObject,
)
from sensors.kubernetes.published import Published
from sensors.misread import Misread

log = logging.getLogger(__name__)

PODS: Final = Resource(name="pods", path="/api/v1/pods", kind=PodObject)
OWNERS: Final = (
    Resource(name="replicasets", path="/apis/apps/v1/replicasets", metadata=True, kind=MetadataOnly),
    Resource(name="jobs", path="/apis/batch/v1/jobs", metadata=True, kind=MetadataOnly),
)
"""Followed because they have owners themselves: a Deployment, a CronJob."""
NAMESPACES: Final = Resource(name="namespaces", path="/api/v1/namespaces", metadata=True, kind=MetadataOnly)
NODES: Final = Resource(name="nodes", path="/api/v1/nodes", kind=NodeObject)
SERVICES: Final = Resource(name="services", path="/api/v1/services", kind=ServiceObject)
ENDPOINTS: Final = Resource(
    name="endpointslices", path="/apis/discovery.k8s.io/v1/endpointslices", kind=EndpointSliceObject
)

_metadata = decoded(MetadataOnly)
_pod = decoded(PodObject)


class FactsWatch:
    """`applies`: what each reflector is to call. `undecoded`: objects that could not be read; `problem`: the last of them. `cut`: times that
    an object had more labels than are kept. `misread`: annotations that are not understood."""

    def __init__(self, published: Published, ended: EndedFacts, clock: Callable[[], float] = time.time) -> None:
        self._published = published
        self._ended = ended
        self._clock = clock
        self._pods: dict[str, PodObject] = {}
        self._owners: dict[str, dict[str, MetadataOnly]] = {one.name: {} for one in OWNERS}
        self._owned: dict[str, set[str]] = {}
        self._told_cut = PacedLog(log)
        self.misread = Misread()
        self.undecoded = 0
        self.cut = 0
        self.problem = ""

    @property
    def applies(self) -> list[tuple[Resource, Apply]]:
        """Owners first: a pod's first fact then names its Deployment."""
        return [
            *((resource, self._owners_of(resource.name)) for resource in OWNERS),
            (NAMESPACES, self._each(b"namespace/", _metadata, facts.namespace)),
            (NODES, self._each(b"node/", decoded(NodeObject), facts.node, ends=True)),
            (SERVICES, self._each(b"service/", decoded(ServiceObject), facts.service, ends=True)),
            (ENDPOINTS, self._each(b"endpoints/", decoded(EndpointSliceObject), facts.endpoints)),
            (PODS, self._pods_changed),
        ]

    def _each(
        self, prefix: bytes, decode: Callable[[msgspec.Raw], Any], fact: Callable[[Any], Any], *, ends: bool = False
    ) -> Apply:
        """`ends`: what is over is told for a while."""

        def apply(whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
            seen: set[bytes] = set()
            complete = True
            for there, raw in changes:
                try:
                    found = decode(raw)
                    one = fact(found)
                    value = encode(one)
                    self._look(found.metadata)
                except (msgspec.MsgspecError, ValueError) as error:
                    complete = False
                    self._unreadable(prefix, error)
                    continue
                seen.add(one.key)
                if there and ends and self._published.value(one.key) != value:
                    self._ended.told(one, self._clock())
                if there:
                    self._published.put(one.key, value)
                else:
                    gone(one.key)
                self.misread.look(one.key, one.key.decode(), getattr(one, "annotations", None) if there else None)
            if whole and complete:
                self.misread.only(prefix, seen)
                for key in self._published.keys(prefix) - seen:
                    if key not in self._ended:
                        gone(key)

        def gone(key: bytes) -> None:
            if ends:
                self._ended.gone(key, self._clock())
            else:
                self._published.put(key, None)

        return apply

    def _look(self, meta: ObjectMeta) -> None:
        if facts.cut(meta):
            self.cut += 1
            self._told_cut.say(
                logging.WARNING,
                f"expected at most {facts.MOST_LABELS} bytes of labels of {meta.namespace}/{meta.name}, got more: the longest are left out of what "
                "is known of it, and no policy selects by them",
            )

    def _owners_of(self, kind: str) -> Apply:
        mine = self._owners[kind]

        def apply(whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
            seen: set[str] = set()
            for there, raw in changes:
                try:
                    one = _metadata(raw)
                except (msgspec.MsgspecError, ValueError) as error:
                    self._unreadable(kind.encode(), error)
                    continue
                uid = one.metadata.uid
                seen.add(uid)
                before = mine.get(uid)
                if not there:
                    mine.pop(uid, None)
                elif before is None or before.metadata.owner_references != one.metadata.owner_references:
                    mine[uid] = MetadataOnly(msgspec.structs.replace(one.metadata, annotations=None, labels=None))
                    for pod in self._owned.get(uid, ()):
                        self._tell(self._pods[pod])
            if whole:
                for uid in mine.keys() - seen:
                    del mine[uid]

        return apply

    def _pods_changed(self, whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
        seen: set[str] = set()
        complete = True
        for there, raw in changes:
            try:
                one = _pod(raw)
                seen.add(one.metadata.uid)
                self._forget(one.metadata.uid)
                if there:
                    self._look(one.metadata)
                    one = facts.trimmed(one)
                    self._pods[one.metadata.uid] = one
                    for reference in one.metadata.owner_references or ():
                        self._owned.setdefault(reference.uid, set()).add(one.metadata.uid)
                    self._tell(one)
                else:
                    self._ended.gone(f"pod/{one.metadata.uid}".encode(), self._clock())
                    self.misread.look(f"pod/{one.metadata.uid}".encode(), "", None)
            except (msgspec.MsgspecError, ValueError) as error:
                complete = False
                self._unreadable(b"pod/", error)
        if whole and complete:
            for uid in self._pods.keys() - seen:
                self._forget(uid)
            there_are = {f"pod/{uid}".encode() for uid in seen}
            self.misread.only(b"pod/", there_are)
            for key in self._published.keys(b"pod/") - there_are:
                self._ended.gone(key, self._clock())

    def sweep(self) -> None:
        """Remove the facts of what has been over for long enough."""
        self._ended.sweep(self._clock(), self._pods.keys())

    def _forget(self, uid: str) -> None:
        known = self._pods.pop(uid, None)
        for reference in (known.metadata.owner_references if known else None) or ():
            owned = self._owned.get(reference.uid, set())
            owned.discard(uid)
            if not owned:
                self._owned.pop(reference.uid, None)

    def _tell(self, one: PodObject) -> None:
        key = f"pod/{one.metadata.uid}".encode()
        ended = self._ended.since(key, self._clock()) if facts.over(one) else 0.0
        fact = facts.pod(one, ChainMap(*self._owners.values()), ended)
        self._published.put(fact.key, encode(fact))
        self.misread.look(fact.key, f"pod/{fact.namespace}/{fact.name}", None if ended else fact.annotations)

    def _unreadable(self, kind: bytes, error: Exception) -> None:
        self.undecoded += 1
        said = f"expected a {kind.decode().strip('/')} as the API reference describes it, got: {error}; what was known of it stays"
        if said != self.problem:
            log.warning("%s", said)
        self.problem = said
