# SPDX-License-Identifier: Apache-2.0
"""The one place where identities of nodes and facts of a cluster come together: container -> pod -> owner, namespace, node.

A node says what runs in a cgroup, as its runtime told it; the cluster says what that pod is. Judge, planner and telling read
the joined identity, so that all of them select by the same labels. Facts may come before or after the container, and again:
each call returns the identities that are other than before. Pure. Neighbours: `policy.cluster_pods` (which pod), `schemas.cluster`,
`schemas.identity`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policy.cluster_pods import ClusterPods, asked, names
from schemas.cluster import Fact, NamespaceFact, NodeFact, PodFact, decode
from schemas.identity import Identity, Kind

Joined = list[tuple[bytes, Identity]]
"""Key on `inventory.v1` and identity."""


class ClusterFacts:
    """Facts by key, and the identities they are joined to; of services and what is over there is none. An ended pod's fact stays while a container of it is known."""

    def __init__(self) -> None:
        self._facts: dict[bytes, Fact] = {}
        self._pods = ClusterPods()
        self._gone: set[bytes] = set()
        self._told: dict[bytes, Identity] = {}
        self._joined: dict[bytes, Identity] = {}
        self._concerned: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._facts) + len(self._pods)

    def identity(self, key: bytes, identity: Identity | None) -> Identity | None:
        """What a node told (None: it is gone), joined. The caller keeps what it needs of those that are gone."""
        before = self._told.pop(key, None)
        self._joined.pop(key, None)
        left = set(_concerns(before)) if before is not None else set()
        if identity is not None:
            self._told[key] = identity
            for fact in _concerns(identity):
                self._concerned.setdefault(fact, set()).add(key)
                left.discard(fact)
        for fact in left:
            self._leave(fact, key)
        if identity is None:
            return None
        self._joined[key] = joined = self._join(identity)
        return joined

    def _leave(self, name: bytes, key: bytes) -> None:
        keys = self._concerned[name]
        keys.discard(key)
        if not keys:
            del self._concerned[name]
            for pod in self._pods.named(name):
                if pod in self._gone:
                    self._remove(pod)

    def _remove(self, pod: bytes) -> None:
        self._gone.discard(pod)
        self._pods.remove(pod)

    def fact(self, key: bytes, value: bytes | None) -> Joined:
        """One record of `cluster.v1`; the identities that it changed. Raises DecodeError."""
        fact = None if value is None else decode(value)
        before = self._pods.get(key)
        touched = {key, *(names(before) if before is not None else ())}
        if isinstance(fact, PodFact):
            self._pods.put(key, fact)
            self._gone.discard(key)
            touched |= {*names(fact)}
            for other in self._others(key, fact):
                if other in self._gone:
                    self._remove(other)
        elif isinstance(fact, NamespaceFact) or (isinstance(fact, NodeFact) and not fact.ended):
            self._facts[key] = fact
        elif fact is not None:
            return []
        elif before is None:
            self._facts.pop(key, None)
        elif any(self._concerned.get(name) for name in names(before)) and not self._others(key, before):
            # Its containers are about to end; until then they are what they were.
            self._gone.add(key)
            return []
        else:
            self._remove(key)
        return self._again({told for name in touched for told in self._concerned.get(name, ())})

    def _others(self, key: bytes, pod: PodFact) -> list[bytes]:
        """Other mirrors of the same static pod, before it or after it."""
        return [other for name in names(pod) for other in self._pods.named(name) if other != key]

    def _again(self, keys: Iterable[bytes]) -> Joined:
        changed: Joined = []
        for key in sorted(keys):
            joined = self._join(self._told[key])
            if joined != self._joined[key]:
                self._joined[key] = joined
                changed.append((key, joined))
        return changed

    def _join(self, told: Identity) -> Identity:
        more: dict[str, object] = {}
        node = self._facts.get(_node(told.node))
        if isinstance(node, NodeFact):
            more["node_labels"] = {**told.node_labels, **node.labels}
            if told.kind is not Kind.CONTAINER:
                more["annotations"] = {**told.annotations, **node.annotations}
        if told.pod_uid:
            pod = self._pods.of(told)
            if pod is not None:
                more |= {
                    "pod": pod.name, "labels": pod.labels, "annotations": pod.annotations, "owner": pod.owner, "orchestrated": True,
                }  # fmt: skip
            namespace = self._facts.get(_namespace(told.namespace))
            if isinstance(namespace, NamespaceFact):
                more["namespace_annotations"] = namespace.annotations
        return msgspec.structs.replace(told, **more) if more else told


def _concerns(told: Identity) -> tuple[bytes, ...]:
    """Keys of the facts that are joined to it, whether or not they are there."""
    if not told.pod_uid:
        return (_node(told.node),)
    return (_node(told.node), *asked(told), _namespace(told.namespace))


def _node(name: str) -> bytes:
    return f"node/{name}".encode()


def _namespace(name: str) -> bytes:
    return f"namespace/{name}".encode()
