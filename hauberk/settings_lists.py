# SPDX-License-Identifier: Apache-2.0
"""What to write where a table was given for a setting that is a list, such as `--set sinks.prometheus.port=9000`. Neighbour: `settings`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

_FORMS: Final = ("--set", "HAUBERK__")
_EXAMPLE: Final = {"type": "prometheus", "port": 9642}


def advice(path: str, given: dict[str, Any], tags: Sequence[str], origin: str, secret: re.Pattern[str]) -> str:
    """How the list at `path` is written where `origin` is, with what was given of a table that is called as one of `tags`. Nothing that
    `secret` finds is repeated."""
    table: dict[str, Any] | None = None
    # The table itself, or one under its name as in a section.
    whole = {str(given.get("type")): {key: value for key, value in given.items() if key != "type"}}
    for name, below in (whole | given).items():
        if name in tags and isinstance(below, dict):
            table = {"type": name} | {
                key: value for key, value in below.items()
                if isinstance(value, str | int | float) and not secret.search(f"{key} {value}") and len(str(value)) <= 60
            }  # fmt: skip
            break
    if table is None and tags:
        table = dict(_EXAMPLE) if path == "sinks" else {"type": tags[0]}
    said = f"it is a list, and is given whole: {_written(path, table, origin)}"
    return f"{said}, in the place of the usual ones" if path == "sinks" else said


def _written(path: str, table: dict[str, Any] | None, origin: str) -> str:
    whole = "[...]" if table is None else msgspec.json.encode([table]).decode()
    if origin == _FORMS[0]:
        return f"`--set '{path}={whole}'`"
    if origin.startswith(_FORMS[1]):
        return f"`{_FORMS[1]}{path.upper().replace('.', '__')}='{whole}'`"
    if table is not None and origin.endswith(".toml"):
        pairs = ", ".join(f"`{key} = {msgspec.json.encode(value).decode()}`" for key, value in table.items())
        return f"`[[{path}]]`, and below it {pairs}"
    return f"`{path} = {whole}`" if origin.endswith(".toml") else f"`{path}: {whole}`"
