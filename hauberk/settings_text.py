# SPDX-License-Identifier: Apache-2.0
"""Settings text to a tree: TOML, YAML or JSON, of bounded size and depth, and nothing but SettingsError.

Each parser fails in its own way on nesting: libyaml's composer ends the process, tomllib and msgspec raise RecursionError,
a dotted TOML key takes time that grows with the square of its steps, a YAML alias stands for any number of others. All of
them are counted before anything is built. Neighbour: `settings` (which merges trees).
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from schemas.errors import SettingsError
from schemas.file_text import not_utf8

SIZE: Final = 1 << 20
"""Bytes of a settings file; with every setting in it, one has 40 KiB."""
DEPTH: Final = 16
"""Levels of tables and lists. The deepest setting has 6."""
_DOTS: Final = 256


def parse(data: bytes, form: str, name: str) -> dict[str, Any]:
    """The table in `data`. `form`: toml, yaml or json. SettingsError names `name`."""
    try:
        # A mark at its start, as editors of Windows write it, is no part of the text.
        value = _decoded(data.decode("utf-8-sig").encode(), form, name)
    except SettingsError:
        raise
    except UnicodeDecodeError as error:
        raise SettingsError(f"expected {form.upper()} in `{name}`, got {not_utf8(error)}") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise SettingsError(f"expected {form.upper()} in `{name}`, got an error: {one_line(error)}") from error
    except RecursionError as error:
        raise too_deep(f"`{name}`") from error
    except Exception as error:
        # PyYAML's errors share no base with the decoders above.
        if type(error).__module__.startswith("yaml"):
            raise SettingsError(f"expected YAML in `{name}`, got an error: {one_line(error)}") from error
        raise
    if not isinstance(value, dict):
        raise SettingsError(f"expected a table of settings in `{name}`, got `{type(value).__name__}`")
    bounded(value, f"`{name}`")
    return value


def _decoded(data: bytes, form: str, name: str) -> Any:
    if form == "json":
        return msgspec.json.decode(data)
    if form == "toml":
        if any(line.count(b".") > _DOTS for line in data.splitlines()):
            raise SettingsError(
                f"expected keys of at most {DEPTH} steps in `{name}`, got a line with over {_DOTS} dots"
            )
        return msgspec.toml.decode(data)
    from policy.text.diagnostics import Report
    from policy.text.yaml_lines import read

    report = Report(name)
    # Reads by events: it says what is nested too deep or expands without end before the composer sees it.
    read(data.decode(), report)
    for found in report.sorted():
        if found.level == "error":
            raise SettingsError(f"expected YAML in `{name}`, got an error: {one_line(found)}")
    return msgspec.yaml.decode(data) or {}


def bounded(tree: object, where: str) -> None:
    """SettingsError when `tree` is deeper than DEPTH, or holds a key that is no text or a number that is none."""
    waiting = [(tree, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH:
            raise too_deep(where)
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise SettingsError(f"settings: expected names as keys in {where}, got `{key}`; put it in quotes")
            waiting += [(below, depth + 1) for below in value.values()]
        elif isinstance(value, list):
            waiting += [(below, depth + 1) for below in value]
        elif not isinstance(value, str | int | float | None):
            raise SettingsError(
                f"settings: expected text, numbers, tables and lists in {where}, got a {type(value).__name__}; put it in quotes"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"settings: expected finite numbers in {where}, got `{value}`")


def too_deep(where: str) -> SettingsError:
    """The error for nesting without end."""
    return SettingsError(f"settings: expected at most {DEPTH} levels of tables and lists in {where}, got more")


def one_line(error: object) -> str:
    """What it says, without line breaks."""
    said = re.sub(r"\s+", " ", str(error)).strip()
    return said if len(said) <= 400 else said[:399] + "\u2026"
