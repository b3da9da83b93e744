# SPDX-License-Identifier: Apache-2.0
"""JSON text to the same trees as YAML: what travels on `policies.v1` and what gRPC clients send.

JSON is nearly YAML, but libyaml refuses surrogate pairs such as "\\ud83d\\ude00" and tabs in some places. `read` answers
None for what is not strict JSON; the caller then takes it for YAML in flow style, whose errors have lines.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from policy.text.diagnostics import LINE_BREAK
from policy.text.yaml_lines import DEPTH
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence

_TOKEN = re.compile(
    r'[ \t\r\n]*(?:(?P<punct>[{}\[\],:])|(?P<str>"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*")'
    r"|(?P<num>-?(?:0|[1-9][0-9]*)(?P<frac>(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?))|(?P<word>true|false|null)|(?P<end>\Z))"
)


class _NotJson(Exception):
    """The text is not strict JSON, or deeper than a policy may be."""


def read(text: str) -> list[Node] | None:
    """The values in `text`, one after the other, or None when it is not JSON."""
    documents: list[Node] = []
    try:
        reader = _JsonReader(text)
        while reader.peek() != "end":
            documents.append(reader.value(0))
    except (_NotJson, ValueError):
        return None
    return documents


class _JsonReader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts = [0, *(found.end() for found in LINE_BREAK.finditer(text))]
        self.token = self.next()

    def next(self) -> re.Match[str]:
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            raise _NotJson
        self.at = found.end()
        self.token = found
        return found

    def peek(self) -> str:
        return self.token["punct"] or self.token.lastgroup or ""

    def take(self, punct: str) -> bool:
        if self.token["punct"] != punct:
            return False
        self.next()
        return True

    def place(self) -> tuple[int, int]:
        start = self.token.start(self.token.lastgroup or 0)
        line = bisect_right(self.starts, start)
        return line, start - self.starts[line - 1] + 1

    def value(self, depth: int) -> Node:
        if depth > DEPTH:
            raise _NotJson
        line, column = self.place()
        if self.take("{"):
            mapping = Mapping([], line, column)
            while not self.take("}"):
                if mapping.pairs and not self.take(","):
                    raise _NotJson
                if self.token["str"] is None:
                    raise _NotJson
                key = self.scalar()
                if not self.take(":"):
                    raise _NotJson
                mapping.pairs.append((key, self.value(depth + 1)))
            return mapping
        if self.take("["):
            sequence = Sequence([], line, column)
            while not self.take("]"):
                if sequence.items and not self.take(","):
                    raise _NotJson
                sequence.items.append(self.value(depth + 1))
            return sequence
        return self.scalar()

    def scalar(self) -> Scalar:
        line, column = self.place()
        token = self.token
        if token["str"] is not None:
            node = Scalar(json.loads(token["str"]), "str", line, column, len(token["str"]))
        elif token["num"] is not None:
            node = Scalar(token["num"], "float" if token["frac"] else "int", line, column, len(token["num"]))
        elif token["word"] is not None:
            word = token["word"]
            node = Scalar("" if word == "null" else word, "null" if word == "null" else "bool", line, column, len(word))
        else:
            raise _NotJson
        self.next()
        return node
