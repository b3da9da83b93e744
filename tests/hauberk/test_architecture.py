# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernel import catalogue, hooks

ROOT = Path(__file__).parents[2]
ROOMS = ("hauberk", "bus", "cluster", "policy", "kernel", "schemas", "sensors", "processors", "enforcers", "sinks")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PROGRAMS = sorted((ROOT / "kernel" / "programs").glob("*.c"))
CEILING = 400
BANNED = {"utils", "helpers", "common", "manager", "base", "util", "misc"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_file_is_one_idea(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text)), "a module says why it exists"
    assert len(text.splitlines()) <= CEILING, f"over {CEILING} lines: two ideas in one file"
    assert path.stem not in BANNED


@pytest.mark.parametrize("path", PROGRAMS, ids=names(PROGRAMS))
def test_kernel_program_is_one_idea(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/* SPDX-License-Identifier: Apache-2.0 */\n/*"), "a file says why it exists"
    assert len(text.splitlines()) <= CEILING, f"over {CEILING} lines: two ideas in one file"
    assert path.stem in {*catalogue.SOURCES, *hooks.SOURCES}, (
        "not compiled: name it in kernel/catalogue.py or kernel/hooks.py"
    )


def test_bcc_is_imported_in_the_kernel_room_only() -> None:
    for path in SOURCES:
        if re.search(r"^\s*(import bcc|from bcc)", path.read_text(), re.MULTILINE):
            assert path.parent.name == "kernel", path


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports anywhere in it, for types only too: an arrow that a reader follows."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in modules else node.module)
    return found & modules.keys()


def test_no_two_files_import_each_other() -> None:
    """No circle of any length, wherever in the files the imports stand."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    left = {name: imports_of(path, modules) for name, path in modules.items()}
    # What imports nothing that is left goes, until nothing goes: what stays is on a circle or above one.
    while free := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in free}
    # The same from above: what nothing that is left imports.
    while tops := left.keys() - set().union(*left.values()):
        left = {name: imported for name, imported in left.items() if name not in tops}
    assert not left, {name: sorted(imported & left.keys()) for name, imported in left.items()}


def test_a_class_name_is_taken_once() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_hot_files_have_a_benchmark_and_no_await() -> None:
    benchmarks = "\n".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    hot = [
        path
        for path in SOURCES
        if (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].startswith("Hot")
    ]
    assert hot
    for path in hot:
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Await | ast.AsyncFunctionDef)], path
        assert "import logging" not in path.read_text(), path
        module = f"{path.parent.name}.{path.stem}"
        assert f"from {path.parent.name} import" in benchmarks or module in benchmarks, (
            f"{module} is hot and has no benchmark"
        )


def test_nothing_committed_names_a_registry_host() -> None:
    listed = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    )
    hosts = re.compile("|".join(("pypi" + r"\.org", "python" + "hosted", "registry" + r"\.npmjs", "crates" + r"\.io")))
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file():
            assert not hosts.search(path.read_bytes().decode("utf-8", "replace")), name
