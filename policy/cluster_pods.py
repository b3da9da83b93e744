# SPDX-License-Identifier: Apache-2.0
"""Which pod of the cluster a container is of: by the uid that its node tells, where the cluster runs that pod there. Pure.

A node may say of a container only that it belongs to a pod which the cluster runs on it, in that namespace. Of a static pod the
runtime knows the uid that the kubelet made (32 hexadecimal digits, no uid of the API server), and the API server a mirror of another
uid. That a pod is such a mirror is for its author to say, so it is believed of the name that the runtime tells too, and no other: a
name is one pod's at a time. Neighbours: `policy.cluster_facts`, `policy.learn.network.directory`, `hauberk.cluster_view` (who ask).
"""

from __future__ import annotations

from schemas.cluster import PodFact, is_static_uid
from schemas.identity import Identity


class ClusterPods:
    """Facts of pods by key on `cluster.v1`. `names` and `asked` have in common what joins a pod to a container."""

    def __init__(self) -> None:
        self._known: dict[bytes, PodFact] = {}
        self._mirrors: dict[bytes, dict[bytes, PodFact]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> PodFact | None:
        """The fact of that key."""
        return self._known.get(key)

    def put(self, key: bytes, pod: PodFact) -> None:
        """The newest of `key`."""
        self.remove(key)
        self._known[key] = pod
        for name in names(pod)[1:]:
            self._mirrors.setdefault(name, {})[key] = pod

    def remove(self, key: bytes) -> None:
        """`key` is gone."""
        pod = self._known.pop(key, None)
        for name in names(pod)[1:] if pod is not None else ():
            mine = self._mirrors[name]
            del mine[key]
            if not mine:
                del self._mirrors[name]

    def named(self, name: bytes) -> list[bytes]:
        """Keys of the pods that have `name`."""
        return [name] if name in self._known else list(self._mirrors.get(name, ()))

    def of(self, told: Identity) -> PodFact | None:
        """The pod of a container; None when the cluster runs none such there."""
        for name in asked(told):
            pod = self._known.get(name)
            if pod is not None and (pod.node, pod.namespace) == (told.node, told.namespace):
                return pod
            if mirrors := self._mirrors.get(name):
                # Whoever deletes a mirror makes its kubelet make another; the one before stays some hours as ended.
                return max(mirrors.values(), key=lambda one: (not one.ended, one.started, one.uid))
        return None


def names(pod: PodFact) -> tuple[bytes, ...]:
    """What containers of `pod` may be told by: its key, then what a mirror is found by."""
    if not is_static_uid(pod.static_uid):
        return (pod.key,)
    return (pod.key, _static(pod.node, pod.namespace, pod.name, pod.static_uid))


def asked(told: Identity) -> tuple[bytes, ...]:
    """Which of these a container is of."""
    if not told.pod_uid:
        return ()
    key = f"pod/{told.pod_uid}".encode()
    if not is_static_uid(told.pod_uid):
        return (key,)
    return (key, _static(told.node, told.namespace, told.pod, told.pod_uid))


def _static(node: str, namespace: str, name: str, uid: str) -> bytes:
    return "\0".join(("static", node, namespace, name, uid)).encode()
