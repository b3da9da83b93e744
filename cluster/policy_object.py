# SPDX-License-Identifier: Apache-2.0
"""A policy as an object of the cluster, and what its author wrote of it; pure.

What is put on the bus and what the webhook checks are the same document. Neighbours: `sensors.kubernetes.policy_watch`,
`sinks.kubernetes.policy_webhook`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from schemas.policy import API_VERSION

KINDS: Final = {
    "kubearmorpolicies": "KubeArmorPolicy",
    "kubearmorhostpolicies": "KubeArmorHostPolicy",
    "kubearmorclusterpolicies": "KubeArmorClusterPolicy",
    "kubearmornetworkpolicies": "KubeArmorNetworkPolicy",
}
"""Plural of the resource, and its kind."""
_KEPT: Final = frozenset({"name", "namespace", "labels", "annotations"})
_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class PolicyFindings(NamedTuple):
    """What `hauberk policy check` says of one policy, each finding with the path of its field. With `errors` it is not applied.
    `mode`: `audited`, `shadow`, `baseline` or `disabled`, "" when it is meant."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    mode: str = ""


def author_document(kind: str, raw: msgspec.Raw) -> tuple[bytes, bytes, dict[str, Any]]:
    """Key on `policies.v1`, document and the object's metadata. The document is what the author wrote: no managed fields, no status, no uid.
    Raises msgspec.MsgspecError or ValueError when `raw` is no object."""
    found = msgspec.json.decode(raw, type=dict[str, Any])
    all_of = found.get("metadata") or {}
    if not isinstance(all_of, dict):
        raise ValueError("`metadata` is no object")
    meta = {name: value for name, value in all_of.items() if name in _KEPT}
    annotations = meta.pop("annotations", None)
    if isinstance(annotations, dict):
        annotations = {name: value for name, value in annotations.items() if name != _APPLIED}
    if annotations:
        meta["annotations"] = annotations
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": found.get("spec", {})}
    name = f"{kind}/{meta.get('namespace', '')}/{meta.get('name', '')}"
    return name.encode(), msgspec.json.encode(document, order="deterministic"), all_of
