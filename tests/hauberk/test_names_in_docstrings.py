# SPDX-License-Identifier: Apache-2.0
"""A name in backticks in a docstring exists: somewhere in the code, as a file, a setting, or a name of the kernel programs."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "bus", "cluster", "policy", "kernel", "sensors", "processors", "enforcers", "sinks", "hauberk")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NAME = re.compile(r"`([A-Za-z_][\w./]*)(?:\(\))?`")
ELSEWHERE = {
    "hauberk_stage_failures_total": "a metric, named at export",
    "btf_trace_NAME": "a type of the kernel", "attach_btf_id": "a field of the kernel",
    "hop_NAME": "a pattern of names", "K_owner__member": "a pattern of names",
    "untrackedNs": "a setting of KubeArmor", "KubeArmorConfig": "a kind of KubeArmor",
    "xxtcp": "an example", "syscall_499": "an example", "chown32": "an example",
    "HBK1": "the number of an SQLite file, in hexadecimal in the code",
}  # fmt: skip
"""Word: why the code does not have it."""


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings, and the text below a constant or a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


@cache
def known() -> frozenset[str]:
    """Every word of the code and its texts, docstrings and comments left out; of the C programs; parts of the paths of files."""
    found = set(dir(builtins)) | set(sys.stdlib_module_names)
    for path in FILES:
        tree = ast.parse(path.read_text())
        prose = {id(node) for node in docstrings(tree)}
        for node in ast.walk(tree):
            names: list[object] = []
            match node:
                case ast.Constant(value=str(text)) if id(node) not in prose:
                    names = re.findall(r"\w+", text)
                case (
                    ast.Name(id=name)
                    | ast.FunctionDef(name=name)
                    | ast.AsyncFunctionDef(name=name)
                    | ast.ClassDef(name=name)
                ):
                    names = [name]
                case ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name) | ast.alias(name=name):
                    names = re.findall(r"\w+", name or "")
            found.update(map(str, names))
    for path in (ROOT / "kernel/programs").rglob("*.[ch]"):
        found.update(re.findall(r"\w+", path.read_text()))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(found | set(re.findall(r"\w+", listed)))


def absent(name: str) -> bool:
    """Whether a path or a dotted name of a room leads to no file; the last part of a dotted name may be a name in a file."""
    if "/" in name:
        return name.endswith(".py") and not (ROOT / name).exists()
    parts = name.split(".")
    if len(parts) < 2 or parts[0] not in ROOMS or name.endswith(".py") or re.search(r"\.v\d+$", name):
        return False
    found = (ROOT.joinpath(*parts[: len(parts) - cut]) for cut in (0, 1, 2))
    return not any(path.with_suffix(".py").exists() or (path.is_dir() and path != ROOT / parts[0]) for path in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_in_backticks_exists(path: Path) -> None:
    missing = {
        f"line {node.lineno}: `{match[1]}`"
        for node in docstrings(ast.parse(path.read_text()))
        for match in NAME.finditer(str(node.value))
        if absent(match[1])
        or any(word not in known() and word not in ELSEWHERE for word in re.findall(r"\w+", match[1]))
    }
    assert not missing, f"{path.relative_to(ROOT)}: names that nothing has: {', '.join(sorted(missing))}"


def test_the_list_of_others_has_only_what_is_needed() -> None:
    used = {
        word
        for path in FILES
        for node in docstrings(ast.parse(path.read_text()))
        for match in NAME.finditer(str(node.value))
        for word in re.findall(r"\w+", match[1])
    }
    assert used - known() == set(ELSEWHERE)
