# SPDX-License-Identifier: Apache-2.0
"""The structs of `schemas/policy.py` as tables the checker walks: fields, types and limits, read once per process.

So a field is described in one place: what the checker demands, what the reference documents and what the decoder takes
cannot differ. Only the types those structs use are known here; a new one raises at import of the checker's tests.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types


class Shape(msgspec.Struct, frozen=True):
    """A type: `kind` is struct, list, dict, str, int, bool, choice or port (integer or text)."""

    kind: str
    struct: type | None = None
    item: Shape | None = None
    choices: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    least: int | None = None
    most: int | None = None


class FieldShape(msgspec.Struct, frozen=True):
    """A field under its wire name."""

    name: str
    required: bool
    shape: Shape
    description: str = ""
    longest: int | None = None
    """KubeArmor's limit on characters or items, which Hauberk does not have."""


@cache
def fields(struct: type) -> dict[str, FieldShape]:
    """The fields of a policy struct by wire name: its own first, inherited attributes after them."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    own = set(struct.__annotations__)
    entries = sorted(info.fields, key=lambda entry: entry.name not in own)
    return {entry.encode_name: _field(entry) for entry in entries}


@cache
def where(kind: type) -> dict[str, tuple[str, ...]]:
    """For each field name of a kind: the paths it may stand at, shallow first (`matchPaths` -> `spec.process.matchPaths`...)."""
    found: dict[str, list[str]] = {}

    def visit(struct: type, path: str, depth: int) -> None:
        for name, entry in fields(struct).items():
            here = f"{path}.{name}" if path else name
            shape = entry.shape
            suffix = ""
            if shape.kind == "list" and shape.item is not None:
                shape, suffix = shape.item, "[]"
            found.setdefault(name, []).append(here)
            if shape.kind == "struct" and shape.struct is not None and depth < 8:
                visit(shape.struct, here + suffix, depth + 1)

    visit(kind, "", 0)
    return {name: tuple(sorted(paths, key=lambda path: (path.count("."), path))) for name, paths in found.items()}


def field_at(kind: type, place: str) -> tuple[FieldShape, type]:
    """The field at one of the places that `where` names, and the struct that it is a field of."""
    *above, last = place.split(".")
    struct = kind
    for name in above:
        shape = fields(struct)[name.removesuffix("[]")].shape
        inner = (shape.item or shape).struct
        assert inner is not None
        struct = inner
    return fields(struct)[last], struct


def _field(entry: types.Field) -> FieldShape:
    description, longest, inner = "", None, entry.type
    while isinstance(inner, types.Metadata):
        schema = inner.extra_json_schema or {}
        description = description or str(schema.get("description", ""))
        longest = longest or _limit(inner.extra)
        inner = inner.type
    if isinstance(inner, types.UnionType):
        for part in inner.types:
            if isinstance(part, types.Metadata):
                longest = longest or _limit(part.extra)
                description = description or str((part.extra_json_schema or {}).get("description", ""))
    return FieldShape(entry.encode_name, entry.required, _shape(entry.type), description, longest)


def _limit(extra: dict[str, Any] | None) -> int | None:
    for key in ("kubearmor_max_length", "kubearmor_max_items"):
        if extra and key in extra:
            return int(extra[key])
    return None


def _shape(info: types.Type) -> Shape:
    match info:
        case types.Metadata():
            return _shape(info.type)
        case types.UnionType():
            parts = [part for part in info.types if not isinstance(part, types.NoneType)]
            return _shape(parts[0]) if len(parts) == 1 else Shape("port")
        case types.StructType():
            return Shape("struct", struct=info.cls)
        case types.VarTupleType():
            return Shape("list", item=_shape(info.item_type))
        case types.DictType():
            return Shape("dict", item=_shape(info.value_type))
        case types.StrType():
            return Shape("str", pattern=re.compile(info.pattern) if info.pattern else None)
        case types.IntType():
            return Shape("int", least=info.ge, most=info.le)
        case types.BoolType():
            return Shape("bool")
        case types.LiteralType():
            return Shape("choice", choices=tuple(str(value) for value in info.values))
    raise TypeError(f"policy structs use a type the checker does not know: {info!r}")
