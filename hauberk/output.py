# SPDX-License-Identifier: Apache-2.0
"""How the command line prints: kubectl's `-o table|wide|json|yaml|name`, plain when it is not a terminal or NO_COLOR is set."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from schemas.cell import shortened

FORMATS: Final = ("table", "wide", "json", "yaml", "name")

_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+")
"""What YAML 1.2 reads as a number. The library writes for 1.1, to which `12345e7`, as a commit may be called, is a word."""
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}


def colourful(stream: Any = None) -> bool:
    """Whether colour is wanted on `stream` (https://no-color.org)."""
    stream = stream or sys.stdout
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, on: bool | None = None) -> str:
    """`text` in `colour` when `on` (default: when stdout wants colour)."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if (colourful() if on is None else on) else text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def printable(text: str) -> str:
    """`text` without control characters: a path chosen by a workload must not drive the reader's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    # A byte that is not UTF-8 is kept as a surrogate inside.
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, headings: bool = True, whole: bool = True
) -> str:
    """Columns padded to their widest cell, three blanks apart, as kubectl prints them. Long cells are cut unless `whole`."""
    cut = str if whole else shortened
    cells = [[cut(printable(str(cell))) for cell in row] for row in rows]
    if headings:
        cells.insert(0, list(headers))
    widths = [max((_width(row[column]) for row in cells), default=0) for column in range(len(headers))]
    lines = []
    for row in cells:
        parts = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("   ".join(parts).rstrip())
    return "\n".join(lines)


def as_json(value: object) -> str:
    """Indented JSON of plain values or structs."""
    import orjson

    return orjson.dumps(plain(value), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()


def as_yaml(value: object) -> str:
    """Block YAML of plain values or structs, which every reader reads back as they are. What is not printable is written as an escape."""
    import yaml

    return str(yaml.dump(plain(value), Dumper=_dumper(), sort_keys=False, allow_unicode=True)).rstrip("\n")


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """A name that a workload chose neither drives a terminal nor reads back as another: U+0085, raw as the base class writes it, is
        a line break to readers, and a change of the direction of text shows another name than is there."""

        def write_double_quoted(self, text: str, split: bool = True) -> None:
            allowed, self.allow_unicode = self.allow_unicode, text.isprintable()
            super().write_double_quoted(text, split)
            self.allow_unicode = allowed

    def text(dumper: Any, data: str) -> Any:
        hostile = not data.isprintable() and not data.replace("\n", "").isprintable()
        quoted = hostile or _NUMBER.fullmatch(data) is not None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if quoted else None)

    Dumper.add_representer(str, text)
    return Dumper


def plain(value: object) -> Any:
    """Structs, tuples and enums as dicts, lists and strings, with field names even for array-like structs."""
    import enum

    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, enum.Flag):
        return "|".join(str(member.name).lower() for member in type(value) if member in value)
    if isinstance(value, enum.Enum):
        return value.name.lower() if isinstance(value, int) else value.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        # Paths that are not UTF-8 are kept as surrogates inside; outside they are shown escaped.
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def age(seconds: float) -> str:
    """kubectl's age: `42s`, `3m10s`, `5h`, `2d`."""
    whole = int(max(seconds, 0))
    if whole < 120:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 7200:
        return f"{whole // 60}m"
    if whole < 172800:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def show(value: object, columns: Sequence[str], rows: Sequence[Sequence[object]], form: str, *, wide: Sequence[str] = (),
         names: Sequence[str] = (), headings: bool = True) -> str:  # fmt: skip
    """One answer in the asked form. `rows` hold the `columns` and then the `wide` ones; `value` is what json and yaml print."""
    if form == "json":
        return as_json(value)
    if form == "yaml":
        return as_yaml(value)
    if form == "name":
        return "\n".join(names)
    count = len(columns) + (len(wide) if form == "wide" else 0)
    return table((*columns, *wide)[:count], [row[:count] for row in rows], headings=headings, whole=form == "wide")
