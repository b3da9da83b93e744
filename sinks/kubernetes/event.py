# SPDX-License-Identifier: Apache-2.0
"""Events (core/v1) about policy objects, as `kubectl describe` shows them; pure.

One Event for each object, reason and sentence kind: what happens again is counted in it, not written beside it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from schemas.cluster import PolicyFact
from schemas.policy import API_VERSION

COMPONENT: Final = "hauberk"
_NORMAL: Final = ("InForce", "Audited", "Shadow", "Baseline", "Disabled")
"""Reasons that tell what was asked for."""
_MOST: Final = 1024
"""Bytes of a message that the API server takes."""


def event(fact: PolicyFact, reason: str, message: str, now: str, instance: str) -> dict[str, Any]:
    """A new Event about `fact`. `now`: RFC 3339; `instance`: who says it."""
    # Of what has no namespace: the API server takes Events about it in `default` alone, as those about nodes.
    namespace = fact.namespace or "default"
    mark = hashlib.sha256(f"{fact.uid} {reason}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": f"{fact.name[:200]}.{mark}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": API_VERSION, "kind": fact.kind, "name": fact.name, "namespace": fact.namespace, "uid": fact.uid,
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
