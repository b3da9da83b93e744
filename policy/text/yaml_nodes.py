# SPDX-License-Identifier: Apache-2.0
"""The tree both readers make: scalars, lists and mappings, each with the line and column it starts at.

Mappings keep every pair as written, duplicates too. Scalars keep their text; what it is (`kind`) follows the rules of
the YAML library Kubernetes uses, so `yes` is a boolean and `0x1F` a number unless quoted.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

ScalarKind = Literal["str", "int", "float", "bool", "null", "lost"]
"""`lost`: an alias that could not be followed; it was reported, so whatever holds it is silently left out."""


class Scalar(msgspec.Struct):
    """`text` as written (quotes removed). `width`: characters it takes on its line. `literal`: lines of their own after `|`, which
    stand in the file as they stand in `text`."""

    text: str
    kind: ScalarKind
    line: int
    column: int
    width: int = 1
    literal: bool = False


class Sequence(msgspec.Struct):
    """A list."""

    items: list[Scalar | Sequence | Mapping]
    line: int
    column: int
    width: int = 1


class Mapping(msgspec.Struct):
    """Keys and values in the order written, merge keys already merged (own keys first)."""

    pairs: list[tuple[Scalar | Sequence | Mapping, Scalar | Sequence | Mapping]]
    line: int
    column: int
    width: int = 1


Node = Scalar | Sequence | Mapping

_WORDS: dict[str, ScalarKind] = {"": "null", "~": "null", "null": "null", "Null": "null", "NULL": "null"}
_TRUE = ("true", "yes", "on", "y")
_FALSE = ("false", "no", "off", "n")
for _word in (*_TRUE, *_FALSE):
    _WORDS |= dict.fromkeys((_word, _word.capitalize(), _word.upper()), "bool")
_INT = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)\Z")
_FLOAT = re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")  # fmt: skip


def plain_kind(text: str) -> ScalarKind:
    """What an unquoted scalar is."""
    word = _WORDS.get(text)
    if word is not None:
        return word
    if text[:1] in "+-.0123456789":
        if _INT.match(text):
            return "int"
        if _FLOAT.match(text):
            return "float"
    return "str"


def truth(text: str) -> bool:
    """The value of a scalar of kind `bool`."""
    return text.lower() in _TRUE


def number(text: str) -> int | None:
    """The value of a scalar of kind `int`; None when it has no digits or more than anybody needs."""
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if len(digits) > 64:
        return None
    try:
        if digits[:2] in ("0x", "0b", "0o"):
            return sign * int(digits, 0)
        if len(digits) > 1 and digits[0] == "0":
            return sign * int(digits, 8)
        return sign * int(digits)
    except ValueError:
        return None


def describe(node: Node) -> str:
    """What came, for messages: ``a list``, ``the number `5` ``."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if node.kind in ("null", "lost"):
        return "nothing"
    shown = node.text if len(node.text) <= 60 else node.text[:57] + "..."
    word = {"str": "text", "int": "number", "float": "number", "bool": "boolean"}[node.kind]
    return f"the {word} `{shown}`"


def plain(node: Node) -> object:
    """Python values of the tree; the last of two equal keys wins, as in Kubernetes."""
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    if isinstance(node, Mapping):
        return {key.text: plain(value) for key, value in node.pairs if isinstance(key, Scalar)}
    match node.kind:
        case "null" | "lost":
            return None
        case "bool":
            return truth(node.text)
        case "int":
            value = number(node.text)
            return value if value is not None and -(2**63) <= value < 2**64 else node.text
        case "float":
            try:
                return float(node.text)
            except ValueError:
                return node.text
        case _:
            return node.text
