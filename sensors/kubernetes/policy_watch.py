# SPDX-License-Identifier: Apache-2.0
"""Policies that are objects of the cluster, put on `policies` as `hauberk apply` would put them.

Who put a policy there is in its record's header `owner`. What `hauberk apply` put there is left alone, and the object of that
name is told to have no effect; an object that is no valid policy is told with its errors, and what was valid before stays in
force. Only an object that a whole list or a watch says is gone takes its policy along. Neighbours: `published`, and
`hauberk.verbs.apply`, which keeps its hands off what the cluster owns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from bus.contract import Record
from bus.follow import Changes
from cluster.reflector import Apply, Resource
from schemas.policy_owner import CLUSTER_OWNER, OWNER, owner_of
from sensors.kubernetes.published import Published

log = logging.getLogger(__name__)

GROUP: Final = "security.kubearmor.com/v1"
KINDS: Final = {
    "kubearmorpolicies": "KubeArmorPolicy",
    "kubearmorhostpolicies": "KubeArmorHostPolicy",
    "kubearmorclusterpolicies": "KubeArmorClusterPolicy",
    "kubearmornetworkpolicies": "KubeArmorNetworkPolicy",
}
"""Plural of the resource, and its kind."""
RESOURCES: Final = tuple(Resource(name=plural, path=f"/apis/{GROUP}/{plural}", optional=True) for plural in KINDS)
HEADERS: Final = ((OWNER, CLUSTER_OWNER.encode()),)
KEPT: Final = frozenset({"name", "namespace", "labels", "annotations"})
_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

Check = Callable[[bytes], tuple[str, ...]]
"""Errors of a policy as JSON, each with the path of its field; none when it is valid."""


class PolicyRefusal(msgspec.Struct, frozen=True):
    """An object without effect. `errors`: why; `generation`: of the object they are about."""

    errors: tuple[str, ...]
    generation: int = 0


class PolicyWatch:
    """`applies`: what each reflector is to call; `follow`: what the bus says of policies. `refused`: objects without effect, by key."""

    def __init__(self, published: Published, check: Check) -> None:
        self._published = published
        self._check = check
        self._documents: dict[bytes, bytes] = {}
        self._foreign: dict[bytes, str] = {}
        self.refused: dict[bytes, PolicyRefusal] = {}

    @property
    def applies(self) -> list[tuple[Resource, Apply]]:
        return [(resource, self._changed(KINDS[resource.name])) for resource in RESOURCES]

    @property
    def foreign(self) -> int:
        """Objects whose name another owner's policy has."""
        return len(self._documents.keys() & self._foreign.keys())

    @property
    def in_force(self) -> int:
        """Objects whose policy is on the bus, or on its way."""
        return len(self._documents.keys() - self._foreign.keys())

    async def follow(self, changes: Changes) -> None:
        """Records of `policies`: whose each key is now."""
        if changes.whole:
            self._foreign.clear()
        for _, record in changes.records:
            self._owned(record)

    def _owned(self, record: Record) -> None:
        key = record.key
        owner = owner_of(record)
        if record.value is not None and owner != CLUSTER_OWNER:
            self._foreign[key] = owner
            self._published.forget(key)
            if key in self._documents:
                log.warning("policy %s: %s put one of that name in force; the object of the cluster has no effect until `hauberk delete`",
                            key.decode("utf-8", "replace"), owner)  # fmt: skip
        elif self._foreign.pop(key, None) is not None and key in self._documents:
            self._published.put(key, self._documents[key])

    def _changed(self, kind: str) -> Apply:
        def apply(whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
            seen: set[bytes] = set()
            for there, raw in changes:
                key, document, generation = _document(kind, raw)
                seen.add(key)
                if there:
                    self._put(key, document, generation)
                else:
                    self._remove(key)
            if whole:
                mine = self._published.keys(f"{kind}/".encode()) | {
                    key for key in self._documents.keys() | self.refused.keys() if key.startswith(f"{kind}/".encode())
                }
                for key in mine - seen:
                    self._remove(key)

        return apply

    def _put(self, key: bytes, document: bytes, generation: int) -> None:
        errors = self._check(document)
        if errors:
            if key not in self.refused or self.refused[key].errors != errors:
                log.warning(
                    "policy %s of the cluster is not applied: %s", key.decode("utf-8", "replace"), "; ".join(errors)
                )
            self.refused[key] = PolicyRefusal(errors, generation)
            return
        self.refused.pop(key, None)
        self._documents[key] = document
        if key not in self._foreign:
            self._published.put(key, document)

    def _remove(self, key: bytes) -> None:
        self.refused.pop(key, None)
        self._documents.pop(key, None)
        if key not in self._foreign:
            self._published.put(key, None)


def _document(kind: str, raw: msgspec.Raw) -> tuple[bytes, bytes, int]:
    """Key, document and generation. The document is what the author wrote: no managed fields, no status, no uid."""
    found = msgspec.json.decode(raw)
    meta = {name: value for name, value in found.get("metadata", {}).items() if name in KEPT}
    meta["annotations"] = {name: value for name, value in (meta.get("annotations") or {}).items() if name != _APPLIED}
    if not meta["annotations"]:
        del meta["annotations"]
    document = {"apiVersion": GROUP, "kind": kind, "metadata": meta, "spec": found.get("spec", {})}
    name = f"{kind}/{meta.get('namespace', '')}/{meta.get('name', '')}"
    return (
        name.encode(),
        msgspec.json.encode(document, order="deterministic"),
        found.get("metadata", {}).get("generation", 0),
    )
