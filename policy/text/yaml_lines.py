# SPDX-License-Identifier: Apache-2.0
"""YAML text to trees with lines and columns, through libyaml's events. Bounded, and never an exception.

Events rather than PyYAML's composer, because the composer recurses in C: a file of a million brackets would end the
process. After a syntax error reading goes on at the next `---`, so that one bad document does not hide the others.
Neighbours: `json_lines` (the same for JSON), `yaml_nodes` (the tree).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]

from policy.text import codes
from policy.text.diagnostics import LINE_BREAK, Report
from policy.text.kinds import foreign, listed
from policy.text.yaml_nodes import Mapping, Node, Scalar, ScalarKind, Sequence, plain_kind

DEPTH: Final = 32
"""Levels of nesting that are kept. The deepest valid policy has 9; what lies deeper is left out, and is an error in a policy."""
DEEPEST: Final = 1000
"""Levels at which reading stops, whosever document it is: libyaml's time grows with the square of them."""
EXPANDED: Final = 32 * 1024 * 1024
"""Characters (and 16 per node) after every alias is replaced by what it stands for."""
RESTARTS: Final = 50
"""Documents with syntax errors after which the rest of the file is left."""

_TAGS: Final[dict[str, ScalarKind]] = {
    "tag:yaml.org,2002:str": "str",
    "tag:yaml.org,2002:int": "int",
    "tag:yaml.org,2002:float": "float",
    "tag:yaml.org,2002:bool": "bool",
    "tag:yaml.org,2002:null": "null",
}
_STRUCTURE: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_HINTS: Final = (
    ("while scanning an alias", 'a plain `*` starts an alias; write `"*"`'),
    ("while scanning an anchor", "a plain `&` starts an anchor; quote the text"),
    (
        "cannot start any token",
        "indent with blanks, not tabs, and quote text that starts with a sign such as `%`, `@` or a backquote",
    ),
    ("mapping values are not allowed", "look for `: ` inside unquoted text, or wrong indentation"),
    ("did not find expected key", "look for wrong indentation here or above"),
    ("block sequence entries are not allowed", "put the list on lines of its own"),
    ("unexpected end of stream", "look for a quote that is not closed"),
)


class _Stop(Exception):
    """A limit was reached; the report says which."""


class _Open:
    """A list or mapping whose end was not seen yet."""

    __slots__ = ("anchor", "height", "key", "node", "weight")

    def __init__(self, node: Sequence | Mapping, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: Node | None = None
        self.weight = 16
        self.height = 1


def read(text: str, report: Report) -> list[Node]:
    """The documents of `text`; empty documents are left out. What cannot be read is reported."""
    documents: list[Node] = []
    first_line = 0
    rest = text
    for _ in range(RESTARTS):
        reader = _YamlReader(report, first_line)
        try:
            reader.run(rest, documents)
            break
        except _Stop:
            break
        except yaml.YAMLError as error:
            failed = reader.syntax_error(error)
        except UnicodeError:
            report.add(codes.NOT_TEXT, "not UTF-8 text", line=1, column=1)
            break
        lines = LINE_BREAK.split(rest)
        skip = next(
            (at for at in range(max(failed, 1), len(lines)) if lines[at] == "---" or lines[at].startswith("--- ")), None
        )
        if skip is None:
            break
        first_line += skip
        rest = "\n".join(lines[skip:])
    return documents


class _YamlReader:
    def __init__(self, report: Report, first_line: int) -> None:
        self.report = report
        self.first_line = first_line
        self.aliased = False
        self.inner: list[tuple[int, Callable[[], None]]] = []
        """Findings inside of a document, each with the number of its item if the document is a `kind: List`."""
        self.item = 0

    def place(self, event: Any) -> tuple[int, int, int]:
        start, end = event.start_mark, event.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return start.line + 1 + self.first_line, start.column + 1, max(1, width)

    def run(self, text: str, documents: list[Node]) -> None:
        parser = CParser(text)
        try:
            while True:
                event = parser.get_event()
                if event is None or isinstance(event, yaml.StreamEndEvent):
                    return
                if isinstance(event, yaml.DocumentStartEvent):
                    self.inner, self.item = [], 0
                    node = self.document(parser)
                    self.tell(node)
                    if not (isinstance(node, Scalar) and node.kind == "null"):
                        documents.append(node)
        finally:
            parser.dispose()

    def tell(self, node: Node) -> None:
        """Report what was found inside of a document, but for what is somebody else's."""
        items = listed(node)
        for number, report in self.inner:
            holder = node if items is None or number >= len(items.items) else items.items[number]
            if not foreign(holder):
                report()

    def say(self, code: codes.Code, message: str, line: int, column: int, width: int = 1) -> None:
        self.inner.append(
            (self.item, lambda: self.report.add(code, message, line=line, column=column, width=width)),
        )

    def document(self, parser: Any) -> Node:
        anchors: dict[str, tuple[Node, int, int]] = {}
        open_anchors: set[str] = set()
        stack: list[_Open] = []
        root: Node | None = None
        below = 0
        while True:
            event = parser.get_event()
            if below:
                below += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
                below -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
                if below > DEEPEST:
                    line, column, _ = self.place(event)
                    self.stop(codes.TOO_DEEP, f"more than {DEEPEST} levels of lists and mappings", line, column)
                continue
            if len(stack) > 1:
                outer = stack[1].node
                self.item = len(outer.items) if isinstance(outer, Sequence) else 0
            if isinstance(event, yaml.DocumentEndEvent):
                assert root is not None
                return root
            line, column, width = self.place(event)
            node: Node
            if isinstance(event, yaml.ScalarEvent):
                node, weight, height = self.scalar(event, line, column, width), len(event.value) + 16, 0
                if event.anchor:
                    anchors[event.anchor] = (node, weight, 0)
            elif isinstance(event, yaml.AliasEvent):
                self.aliased = True
                node, weight, height = self.alias(event.anchor or "", anchors, open_anchors, line, column, width)
                if len(stack) + height > DEPTH:
                    # Aliases of aliases would be as deep as they are many.
                    self.say(codes.TOO_DEEP, f"more than {DEPTH} levels of lists and mappings", line, column, width)
                    node, weight, height = Scalar("", "lost", line, column, width), 16, 0
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                if len(stack) >= DEPTH:
                    self.say(codes.TOO_DEEP, f"more than {DEPTH} levels of lists and mappings", line, column)
                    below = 1
                    self.put(stack[-1], Scalar("", "lost", line, column), 16, line, column)
                    continue
                mapping = isinstance(event, yaml.MappingStartEvent)
                self.tag(event.tag, line, column)
                stack.append(
                    _Open(Mapping([], line, column, 1) if mapping else Sequence([], line, column, 1), event.anchor)
                )
                if event.anchor:
                    open_anchors.add(event.anchor)
                continue
            else:
                closed = stack.pop()
                node, weight, height = closed.node, closed.weight, closed.height
                if isinstance(node, Mapping):
                    self.merge(node)
                    if node.pairs:
                        node.width = node.pairs[0][0].width
                if closed.anchor:
                    anchors[closed.anchor] = (node, weight, height)
                    open_anchors.discard(closed.anchor)
            if not stack:
                root = node
                continue
            stack[-1].height = max(stack[-1].height, height + 1)
            self.put(stack[-1], node, weight, line, column)

    def put(self, top: _Open, node: Node, weight: int, line: int, column: int) -> None:
        """Give `node` to the list or mapping that holds it."""
        top.weight += weight
        if top.weight > EXPANDED:
            if self.aliased:
                self.stop(codes.ALIAS, f"aliases expand to more than {EXPANDED >> 20} MiB", line, column)
            self.stop(codes.TOO_LARGE, f"one document takes more than {EXPANDED >> 20} MiB", line, column)
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
        elif top.key is None:
            top.key = node
        else:
            top.node.pairs.append((top.key, node))
            top.key = None

    def scalar(self, event: Any, line: int, column: int, width: int) -> Scalar:
        kind: ScalarKind
        if event.tag is None or event.tag == "!":
            kind = plain_kind(event.value) if event.implicit[0] and event.tag is None else "str"
        elif event.tag in _TAGS:
            kind = _TAGS[event.tag]
        else:
            kind = "str"
            self.tag(event.tag, line, column)
        return Scalar(event.value, kind, line, column, width, event.style == "|")

    def alias(
        self,
        name: str,
        anchors: dict[str, tuple[Node, int, int]],
        open_anchors: set[str],
        line: int,
        column: int,
        width: int,
    ) -> tuple[Node, int, int]:
        if name in open_anchors:
            self.say(codes.ALIAS, f"`*{name}` stands inside of what it stands for", line, column, width)
        elif name not in anchors:
            self.say(codes.ALIAS, f"`*{name}` has no anchor `&{name}` before it", line, column, width)
        else:
            return anchors[name]
        return Scalar("", "lost", line, column, width), 16, 0

    def tag(self, tag: str | None, line: int, column: int) -> None:
        if tag not in _STRUCTURE:
            self.say(codes.TAG, f"tag `{tag}` is ignored", line, column)

    def merge(self, node: Mapping) -> None:
        """Replace `<<: *other` by the pairs of `other` that the mapping does not have itself."""
        merges = [(key, value) for key, value in node.pairs if isinstance(key, Scalar) and key.text == "<<"]
        if not merges:
            return
        own = [(key, value) for key, value in node.pairs if not (isinstance(key, Scalar) and key.text == "<<")]
        seen = {key.text for key, _ in own if isinstance(key, Scalar)}
        for key, value in merges:
            for part in value.items if isinstance(value, Sequence) else [value]:
                if not isinstance(part, Mapping):
                    self.say(codes.NOT_A_KEY, "`<<` needs a mapping to merge", key.line, key.column, 2)
                    continue
                for inner, content in part.pairs:
                    if isinstance(inner, Scalar) and inner.text not in seen:
                        seen.add(inner.text)
                        own.append((inner, content))
        node.pairs = own

    def stop(self, code: codes.Code, message: str, line: int, column: int) -> None:
        self.report.add(code, message, line=line, column=column)
        raise _Stop

    def syntax_error(self, error: yaml.YAMLError) -> int:
        """Report it; returns the line, counted from 0 in the text given to `run`."""
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        context, context_mark = getattr(error, "context", None), getattr(error, "context_mark", None)
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        notes: tuple[str, ...] = ()
        if context and context_mark is not None and context_mark.line != line:
            notes = (f"{context}, which starts at line {context_mark.line + 1 + self.first_line}",)
        hint = next((help_ for sign, help_ in _HINTS if sign in f"{context} {problem}"), "")
        self.report.add(
            codes.SYNTAX, str(problem), suggestion=hint, line=line + 1 + self.first_line, column=column + 1, notes=notes
        )
        return line
