# SPDX-License-Identifier: Apache-2.0
"""Policies that are objects of the cluster, put on `policies` as `hauberk apply` would put them.

Who put a policy there is in its record's header `owner`. What `hauberk apply` put there is left alone, and the object of that
name is told to have no effect; an object that is no valid policy is told with its errors, and what was valid before stays in
force. Only an object that a whole list or a watch says is gone takes its policy along. Each object also is a fact (`PolicyFact`):
what the cluster is told of it (`sinks.kubernetes`) hangs on that. Neighbours: `published`, and `hauberk.verbs.apply`, which keeps its
hands off what the cluster owns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.contract import Record
from bus.follow import Changes
from cluster.policy_object import KINDS, PolicyFindings, author_document
from cluster.reflector import Apply, Resource
from schemas.cluster import PolicyFact, document_mark, encode
from schemas.errors import Refused
from schemas.policy import API_VERSION, reference
from schemas.policy_owner import CLUSTER_OWNER, OWNER, owner_of
from sensors.kubernetes.published import Published

log = logging.getLogger(__name__)

_DEFINE: Final = "`kubectl apply --server-side -f deploy/kubernetes/crds` defines it, and it is looked for again"
RESOURCES: Final = tuple(
    Resource(name=plural, path=f"/apis/{API_VERSION}/{plural}", optional=True, absent=_DEFINE) for plural in KINDS
)
HEADERS: Final = ((OWNER, CLUSTER_OWNER.encode()),)

Check = Callable[[bytes], PolicyFindings]
"""What is wrong with a policy as JSON."""


class PolicyWatch:
    """`applies`: what each reflector is to call; `follow`: what the bus says of policies. `published`: the policies; `facts`: where each
    object is told."""

    def __init__(self, published: Published, facts: Published, check: Check) -> None:
        self._published = published
        self._facts = facts
        self._check = check
        self._objects: dict[bytes, PolicyFact] = {}
        self._marks: dict[bytes, str] = {}
        self._documents: dict[bytes, bytes] = {}
        self._foreign: dict[bytes, str] = {}
        self._untaken: dict[bytes, str] = {}
        published.given_up = self._given_up

    @property
    def applies(self) -> list[tuple[Resource, Apply]]:
        return [(resource, self._changed(KINDS[resource.name])) for resource in RESOURCES]

    @property
    def refused(self) -> int:
        """Objects that are no valid policy, or that the bus does not take."""
        return sum(bool(one.errors) or key in self._untaken for key, one in self._objects.items())

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
        self._published.heard(record for _, record in changes.records)
        for _, record in changes.records:
            self._owned(record)
        if changes.whole:
            for key in self._objects:
                self._tell(key)

    def _owned(self, record: Record) -> None:
        key = record.key
        owner = owner_of(record)
        if record.value is not None and owner != CLUSTER_OWNER:
            self._foreign[key] = owner
            self._published.forget(key)
            if key in self._documents:
                log.warning("policy %s: %s put one of that name in force; the object of the cluster has no effect until `hauberk delete`",
                            reference(key.decode("utf-8", "replace")), owner)  # fmt: skip
        elif self._foreign.pop(key, None) is not None and key in self._documents:
            self._published.put(key, self._documents[key])
        self._tell(key)

    def _changed(self, kind: str) -> Apply:
        def apply(whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
            seen: set[bytes] = set()
            for there, raw in changes:
                key, document, meta = author_document(kind, raw)
                seen.add(key)
                if there:
                    self._put(kind, key, document, meta)
                else:
                    self._remove(key)
            if whole:
                prefix = f"{kind}/".encode()
                mine = self._published.keys(prefix) | {key for key in self._objects if key.startswith(prefix)}
                mine |= {key.removeprefix(b"policy/") for key in self._facts.keys(b"policy/" + prefix)}
                for key in mine - seen:
                    self._remove(key)

        return apply

    def _put(self, kind: str, key: bytes, document: bytes, meta: dict[str, Any]) -> None:
        known, mark = self._objects.get(key), document_mark(document)
        if known is not None and self._marks[key] == mark:
            # Its status was written, by us as a rule: what it says is as it was.
            errors, mode = known.errors, known.mode
        else:
            errors, _, mode = self._check(document)
            if errors and (known is None or known.errors != errors):
                log.warning(
                    "policy %s of the cluster is not applied: %s",
                    reference(key.decode("utf-8", "replace")),
                    "; ".join(errors),
                )
        self._marks[key] = mark
        self._objects[key] = PolicyFact(
            kind=kind, namespace=meta.get("namespace", ""), name=meta["name"], uid=meta.get("uid", ""),
            generation=meta.get("generation", 0), errors=errors, mode=mode,
        )  # fmt: skip
        if not errors:
            if self._documents.get(key) != document:
                self._untaken.pop(key, None)
            self._documents[key] = document
            if key not in self._foreign and key not in self._untaken:
                self._published.put(key, document)
        self._tell(key)

    def _given_up(self, key: bytes, error: Refused) -> None:
        """The bus takes no policy of this size: as one with an error, until its object says something else."""
        if key in self._documents:
            self._untaken[key] = f"the bus does not take it: {error}"
            self._tell(key)

    def _tell(self, key: bytes) -> None:
        """Strictly after its policy was put: the fact says which document is meant to be in force."""
        known = self._objects.get(key)
        if known is None:
            return
        document = self._documents.get(key)
        fact = msgspec.structs.replace(
            known, document="" if document is None else document_mark(document), owner=self._foreign.get(key, "")
        )
        if (why := self._untaken.get(key)) is not None:
            before = self._published.value(key)
            fact = msgspec.structs.replace(
                fact, errors=(*fact.errors, why), document="" if before is None else document_mark(before)
            )
        self._facts.put(fact.key, encode(fact))

    def _remove(self, key: bytes) -> None:
        self._objects.pop(key, None)
        self._marks.pop(key, None)
        self._documents.pop(key, None)
        self._untaken.pop(key, None)
        self._facts.put(b"policy/" + key, None)
        if key not in self._foreign:
            self._published.put(key, None)
