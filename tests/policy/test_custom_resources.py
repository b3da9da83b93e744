# SPDX-License-Identifier: Apache-2.0
"""The definitions that a cluster gets are those of the structs, and structural."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policy.text.struct_fields import fields
from policy.tools.custom_resources import NAMES, definition, main, text
from schemas.policy import KINDS

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
