# SPDX-License-Identifier: Apache-2.0
"""Paths that were seen -> the rules that stand for them: exact, by kind of name, or the whole of a directory.

::

    /srv/app/report-17.txt, report-18.txt      -> /srv/app/report-[0-9]*.txt     names of one skeleton
    /srv/app/{a,b,c,d}, and later e and f      -> /srv/app/                      an open set: later looks went on bringing new names
    /usr/lib/python3.11/ with 60 modules read  -> /usr/lib/python3.11/ readOnly  package files, for size

A directory is an open set when it has at least four names and looks after the first one brought at least two that the first had not:
a set that is complete after one start stays a list, however long. Nothing below /etc, /proc, /dev, /bin and the like is ever opened,
and no rule ever stands for `/`. Pure; the answer depends on the set of evidence alone, and grows when evidence is added that is
later than what was there. Must never be used for executables. Neighbours: `components` (kinds of names), `zones` (places).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from policy.learn import zones
from policy.learn.components import escape, skeleton, strong
from policy.learn.evidence import Evidence

LEAST: Final = 4
"""Names a directory must have to be an open set. Three are still read one by one; DE of 2023 opened at four without asking more."""
NEWS: Final = 2
"""Names that later looks must have brought. One may be a rare branch; measured in docs/discovery.md."""
MODULES: Final = 8
"""Names of a package directory after which reading is allowed to all of it. For the size of a policy, not for what is to come."""


class PlaceRule(msgspec.Struct, frozen=True, kw_only=True):
    """A place and its evidence. `kind`: `path`, `dir` or `pattern`; `value` as a policy has it, a `dir` with a slash at its end."""

    kind: str
    value: str
    recursive: bool = False
    evidence: Evidence
    samples: tuple[str, ...] = ()
    """Paths that it stands for, in order; of a whole directory only some."""


_NO_CHILDREN: Final[dict[str, _PathNode]] = {}
"""Of a leaf. Never added to."""
_NEVER: Final = (1 << 63, ("", 0))


class _PathNode:
    """`born`: when, and in which look, anything at or below it was seen first."""

    __slots__ = ("born", "children", "evidence")

    def __init__(self) -> None:
        self.children: dict[str, _PathNode] = _NO_CHILDREN
        self.evidence: Evidence | None = None
        self.born = _NEVER


Nodes = list[_PathNode]


def generalise(seen: Mapping[str, Evidence], *, reading: bool, patterns: bool = True) -> list[PlaceRule]:
    """The rules for `seen` (absolute paths). `reading`: only reading is meant, so package directories count as one.
    `patterns` False: no globs; what would need one becomes its directory."""
    made: list[PlaceRule] = []
    _Walk(made, reading, patterns).visit([_tree(seen)], "", "", False)
    return made


def _tree(seen: Mapping[str, Evidence]) -> _PathNode:
    root = _PathNode()
    directories: dict[str, _PathNode] = {}
    # Parents stand before what is below them.
    order: list[tuple[_PathNode, _PathNode]] = []
    for path, evidence in seen.items():
        parent, _, last = path.rpartition("/")
        node = directories.get(parent)
        if node is None:
            node = root
            for name in parent.split("/"):
                if name:
                    node = node.children.get(name) or _grown(node, name, order)
            directories[parent] = node
        if last:
            node = node.children.get(last) or _grown(node, last, order)
        # Two spellings of one path, as with a slash at its end, are one place.
        node.evidence = evidence if node.evidence is None else Evidence.of((node.evidence, evidence))
        birth = evidence.birth
        if birth < node.born:
            node.born = birth
    for above, node in reversed(order):
        if node.born < above.born:
            above.born = node.born
    return root


def _grown(node: _PathNode, name: str, order: list[tuple[_PathNode, _PathNode]]) -> _PathNode:
    below = _PathNode()
    if node.children is _NO_CHILDREN:
        node.children = {name: below}
    else:
        node.children[name] = below
    order.append((node, below))
    return below


class _Walk:
    def __init__(self, made: list[PlaceRule], reading: bool, patterns: bool) -> None:
        self._made = made
        self._reading = reading
        self._patterns = patterns

    def visit(self, nodes: Nodes, plain: str, glob: str, is_glob: bool) -> None:
        """`nodes`: all that one rule's place stands for. `plain`: one real path of it; `glob`: the place itself, escaped."""
        # A deep tree is a workload's to make: an explicit stack, no recursion.
        waiting = [(nodes, plain, glob, is_glob, False)]
        while waiting:
            nodes, plain, glob, is_glob, covered = waiting.pop()
            own = [node.evidence for node in nodes if node.evidence is not None]
            if own and not covered:
                self._emit("pattern" if is_glob else "path", plain, glob, False, own, (plain,))
            children: dict[str, Nodes] = {}
            for node in nodes:
                for name, below in node.children.items():
                    found_below = children.get(name)
                    if found_below is None:
                        children[name] = [below]
                    else:
                        found_below.append(below)
            if not children:
                continue
            directory = plain or "/"
            deep = {name: some for name, some in children.items() if _any_children(some)}
            if self._open(deep, directory):
                self._emit("dir", plain, glob, True, _all(nodes, children), _samples(plain, children), is_glob)
                continue
            leaves = {name: some for name, some in children.items() if _any_evidence(some)}
            opened = self._open(leaves, directory)
            if opened:
                found = [one.evidence for some in leaves.values() for one in some if one.evidence]
                self._emit("dir", plain, glob, False, found, _samples(plain, leaves), is_glob)
            waiting += self._below(children, plain, glob, is_glob, directory, opened)

    def _below(
        self, children: dict[str, Nodes], plain: str, glob: str, is_glob: bool, directory: str, opened: bool
    ) -> list[tuple[Nodes, str, str, bool, bool]]:
        grouped: dict[str, list[str]] = {}
        temporary = zones.temporary(directory)
        closed = zones.closed(directory)
        weak = not closed or directory.startswith("/proc")
        for name in sorted(children):
            # What is strong is its own skeleton.
            kind = skeleton(name, temporary) if weak else strong(name, temporary)
            grouped.setdefault(kind or escape(name), []).append(name)
        found: list[tuple[Nodes, str, str, bool, bool]] = []
        for kind, names in grouped.items():
            typed = len(names) > 1 or strong(names[0], temporary) != ""
            if typed and self._patterns:
                together = [node for name in names for node in children[name]]
                found.append((together, f"{plain}/{names[0]}", f"{glob}/{kind}", True, opened))
            elif typed and not closed and not zones.top(directory):
                together = [node for name in names for node in children[name]]
                deep = any(node.children for node in together)
                if not opened or deep:
                    some = {name: children[name] for name in names}
                    self._emit("dir", plain, glob, deep, _all([], some), _samples(plain, some), is_glob)
            else:
                found += [
                    (children[name], f"{plain}/{name}", f"{glob}/{escape(name)}", is_glob, opened) for name in names
                ]
        return found

    def _open(self, children: Mapping[str, Nodes], directory: str) -> bool:
        if len(children) < LEAST or zones.closed(directory) or zones.top(directory):
            return False
        temporary = zones.temporary(directory)
        births: dict[str, tuple[int, tuple[str, int]]] = {}
        for name, nodes in children.items():
            kind = skeleton(name, temporary)
            birth = nodes[0].born if len(nodes) == 1 else min(node.born for node in nodes)
            known = births.get(kind)
            if known is None or birth < known:
                births[kind] = birth
        if self._reading and len(births) >= MODULES and zones.program(directory):
            return True
        if len(births) < LEAST:
            return False
        _, first_look = min(births.values())
        return sum(look != first_look for _, look in births.values()) >= NEWS

    def _emit(
        self, kind: str, plain: str, glob: str, recursive: bool, found: Iterable[Evidence], samples: tuple[str, ...],
        is_glob: bool = False,
    ) -> None:  # fmt: skip
        # `dir` takes one line of text; what has a line break in it is named by a glob.
        if kind == "dir" and (is_glob or not plain.isprintable()):
            self._made.append(
                PlaceRule(
                    kind="pattern",
                    value=f"{glob}/{'**' if recursive else '*'}",
                    evidence=Evidence.of(found),
                    samples=samples,
                )
            )
            return
        value = f"{plain}/" if kind == "dir" else plain if kind == "path" else glob
        if kind == "path" and value == "":
            kind, value = "pattern", "/"
        self._made.append(
            PlaceRule(kind=kind, value=value, recursive=recursive, evidence=Evidence.of(found), samples=samples)
        )


def _any_children(nodes: Nodes) -> bool:
    return nodes[0].children is not _NO_CHILDREN or (len(nodes) > 1 and any(node.children for node in nodes))


def _any_evidence(nodes: Nodes) -> bool:
    return nodes[0].evidence is not None or (len(nodes) > 1 and any(node.evidence is not None for node in nodes))


def _all(nodes: Nodes, children: dict[str, Nodes]) -> list[Evidence]:
    found = [node.evidence for node in nodes if node.evidence is not None]
    waiting = [one for some in children.values() for one in some]
    while waiting:
        one = waiting.pop()
        if one.evidence is not None:
            found.append(one.evidence)
        waiting += one.children.values()
    return found


def _samples(plain: str, children: Mapping[str, Nodes]) -> tuple[str, ...]:
    return tuple(f"{plain}/{name}" for name in sorted(children)[:5])
