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
from heapq import nsmallest
from typing import Final

import msgspec

from policy.learn import zones
from policy.learn.components import escape, skeleton, strong
from policy.learn.evidence import NEVER, Birth, Evidence, look

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
_NO_LEAVES: Final[dict[str, Evidence]] = {}
"""Of nodes that have none. Never added to."""


class _PathNode:
    """A directory. `leaves`: evidence of what lies in it by name, of a directory that was opened itself too; `children`: directories with
    something below them. `first`: when anything at or below it was seen first (Unix ns), by the instance `uid`."""

    __slots__ = ("children", "first", "leaves", "uid")

    def __init__(self) -> None:
        self.children: dict[str, _PathNode] = _NO_CHILDREN
        self.leaves: dict[str, Evidence] = _NO_LEAVES
        self.first = NEVER
        self.uid = ""

    def older(self, one: Evidence | _PathNode) -> None:
        """What it may have been seen first by."""
        if one.first < self.first or (one.first == self.first and one.uid < self.uid):
            self.first = one.first
            self.uid = one.uid


Nodes = list[_PathNode]
Names = Mapping[str, tuple[Nodes, list[Evidence]]]
"""What is called so: directories with something below, and what was seen of the name itself."""


def generalise(seen: Mapping[str, Evidence], *, reading: bool, patterns: bool = True) -> list[PlaceRule]:
    """The rules for `seen` (absolute paths). `reading`: only reading is meant, so package directories count as one.
    `patterns` False: no globs; what would need one becomes its directory."""
    made: list[PlaceRule] = []
    root, own = _tree(seen)
    _Walk(made, reading, patterns).visit([root], own)
    return made


def _tree(seen: Mapping[str, Evidence]) -> tuple[_PathNode, list[Evidence]]:
    """(the root, what was seen of the root itself)."""
    root = _PathNode()
    own: list[Evidence] = []
    directories = {"": root}
    # Parents stand before what is below them.
    order: list[tuple[_PathNode, _PathNode]] = []
    for path, evidence in seen.items():
        parent, _, last = path.rpartition("/")
        if not last:
            # Two spellings of one path, as with a slash at its end, are one place.
            names = [name for name in parent.split("/") if name]
            if not names:
                own.append(evidence)
                continue
            parent, last = "/".join(["", *names[:-1]]), names[-1]
        node = directories.get(parent)
        if node is None:
            node = _directory(directories, parent, order)
        leaves = node.leaves
        if leaves is _NO_LEAVES:
            node.leaves = {last: evidence}
        else:
            known = leaves.get(last)
            leaves[last] = evidence if known is None else Evidence.of((known, evidence))
        if evidence.first <= node.first:
            node.older(evidence)
    for above, node in reversed(order):
        if node.first <= above.first:
            above.older(node)
    return root, own


def _directory(directories: dict[str, _PathNode], path: str, order: list[tuple[_PathNode, _PathNode]]) -> _PathNode:
    missing: list[str] = []
    node = None
    while node is None:
        missing.append(path)
        # Of a path that does not begin with a slash the rest is nothing.
        path = path[: max(path.rfind("/"), 0)]
        node = directories.get(path)
    for path in reversed(missing):
        name = path[path.rfind("/") + 1 :]
        if name:
            above, node = node, _PathNode()
            if above.children is _NO_CHILDREN:
                above.children = {name: node}
            else:
                # Of two spellings (`//`) the first made it.
                node = above.children.setdefault(name, node)
            order.append((above, node))
        directories[path] = node
    return node


class _Walk:
    def __init__(self, made: list[PlaceRule], reading: bool, patterns: bool) -> None:
        self._made = made
        self._reading = reading
        self._patterns = patterns

    def visit(self, roots: Nodes, own: list[Evidence]) -> None:
        """`roots`: one tree, and what was seen of its root."""
        # A deep tree is a workload's to make: an explicit stack, no recursion. Each: directories that one rule's place stands for, what was
        # seen of them, one real path of it, the place itself as a glob, whether it is one, whether a rule above covers `own`.
        waiting = [(roots, own, "", "", False, False)]
        while waiting:
            nodes, own, plain, glob, is_glob, covered = waiting.pop()
            if own and not covered:
                self._emit("pattern" if is_glob else "path", plain, glob, False, own, (plain,))
            if not nodes:
                continue
            directory = plain or "/"
            opened = False
            if sum([len(node.children) + len(node.leaves) for node in nodes]) >= LEAST and not (
                zones.closed(directory) or zones.top(directory)
            ):
                deep, leaves = _births(nodes)
                if self._open(deep, directory):
                    self._emit(
                        "dir", plain, glob, True, [*own, *_below(nodes)], _samples(plain, {**deep, **leaves}), is_glob
                    )
                    continue
                opened = self._open(leaves, directory)
                if opened:
                    found = [one for node in nodes for one in node.leaves.values()]
                    self._emit("dir", plain, glob, False, found, _samples(plain, leaves), is_glob)
                    if not deep:
                        continue
            waiting += self._inner(_named(nodes), plain, glob, is_glob, directory, opened)

    def _inner(
        self, names: Names, plain: str, glob: str, is_glob: bool, directory: str, opened: bool
    ) -> list[tuple[Nodes, list[Evidence], str, str, bool, bool]]:
        grouped: dict[str, list[str]] = {}
        temporary = zones.temporary(directory)
        closed = zones.closed(directory)
        kind_of = skeleton if not closed or directory.startswith("/proc") else strong
        for name in sorted(names):
            # What is strong is its own skeleton.
            kind = kind_of(name, temporary) or escape(name)
            some = grouped.get(kind)
            if some is None:
                grouped[kind] = [name]
            else:
                some.append(name)
        found: list[tuple[Nodes, list[Evidence], str, str, bool, bool]] = []
        for kind, same in grouped.items():
            first = same[0]
            typed = len(same) > 1 or strong(first, temporary) != ""
            if not typed:
                nodes, own = names[first]
                if nodes or not opened:
                    found.append((nodes, own, f"{plain}/{first}", f"{glob}/{escape(first)}", is_glob, opened))
                continue
            nodes = [node for name in same for node in names[name][0]]
            own = [one for name in same for one in names[name][1]]
            if self._patterns:
                if nodes or not opened:
                    found.append((nodes, own, f"{plain}/{first}", f"{glob}/{kind}", True, opened))
            elif not closed and not zones.top(directory):
                if nodes or not opened:
                    self._emit("dir", plain, glob, bool(nodes), [*own, *_below(nodes)], _samples(plain, same), is_glob)
            else:
                found += [(*names[name], f"{plain}/{name}", f"{glob}/{escape(name)}", is_glob, opened) for name in same]
        return found

    def _open(self, born: Mapping[str, Birth], directory: str) -> bool:
        """Whether a rule stands for the whole of a directory with these names in it, where one may."""
        if len(born) < LEAST:
            return False
        temporary = zones.temporary(directory)
        if (
            self._reading
            and len(born) >= MODULES
            and zones.program(directory)
            and len({skeleton(name, temporary) for name in born}) >= MODULES
        ):
            return True
        first_look = look(min(born.values()))
        if sum(look(birth) != first_look for birth in born.values()) < NEWS:
            # A kind of names is as old as the oldest of them.
            return False
        births: dict[str, Birth] = {}
        for name, birth in born.items():
            kind = skeleton(name, temporary)
            known = births.get(kind)
            if known is None or birth < known:
                births[kind] = birth
        if len(births) < LEAST:
            return False
        return sum(look(birth) != first_look for birth in births.values()) >= NEWS

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


def _births(nodes: Nodes) -> tuple[dict[str, Birth], dict[str, Birth]]:
    """When what is called so was first seen, anything below it too: of directories with something below, and of names that were seen
    themselves."""
    deep: dict[str, Birth] = {}
    leaves: dict[str, Birth] = {}
    for node in nodes:
        for name, evidence in node.leaves.items():
            birth = evidence.first, evidence.uid
            if name not in leaves or birth < leaves[name]:
                leaves[name] = birth
        for name, below in node.children.items():
            birth = below.first, below.uid
            if name not in deep or birth < deep[name]:
                deep[name] = birth
    for name in deep.keys() & leaves.keys():
        deep[name] = leaves[name] = min(deep[name], leaves[name])
    return deep, leaves


def _named(nodes: Nodes) -> Names:
    found: dict[str, tuple[Nodes, list[Evidence]]] = {}
    for node in nodes:
        for name, evidence in node.leaves.items():
            known = found.get(name)
            if known is None:
                found[name] = ([], [evidence])
            else:
                known[1].append(evidence)
        for name, below in node.children.items():
            known = found.get(name)
            if known is None:
                found[name] = ([below], [])
            else:
                known[0].append(below)
    return found


def _below(nodes: Nodes) -> list[Evidence]:
    found: list[Evidence] = []
    waiting = [*nodes]
    while waiting:
        one = waiting.pop()
        found += one.leaves.values()
        waiting += one.children.values()
    return found


def _samples(plain: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{plain}/{name}" for name in nsmallest(5, names))
