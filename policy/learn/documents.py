# SPDX-License-Identifier: Apache-2.0
"""Learnt rules -> the KubeArmor document that says them, as plain data and as a checked `PolicyDocument`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from policy.learn.rules import LearntRule
from policy.learn.workloads import LearntWorkload
from policy.parse import parse
from policy.rules.select import UNORCHESTRATED
from schemas.errors import PolicyError
from schemas.policy import ANNOTATION_MODE, API_VERSION, PolicyDocument

MANAGED: Final = {"app.kubernetes.io/managed-by": "hauberk-discover"}
_LISTS: Final = {
    "path": "matchPaths",
    "dir": "matchDirectories",
    "pattern": "matchPatterns",
    "protocol": "matchProtocols",
}
OFFLINE: Final = ("tcp", "udp", "icmp", "icmpv6", "sctp", "raw")
"""What a workload without any network evidence is kept from with `isolate`; local sockets stay."""


def document(
    of: LearntWorkload, match: Mapping[str, str], rules: Iterable[LearntRule], *, presets: Iterable[str] = (), isolate: bool = False,
    mode: str = "enforce", message: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The document, keys in the order in which people read them."""
    metadata: dict[str, Any] = {"name": of.policy_name}
    if not of.host:
        metadata["namespace"] = namespace_of(of.namespace)
    metadata["labels"] = dict(MANAGED)
    if mode != "enforce":
        metadata["annotations"] = {ANNOTATION_MODE: mode}
    spec: dict[str, Any] = {"severity": 5, "action": "Allow"}
    if message:
        spec["message"] = message
    spec["nodeSelector" if of.host else "selector"] = {"matchLabels": dict(match)}
    sections: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for rule in rules:
        sections.setdefault(rule.section, {}).setdefault(_LISTS[rule.kind], []).append(entry(rule))
    for section in ("process", "file", "network"):
        if section in sections:
            spec[section] = {name: sections[section][name] for name in _LISTS.values() if name in sections[section]}
    if isolate and "network" not in sections:
        spec["network"] = {"action": "Block", "matchProtocols": [{"protocol": name} for name in OFFLINE]}
    named = [{"name": name, "action": "Block"} for name in presets]
    if named and not of.host:
        spec["presets"] = named
    kind = "KubeArmorHostPolicy" if of.host else "KubeArmorPolicy"
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def namespace_of(workload: str) -> str:
    """Where a policy for containers of this namespace goes. The common one of containers outside Kubernetes is no name that Kubernetes
    takes, and there a policy's own says nothing (docs/policies.md)."""
    return "default" if workload == UNORCHESTRATED else workload


def entry(rule: LearntRule) -> dict[str, Any]:
    """The list item of one rule."""
    made: dict[str, Any] = {rule.kind: rule.value}
    if rule.recursive:
        made["recursive"] = True
    if rule.read_only:
        made["readOnly"] = True
    if rule.owner_only:
        made["ownerOnly"] = True
    if rule.sources and rule.kind != "pattern":
        made["fromSource"] = [{"path": source} for source in rule.sources]
    return made


def checked(made: Mapping[str, Any], origin: str = "discover") -> PolicyDocument:
    """The document through the language's own door. PolicyError when it would not be accepted: a mistake of the learner."""
    parsed = parse(msgspec.json.encode(made), origin)
    if not parsed.ok or len(parsed.policies) != 1:
        first = next(
            (str(one) for one in parsed.diagnostics if one.level == "error"), f"{len(parsed.policies)} policies"
        )
        raise PolicyError(f"expected a learnt policy to be valid, got: {first}", parsed.diagnostics)
    return parsed.policies[0]


def count(made: Mapping[str, Any]) -> int:
    """How many rules a document has."""
    spec = made["spec"]
    return sum(
        len(items)
        for name in ("process", "file", "network")
        for items in spec.get(name, {}).values()
        if isinstance(items, list)
    )
