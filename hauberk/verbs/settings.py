# SPDX-License-Identifier: Apache-2.0
"""`hauberk settings`: the effective configuration with where each value came from, or the reference of every key."""

from __future__ import annotations

import argparse
import functools
import os
import re
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from hauberk.client import parser as verb_parser

CUT: Final = 60
"""Longest value in a table, in characters: with the key and its origin it stays on a line."""


def parser() -> argparse.ArgumentParser:
    """What to show and how."""
    made = verb_parser("settings", "Show the effective settings and where each came from.")
    made.add_argument("--reference", action="store_true", help="every key with type, default and meaning")
    made.add_argument(
        "-o", "--output", choices=("table", "wide", "json", "yaml"), default="table",
        help="form of the answer; a table cuts long values, the others do not",
    )  # fmt: skip
    return made


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every setting in a struct; what is derived from another setting is none."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        if tag is not None:
            yield f"{prefix}{value.__struct_config__.tag_field}", tag
        for field in msgspec.structs.fields(value):
            if field.name in derived(type(value)):
                continue
            yield from leaves(getattr(value, field.name), f"{prefix}{field.encode_name}.")
    elif isinstance(value, list | tuple) and value and isinstance(value[0], msgspec.Struct):
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix[:-1]}[{index}].")
    else:
        yield prefix[:-1], value


@functools.cache
def derived(kind: type) -> frozenset[str]:
    """Fields of a settings struct that are filled in from a setting elsewhere and may not be set."""
    import msgspec

    hints = typing.get_type_hints(kind, include_extras=True)
    metas = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return frozenset(
        name for name, found in metas.items()
        if any(isinstance(one, msgspec.Meta) and (one.extra or {}).get("setting") == "derived" for one in found)
    )  # fmt: skip


def settable(value: Any) -> Any:
    """A settings struct as plain values, without what is derived: it can be read back as a settings file."""
    import msgspec

    from hauberk.output import plain

    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        head = {config.tag_field: config.tag} if config.tag is not None else {}
        fields = [field for field in msgspec.structs.fields(value) if field.name not in derived(type(value))]
        return head | {field.encode_name: settable(getattr(value, field.name)) for field in fields}
    if isinstance(value, list | tuple):
        return [settable(one) for one in value]
    return plain(value)


def reference(
    kind: Any, prefix: str = "", seen: tuple[Any, ...] = (), without: Collection[str] = ()
) -> Iterator[tuple[str, str, str, str]]:
    """(path, type, default, meaning) of every key of a settings struct that is not in `without`. Of a tagged union the keys that
    all its structs have from one base stand once, then each struct's own."""
    import msgspec
    from msgspec import inspect

    for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        if field.name in without:
            continue
        path = f"{prefix}{field.encode_name}"
        schema: dict[str, Any] = {}
        inner: Any = field.type
        while isinstance(inner, inspect.Metadata):
            schema |= (inner.extra_json_schema or {}) | (inner.extra or {})
            inner = inner.type
        if schema.get("setting") == "derived":
            continue
        structs = [
            option for option in (inner.types if isinstance(inner, inspect.UnionType) else [getattr(inner, "item_type", inner)])
            if isinstance(option, inspect.StructType)
        ]  # fmt: skip
        if isinstance(getattr(inner, "item_type", None), inspect.UnionType):
            structs = [option for option in inner.item_type.types if isinstance(option, inspect.StructType)]
        array = "[]" if isinstance(inner, inspect.ListType | inspect.VarTupleType) else ""
        if structs:
            base = _base([struct.cls for struct in structs])
            if base is not None:
                yield from reference(base, f"{path}{array}.", (*seen, base))
            for struct in structs:
                tag = f"<{struct.tag}>" if struct.tag is not None else ""
                yield f"{path}{array}{tag}", "table", "", (struct.cls.__doc__ or "").split("\n")[0]
                if struct.cls not in seen:
                    shared = base.__struct_fields__ if base is not None else ()
                    yield from reference(struct.cls, f"{path}{array}{tag}.", (*seen, struct.cls), shared)
            continue
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        shown = "required" if field.required else msgspec.json.encode(default).decode()
        yield path, _kind(inner), shown, schema.get("description", "")


def _kind(inner: Any) -> str:
    """The type of a value in a word; of a choice, the values."""
    from msgspec import inspect

    if isinstance(inner, inspect.LiteralType):
        return ", ".join(map(str, inner.values))
    return {"vartuple": "list"}.get(name := type(inner).__name__.removesuffix("Type").lower(), name)


def _base(structs: Sequence[Any]) -> Any:
    """The struct that several structs extend, or None."""
    import msgspec

    above = [one for one in structs[0].__mro__[1:] if issubclass(one, msgspec.Struct) and one.__struct_fields__]
    return next((one for one in above if len(structs) > 1 and all(issubclass(each, one) for each in structs)), None)


def main(argv: Sequence[str]) -> int:
    """Print the table; SettingsError when the configuration does not hold."""
    given = parser().parse_args(argv)
    from hauberk.configuration import configuration
    from hauberk.output import show, table
    from hauberk.sections import Configuration

    if given.reference:
        keys = list(reference(Configuration))
        if given.output in ("json", "yaml"):
            names = ("key", "type", "default", "meaning")
            print(show([dict(zip(names, row, strict=True)) for row in keys], (), (), given.output))
            return 0
        # A default that is a whole table says nothing on a terminal: its own keys follow below it.
        print(
            table(
                ("KEY", "TYPE", "DEFAULT", "MEANING"),
                [(key, kind, shown[:40], text) for key, kind, shown, text in keys],
            )
        )
        return 0
    found, _, state = configuration(given)
    origins = origins_of(given, str(state))
    rows = [(path, cut(str(value), given.output == "wide"), origins(path, value)) for path, value in leaves(found)]
    print(show(settable(found), ("KEY", "VALUE", "FROM"), rows, given.output))
    return 0


def cut(text: str, whole: bool) -> str:
    """`text`, cut for a table unless `whole`."""
    return text if whole or len(text) <= CUT else f"{text[: CUT - 1]}\u2026"


def origins_of(given: argparse.Namespace, state: str) -> Callable[[str, Any], str]:
    """Where the value at a path came from: what was said, also of a whole table above it; a place under the state directory
    comes from who named that."""
    from hauberk.settings import STATE_VARIABLE, merge

    said = merge(given.config, given.set)
    of_state = "--state" if given.state else said.origins.get("state")
    of_state = of_state or (STATE_VARIABLE if os.environ.get(STATE_VARIABLE) else "default")

    def origin(path: str, value: Any) -> str:
        if path == "state":
            return of_state
        if path in said.origins:
            return said.origins[path]
        spot: Any = said.tree
        by = above = ""
        for step in re.findall(r"[^.\[\]]+", path):
            above = f"{above}.{step}" if above else step
            by = said.origins.get(above, by)
            try:
                spot = spot[int(step)] if isinstance(spot, list) else spot[step]
            except (KeyError, IndexError, TypeError, ValueError):
                break
        else:
            if by:
                return by
        below = isinstance(value, str) and value.startswith(f"{state.rstrip('/')}/")
        return of_state if below else "default"

    return origin
