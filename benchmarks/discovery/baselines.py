# SPDX-License-Identifier: Apache-2.0
"""What the learner is compared with: the exact list, the engine of 2023 that this goes past, and a trie that collapses at fifty.

Own ports of published algorithms, each as `learn(behaviours) -> allows(behaviour)` and a number of rules. Directories cover
themselves, which is the reading that is kinder to the engine of 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from policy.judge.sockets import LOCAL, words
from policy.learn.sightings import paths, writes
from schemas.behaviour import Behaviour
from schemas.operations import Class

Allows = Callable[[Behaviour], bool]
Learnt = tuple[Allows, int]


def _socket(one: Behaviour) -> str:
    known = words(one.family, one.socket_type, one.protocol)
    return next((word for word in ("tcp", "udp", "icmp") if word in known), known[-1])


def exact(seen: Iterable[Behaviour]) -> Learnt:
    """Every path that was seen, reading and changing apart, every program, every protocol."""
    known: set[tuple[str, str]] = set()
    for one in seen:
        known |= set(_facts(one))
    return (lambda one: all(fact in known for fact in _facts(one))), len(known)


def _facts(one: Behaviour) -> list[tuple[str, str]]:
    if one.cls is Class.NETWORK:
        return [] if one.family in LOCAL else [("net", _socket(one))]
    kind = "exec" if one.cls is Class.PROCESS else "write" if writes(one) else "read"
    return [(kind, path) for path in paths(one)]


class _Trie:
    __slots__ = ("children", "directory", "leaf")

    def __init__(self) -> None:
        self.children: dict[str, _Trie] = {}
        self.leaf = self.directory = False


def aggregate(seen: Iterable[str], threshold: int) -> set[str]:
    """The path aggregation of that engine: a node with more than `threshold` children becomes a directory and loses them, from the
    leaves up, one tree for each first component; only leaves are told, so a path that others lie below is lost."""
    roots: dict[str, _Trie] = {}
    for path in sorted(set(seen)):
        names = re.findall(r"/.[^/]*", path)
        if not names:
            continue
        if names[0] == "/tmp":
            names, path = ["/tmp"], "/tmp/"
        node = roots.setdefault(names[0], _Trie())
        for name in names[1:]:
            node = node.children.setdefault(name, _Trie())
        node.directory |= path.endswith("/")
    found: set[str] = set()
    for name, root in roots.items():
        _collapse(root, threshold)
        _leaves(root, name, found)
    return found


def _collapse(node: _Trie, threshold: int) -> None:
    for below in node.children.values():
        _collapse(below, threshold)
    if len(node.children) > threshold:
        node.children, node.directory = {}, True


def _leaves(node: _Trie, path: str, found: set[str]) -> None:
    if not node.children:
        found.add(path + "/" if node.directory else path)
    for name, below in node.children.items():
        _leaves(below, path + name, found)


def _covered(path: str, rules: set[str]) -> bool:
    if path in rules or f"{path}/" in rules:
        return True
    end = path.find("/", 1)
    while end > 0:
        if path[: end + 1] in rules:
            return True
        end = path.find("/", end + 1)
    return False


def engine_2023(seen: Iterable[Behaviour], threshold: int = 3) -> Learnt:
    """One list for reading and changing, /proc and /sys whole, a hard-coded library directory, sources become programs."""
    files, programs, sockets = {"/usr/lib/x86_64-linux-gnu/"}, set(), set()
    for one in seen:
        if one.cls is Class.NETWORK:
            sockets |= set() if one.family in LOCAL else {_socket(one)}
        elif one.cls is Class.PROCESS:
            programs |= {path.split(" ")[0] for path in paths(one) if "runc" not in path}
        else:
            programs |= {one.executable} if one.executable.startswith("/") else set()
            for path in paths(one):
                path = path.split(" ")[0]
                path = "/proc/" if path.startswith("/proc") else "/sys/" if path.startswith("/sys") else path
                if not path.startswith("/usr/lib/x86_64-linux-gnu/") and "runc" not in path:
                    files.add(path)
    files, programs = aggregate(files, threshold), aggregate(programs, threshold)

    def allows(one: Behaviour) -> bool:
        if one.cls is Class.NETWORK:
            return one.family in LOCAL or _socket(one) in sockets
        rules = programs if one.cls is Class.PROCESS else files
        return all(_covered(path, rules) for path in paths(one))

    return allows, len(files) + len(programs) + len(sockets)


def trie_50(seen: Iterable[Behaviour]) -> Learnt:
    """Children of a directory become one wildcard when there are more than 50 (100 below /etc), reading and changing apart."""
    roots = {"read": _Trie(), "write": _Trie()}
    known: set[tuple[str, str]] = set()
    for one in seen:
        for kind, path in _facts(one):
            if kind not in roots:
                known.add((kind, path))
                continue
            node = roots[kind]
            for name in path.strip("/").split("/"):
                node = node.children.setdefault(name, _Trie())
            node.leaf = True
    for root in roots.values():
        _wildcards(root, "")

    def allows(one: Behaviour) -> bool:
        return all(
            fact in known if fact[0] not in roots else _walk(roots[fact[0]], fact[1].strip("/").split("/"))
            for fact in _facts(one)
        )

    return allows, len(known) + sum(_count(root) for root in roots.values())


def _wildcards(node: _Trie, path: str) -> None:
    if len(node.children) > (100 if path.startswith("/etc") else 50):
        merged = _Trie()
        for below in node.children.values():
            _join(merged, below)
        node.children = {"*": merged}
    for name, below in node.children.items():
        _wildcards(below, f"{path}/{name}")


def _join(into: _Trie, other: _Trie) -> None:
    into.leaf |= other.leaf
    for name, below in other.children.items():
        _join(into.children.setdefault(name, _Trie()), below)


def _walk(node: _Trie, names: list[str]) -> bool:
    if not names:
        return node.leaf
    return any(name in node.children and _walk(node.children[name], names[1:]) for name in (names[0], "*"))


def _count(node: _Trie) -> int:
    return node.leaf + sum(_count(below) for below in node.children.values())
