# SPDX-License-Identifier: Apache-2.0
"""The one place where identities of nodes and facts of a cluster come together: container -> pod -> owner, namespace, node.

A node says what runs in a cgroup, as its runtime told it; the cluster says what that pod is. Judge, planner and telling read
the joined identity, so that all of them select by the same labels. Facts may come before or after the container, and again:
each call returns the identities that are other than before. Pure. Neighbours: `schemas.cluster`, `schemas.identity`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.cluster import Fact, NamespaceFact, NodeFact, PodFact, decode
from schemas.identity import Identity, Kind

Joined = list[tuple[bytes, Identity]]
"""Key on `inventory.v1` and identity."""


class ClusterFacts:
    """Facts by key, and the identities they are joined to. An ended pod's fact stays while a container of it is known."""

    def __init__(self) -> None:
        self._facts: dict[bytes, Fact] = {}
        self._gone: set[bytes] = set()
        self._told: dict[bytes, Identity] = {}
        self._joined: dict[bytes, Identity] = {}
        self._concerned: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._facts)

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

    def _leave(self, fact: bytes, key: bytes) -> None:
        keys = self._concerned[fact]
        keys.discard(key)
        if not keys:
            del self._concerned[fact]
            if fact in self._gone:
                self._gone.discard(fact)
                del self._facts[fact]

    def fact(self, key: bytes, value: bytes | None) -> Joined:
        """One record of `cluster.v1`; the identities that it changed. Raises DecodeError."""
        if value is None:
            if key not in self._facts:
                return []
            if self._concerned.get(key) and key.startswith(b"pod/"):
                # Its containers are about to end; until then they are what they were.
                self._gone.add(key)
                return []
            del self._facts[key]
        else:
            self._facts[key] = decode(value)
            self._gone.discard(key)
        return self._again(self._concerned.get(key, ()))

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
            if told.kind is Kind.NODE:
                more["annotations"] = {**told.annotations, **node.annotations}
        if told.pod_uid:
            pod = self._facts.get(_pod(told.pod_uid))
            # A node may say of a container only that it belongs to a pod which the cluster runs there.
            if isinstance(pod, PodFact) and (pod.node, pod.namespace) == (told.node, told.namespace):
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
    return (_node(told.node), _pod(told.pod_uid), _namespace(told.namespace))


def _pod(uid: str) -> bytes:
    return f"pod/{uid}".encode()


def _node(name: str) -> bytes:
    return f"node/{name}".encode()


def _namespace(name: str) -> bytes:
    return f"namespace/{name}".encode()
