# SPDX-License-Identifier: Apache-2.0
"""The definitions that a cluster gets are those of the structs, and structural."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy.parse import parse
from policy.text.codes import Level
from policy.text.struct_fields import fields
from policy.tools.custom_resources import NAMES, definition, main, text
from schemas.policy import API_VERSION, KINDS

CRDS = Path(__file__).parents[2] / "deploy" / "kubernetes" / "crds"
OF_THE_CHART = CRDS.parent / "chart" / "crds"


def test_every_kind_has_one() -> None:
    assert NAMES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", NAMES)
def test_the_file_is_what_the_structs_say(kind: str) -> None:
    file = CRDS / f"{NAMES[kind][0]}.yaml"
    assert file.read_text() == text(kind), f"run: python -m policy.tools.custom_resources {CRDS} {OF_THE_CHART}"
    assert (OF_THE_CHART / file.name).read_text() == text(kind)


def test_it_writes_all(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in CRDS.iterdir()}


@pytest.mark.parametrize("kind", NAMES)
def test_every_level_has_a_type_and_nothing_refers(kind: str) -> None:
    """A structural schema, as apiextensions.k8s.io/v1 demands it."""

    def walk(level: dict[str, Any], path: str) -> None:
        assert "$ref" not in level, path
        assert level.get("type") or level.get("x-kubernetes-int-or-string"), path
        for name, below in level.get("properties", {}).items():
            walk(below, f"{path}.{name}")
        for name in ("items", "additionalProperties"):
            if isinstance(level.get(name), dict):
                walk(level[name], f"{path}.{name}")

    walk(definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"], kind)


@pytest.mark.parametrize("kind", NAMES)
def test_no_field_is_missing(kind: str) -> None:
    """By the other reader of the structs, which the checks of policies use."""
    spec = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    shape = fields(KINDS[kind])["spec"].shape

    def compare(level: dict[str, Any], struct: type, path: str) -> None:
        wanted = fields(struct)
        assert level["properties"].keys() == wanted.keys(), path
        assert set(level.get("required", ())) == {name for name, field in wanted.items() if field.required}, path
        for name, field in wanted.items():
            inner = field.shape.item if field.shape.kind == "list" and field.shape.item else field.shape
            below = level["properties"][name]
            if inner.struct is not None:
                compare(below.get("items", below), inner.struct, f"{path}.{name}")

    assert shape.struct is not None
    compare(spec, shape.struct, kind)


QUOTA = "a rule lacks `limit` or `duration`: every rule for pods is a quota"
NAMESPACES = "expected `label`: a {kind} cannot select namespaces"
BY_NAMESPACE = {"matchExpressions": [{"key": "namespace", "operator": "In", "values": ["shop"]}]}
BY_LABEL = {"matchExpressions": [{"key": "label", "operator": "In", "values": ["app=web"]}]}
UDP = {"network": {"matchProtocols": [{"protocol": "udp"}]}, "action": "Block"}
QUOTAS = {"selector": {"matchLabels": {"a": "b"}}}
REFUSED = [
    ("KubeArmorPolicy", {"selector": BY_NAMESPACE} | UDP, "P305", NAMESPACES),
    (
        "KubeArmorNetworkPolicy",
        {"selector": BY_NAMESPACE, "egress": [{"limit": "2MB", "duration": "1m"}]},
        "P305",
        NAMESPACES,
    ),
    (
        "KubeArmorNetworkPolicy",
        QUOTAS | {"egress": [{"limit": "2MB", "duration": "1m"}, {"limit": "2MB"}]},
        "P503",
        QUOTA,
    ),
    ("KubeArmorNetworkPolicy", QUOTAS | {"ingress": [{"duration": "1m"}]}, "P503", QUOTA),
    ("KubeArmorNetworkPolicy", QUOTAS | {"ingress": [{}]}, "P503", QUOTA),
]
TAKEN = [
    ("KubeArmorPolicy", {"selector": BY_LABEL} | UDP),
    ("KubeArmorClusterPolicy", {"selector": BY_NAMESPACE} | UDP),
    (
        "KubeArmorNetworkPolicy",
        QUOTAS | {"egress": [{"limit": "2MB", "duration": "1m"}], "ingress": [{"limit": "1K", "duration": "1h"}]},
    ),
    ("KubeArmorNetworkPolicy", {"nodeSelector": {"matchLabels": {"a": "b"}}, "egress": [{"ports": [{"port": "53"}]}]}),
]


def document(kind: str, spec: dict[str, Any]) -> str:
    place = {"namespace": "default"} if kind == "KubeArmorPolicy" else {}
    return json.dumps({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "crossed"} | place, "spec": spec})


@pytest.mark.kubernetes
@pytest.mark.parametrize(("kind", "spec", "code", "sentence"), REFUSED)
def test_a_real_api_server_refuses_what_no_field_alone_shows(
    api_server: Any, kind: str, spec: dict[str, Any], code: str, sentence: str
) -> None:
    """What `policy check` refuses with `code`, in the words of the definition."""
    text = document(kind, spec)
    assert code in {found.code for found in parse(text.encode(), "t").diagnostics}
    done = api_server.kubectl("apply", "--dry-run=server", "-f", "-", given=text, check=False)
    assert done.returncode != 0
    assert sentence.format(kind=kind) in done.stderr


@pytest.mark.kubernetes
@pytest.mark.parametrize(("kind", "spec"), TAKEN)
def test_a_real_api_server_takes_what_has_no_such_fault(api_server: Any, kind: str, spec: dict[str, Any]) -> None:
    text = document(kind, spec)
    assert not [found for found in parse(text.encode(), "t").diagnostics if found.level is Level.ERROR]
    done = api_server.kubectl("apply", "--dry-run=server", "-f", "-", given=text, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", NAMES)
def test_namespaces_are_offered_to_cluster_policies_alone(kind: str) -> None:
    said = json.dumps(definition(kind))
    assert ('"enum": ["label", "namespace"]' in said) is (kind == "KubeArmorClusterPolicy")
    assert ("`namespace` in cluster policies" in said) is (kind == "KubeArmorClusterPolicy")
