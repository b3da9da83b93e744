# SPDX-License-Identifier: Apache-2.0
"""The four policy kinds as CustomResourceDefinitions (apiextensions.k8s.io/v1), generated from the structs of `schemas.policy`.

A cluster checks the shape while a policy is written, and KubeArmor's own definitions of the same group may be there instead.
`python -m policy.tools.custom_resources DIR...` writes one file a kind; a test asks that `deploy/kubernetes/crds` and the chart's are that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from msgspec import inspect

from schemas.policy import API_VERSION, KINDS

GROUP: Final = API_VERSION.partition("/")[0]
NAMES: Final = {
    "KubeArmorPolicy": ("kubearmorpolicies", "ksp", "Namespaced"),
    "KubeArmorHostPolicy": ("kubearmorhostpolicies", "hsp", "Cluster"),
    "KubeArmorClusterPolicy": ("kubearmorclusterpolicies", "csp", "Cluster"),
    "KubeArmorNetworkPolicy": ("kubearmornetworkpolicies", "nsp", "Cluster"),
}
"""Kind: plural, short name, scope (kubearmor.md 1.1)."""

_EITHER: Final = {
    "rule": "has(self.selector) != has(self.nodeSelector)",
    "message": "expected either `selector` or `nodeSelector`, got both or none",
}
_QUOTAS: Final = [
    {
        "rule": f"!has(self.selector) || !has(self.{way}) || self.{way}.all(one, has(one.limit) && has(one.duration))",
        "message": "a rule lacks `limit` or `duration`: every rule for pods is a quota",
        "fieldPath": f".{way}",
    }
    for way in ("ingress", "egress")
]
"""P503 of `policy check`. The cost is that of a look at each rule, of which a request has room for some hundred thousand."""
_STATUS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "What became of the policy; written by `hauberk cluster`.",
    "properties": {
        "status": {"type": "string", "description": "One word: `InForce`, `Audited`, `Shadow`, `Baseline`, `Partial`, `Refused`, `Waiting`, `NoEffect` or `Disabled`."},
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Generation that this is about."},
        "nodes": {"type": "integer", "description": "Nodes it is for."},
        "containers": {"type": "integer", "description": "Containers it selects."},
        "errors": {"type": "array", "items": {"type": "string"}, "description": "Why it has no effect, with the field's path."},
        "refused": {"type": "array", "items": {"type": "string"}, "description": "Rules that a node could not hold, or not whole, and why."},
        "hits": {
            "type": "object", "description": "Operations that alerts of the policy told of.",
            "properties": {
                "blocked": {"type": "integer", "format": "int64"}, "audited": {"type": "integer", "format": "int64"},
                "suppressed": {"type": "integer", "format": "int64", "description": "Throttled: only their number is known."},
                "shadow": {"type": "integer", "format": "int64", "description": "What it would have acted on; in the modes `shadow` and `baseline`."},
                "last": {"type": "string", "nullable": True, "description": "Time of the newest."},
                "counted": {"type": "string", "nullable": True, "description": "Which alerts these are: partition=offset@time of each."},
            },
        },
        "conditions": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object", "required": ["type", "status"],
                "properties": {
                    "type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"},
                    "message": {"type": "string"}, "lastTransitionTime": {"type": "string", "format": "date-time"},
                    "observedGeneration": {"type": "integer", "format": "int64"},
                },
            },
        },
    },
}  # fmt: skip
_COLUMNS: Final = [
    {"name": "Action", "type": "string", "jsonPath": ".spec.action"},
    {"name": "Status", "type": "string", "jsonPath": ".status.status"},
    {"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes", "priority": 10},
    {"name": "Containers", "type": "integer", "jsonPath": ".status.containers", "priority": 10},
    {"name": "Blocked", "type": "integer", "jsonPath": ".status.hits.blocked", "priority": 10},
    {"name": "Audited", "type": "integer", "jsonPath": ".status.hits.audited", "priority": 10},
    {"name": "Shadow", "type": "integer", "jsonPath": ".status.hits.shadow", "priority": 10},
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="InForce")].message',
        "priority": 10,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def definition(kind: str) -> dict[str, Any]:
    """The definition of `kind`."""
    plural, short, scope = NAMES[kind]
    spec = _schema(
        inspect.type_info(next(one.type for one in msgspec.structs.fields(KINDS[kind]) if one.name == "spec"))
    )
    if kind == "KubeArmorNetworkPolicy":
        spec["x-kubernetes-validations"] = [_EITHER, *_QUOTAS]
    if kind != "KubeArmorClusterPolicy" and "selector" in spec["properties"]:
        _labels_alone(spec["properties"]["selector"]["properties"]["matchExpressions"]["items"], kind)
    # KubeArmor takes the three words of `spec.action` in lower case too, there and nowhere else.
    words = spec["properties"]["action"]["enum"]
    spec["properties"]["action"]["enum"] = words + [word.lower() for word in words]
    schema = {
        "type": "object", "required": ["spec"], "description": KINDS[kind].__doc__,
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec,
            "status": _STATUS,
        },
    }  # fmt: skip
    version = {
        "name": API_VERSION.partition("/")[2], "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}}, "additionalPrinterColumns": _COLUMNS,
    }  # fmt: skip
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP, "scope": scope, "versions": [version],
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List", "shortNames": [short]},
        },
    }  # fmt: skip


def _labels_alone(expression: dict[str, Any], kind: str) -> None:
    """P305 of `policy check`: only a cluster policy selects namespaces. No `enum`: where that fails, the API server asks no rule, and says
    none of this."""
    # A network policy is of the whole cluster: it has no namespace to name instead.
    instead = "; use `metadata.namespace`, or `kind: KubeArmorClusterPolicy`" if NAMES[kind][2] == "Namespaced" else ""
    expression["properties"]["key"] = {
        "description": "`label`.", "type": "string", "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self == 'label'",
            "message": f"expected `label`: a {kind} cannot select namespaces{instead}",
        }],
    }  # fmt: skip


def text(kind: str) -> str:
    """The definition as YAML."""
    return "# Generated from schemas/policy.py by policy/tools/custom_resources.py\n" + yaml.safe_dump(
        definition(kind), sort_keys=False, width=1000
    )


def _schema(info: inspect.Type, described: str = "") -> dict[str, Any]:
    """A structural schema (no `$ref`, every level with a type)."""
    if isinstance(info, inspect.Metadata):
        extra = info.extra_json_schema or {}
        return _schema(info.type, str(extra.get("description", "")) or described)
    found: dict[str, Any] = {"description": described} if described else {}
    if isinstance(info, inspect.UnionType):
        members = [one for one in info.types if not isinstance(one, inspect.NoneType)]
        if len(members) == 1:
            return _schema(members[0], described)
        return found | {"x-kubernetes-int-or-string": True}
    if isinstance(info, inspect.StructType):
        fields = {one.encode_name: one for one in info.fields if one.encode_name != "kind"}
        found |= {"type": "object", "properties": {name: _schema(one.type) for name, one in fields.items()}}
        if required := [name for name, one in fields.items() if one.required]:
            found["required"] = required
        if not described and info.cls.__doc__:
            found["description"] = info.cls.__doc__
        return found
    if isinstance(info, inspect.DictType):
        return found | {"type": "object", "additionalProperties": _schema(info.value_type)}
    if isinstance(info, inspect.VarTupleType | inspect.ListType):
        return found | {"type": "array", "items": _schema(info.item_type)}
    if isinstance(info, inspect.LiteralType):
        return found | {"type": "string", "enum": list(info.values)}
    if isinstance(info, inspect.BoolType):
        return found | {"type": "boolean"}
    if isinstance(info, inspect.IntType):
        limits = {"minimum": info.ge, "maximum": info.le}
        return found | {"type": "integer"} | {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(info, inspect.StrType):
        return found | {"type": "string"} | ({"pattern": info.pattern} if info.pattern else {})
    raise TypeError(f"expected a type that a policy is made of, got {info}; teach `_schema` of it")


def main(words: list[str]) -> int:
    """Write the four files to each of the directories `words`."""
    for kind, (plural, _, _) in NAMES.items():
        for word in words:
            (Path(word) / f"{plural}.yaml").write_text(text(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
