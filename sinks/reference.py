# SPDX-License-Identifier: Apache-2.0
"""The settings tables of docs/sinks.md, printed from the structs so that they cannot drift. Neighbour: `registry`.

`python -m sinks.reference` prints; a test compares with the page.
"""

from __future__ import annotations

import typing

import msgspec

from bus.backoff import Backoff
from sinks import registry
from sinks.delivery.filters import Filter
from sinks.secret import Secret
from sinks.settings import Common
from sinks.store.rollup import Keep
from sinks.syslog_wire import Tls
from sinks.web.page import PageSettings

_SHARED = (("Every sink", Common), ("`filter`", Filter), ("`retry`", Backoff))
_PARTS = (
    ("`tls` of `syslog`", Tls),
    ("`keep` of `store`", Keep),
    ("A secret (`key_password`)", Secret),
    ("The page (section `page`, not of `sinks`)", PageSettings),
)


def markdown() -> str:
    """Every table, sinks first."""
    common = set(Common.__struct_fields__)
    every = typing.get_args(registry.SinkSettings)
    parts = [_table(f"`{settings.__struct_config__.tag}`", settings, common) for settings in every]
    parts += [_table(title, struct, set()) for title, struct in (*_SHARED, *_PARTS)]
    return "\n".join(parts)


def _table(title: str, struct: type[msgspec.Struct], without: set[str]) -> str:
    hints = typing.get_type_hints(struct, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(struct):
        if field.name in without:
            continue
        meta = next(meta for meta in hints[field.name].__metadata__ if isinstance(meta, msgspec.Meta))
        default = "required" if field.required else f"`{_shown(field.default)}`"
        example = _shown(meta.examples[0]) if meta.examples else ""
        rows.append(f"| `{field.name}` | {meta.description} | {default} | `{example}` |")
    head = "| setting | what it is | default | example |\n|---|---|---|---|"
    return "\n".join([f"### {title}\n", head, *rows]) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "{}"
    return msgspec.json.encode(value).decode().replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
