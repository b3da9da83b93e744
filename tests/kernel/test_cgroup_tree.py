# SPDX-License-Identifier: Apache-2.0
"""Walks over trees of any shape: real directories, deeper than Python recurses and longer than a path may be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.cgroup_tree import PATH_MOST, walk

OPEN = os.O_RDONLY | os.O_DIRECTORY


@contextlib.contextmanager
def nested(top: Path, name: str, depth: int) -> Iterator[list[int]]:
    """`depth` directories in one another, and their inodes; taken away from the inside out."""
    fds = [os.open(top, OPEN)]
    inodes = []
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, OPEN, dir_fd=fds[-1]))
            inodes.append(os.fstat(fds[-1]).st_ino)
        yield inodes
    finally:
        while len(fds) > 1:
            os.close(fds.pop())
            os.rmdir(name, dir_fd=fds[-1])
        os.close(fds.pop())


@pytest.mark.parametrize(("name", "depth"), [("a", 3000), ("x" * 200, 100)])
def test_deeper_than_python_recurses_and_than_paths_go(tmp_path: Path, name: str, depth: int) -> None:
    with nested(tmp_path, name, depth) as inodes:
        before = len(os.listdir("/proc/self/fd"))
        found = []
        for ident, path in walk(str(tmp_path)):
            found.append((ident, path))
            assert len(os.listdir("/proc/self/fd")) <= before + 1 if len(found) % 500 == 0 else True
        assert [ident for ident, _ in found] == [tmp_path.stat().st_ino, *inodes]
        fit = PATH_MOST // (len(name) + 1)
        assert [path for _, path in found[: fit + 1]] == [f"/{name}" * at for at in range(min(fit, depth) + 1)]
        assert all(path == found[fit][1] for _, path in found[fit:])


def test_parents_first_siblings_by_name_files_and_links_passed_over(tmp_path: Path) -> None:
    for name in ("b/two", "b/one", "a", "c/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert [path for _, path in walk(str(tmp_path))] == ["", "/a", "/b", "/b/one", "/b/two", "/c", "/c/x"]


def test_what_is_skipped_is_skipped_with_all_below(tmp_path: Path) -> None:
    for name in ("a/below", "b/below", "c"):
        (tmp_path / name).mkdir(parents=True)
    out = (tmp_path / "b").stat().st_ino
    assert [path for _, path in walk(str(tmp_path), lambda ident: ident == out)] == ["", "/a", "/a/below", "/c"]


def test_what_goes_while_it_is_walked_ends_nothing(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    found = []
    for _, path in walk(str(tmp_path)):
        found.append(path)
        if path == "/a":
            (tmp_path / "a").rmdir()
            (tmp_path / "c").rmdir()
    assert found == ["", "/a", "/b", "/d"]


def test_no_such_directory_is_nothing(tmp_path: Path) -> None:
    assert list(walk(str(tmp_path / "none"))) == []
