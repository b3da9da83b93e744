# SPDX-License-Identifier: Apache-2.0
"""Events (core/v1) about policies, and about what has annotations that mean something here, as `kubectl describe` shows them; pure.

One Event for each object, reason and sentence kind: what happens again is counted in it, not written beside it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from schemas.cluster import NamespaceFact, NodeFact, PodFact, PolicyFact
from schemas.policy import API_VERSION

COMPONENT: Final = "hauberk"
_NORMAL: Final = ("InForce", "Audited", "Shadow", "Baseline", "Disabled")
"""Reasons that tell what was asked for."""
_MOST: Final = 1024
"""Bytes of a message that the API server takes."""


class EventSubject(NamedTuple):
    """The object that an Event is about. `namespace`: where the Event lies; "" where the object has none."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


def of_policy(fact: PolicyFact) -> EventSubject:
    """The policy itself."""
    return EventSubject(API_VERSION, fact.kind, fact.namespace, fact.name, fact.uid)


def of(fact: PodFact | NamespaceFact | NodeFact) -> EventSubject:
    """The pod, namespace or node."""
    if isinstance(fact, PodFact):
        return EventSubject("v1", "Pod", fact.namespace, fact.name, fact.uid)
    if isinstance(fact, NamespaceFact):
        # Within it: who works there may read Events of that namespace, and as a rule of no other.
        return EventSubject("v1", "Namespace", fact.name, fact.name, "")
    # As kubelets write it: `kubectl describe node` looks for its name as the uid too.
    return EventSubject("v1", "Node", "", fact.name, fact.name)


def event(subject: EventSubject, reason: str, message: str, now: str, instance: str, about: str = "") -> dict[str, Any]:
    """A new Event. `now`: RFC 3339; `instance`: who says it; `about`: what tells it from others of the same reason."""
    # Of what has no namespace: the API server takes Events about it in `default` alone, as those about nodes.
    namespace = subject.namespace or "default"
    told = f"{subject.uid} {reason}" + (f" {about}" if about else "")
    mark = hashlib.sha256(told.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": f"{subject.name[:200]}.{mark}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "namespace": subject.namespace,
            "uid": subject.uid,
        },
        "reason": reason, "message": _cut(message), "type": "Normal" if reason in _NORMAL else "Warning",
        "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": instance[:128],
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    }  # fmt: skip


def again(found: dict[str, Any], message: str, now: str) -> dict[str, Any]:
    """The change of an Event that is there: once more, and what is said now."""
    return {"message": _cut(message), "lastTimestamp": now, "count": int(found.get("count") or 1) + 1}


def _cut(message: str) -> str:
    text = message.encode()
    return message if len(text) <= _MOST else text[: _MOST - 3].decode("utf-8", "ignore") + "..."
