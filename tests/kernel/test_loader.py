# SPDX-License-Identifier: Apache-2.0
"""What a killed load left in the temporary directory goes with the next one; nobody else's does."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from kernel.loader import HEADERS, remove_old_headers


def test_directories_of_headers_that_a_killed_load_left_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    old, new, other, link = (tmp_path / name for name in (f"{HEADERS}old", f"{HEADERS}new", "other", f"{HEADERS}link"))
    for one in (old / "include", new, other, elsewhere):
        one.mkdir(parents=True)
    (old / "include" / "types.h").write_text("x")
    link.symlink_to(elsewhere)
    yesterday = time.time() - 86400
    for one in (old, other, elsewhere):
        os.utime(one, (yesterday, yesterday))
    os.utime(link, (yesterday, yesterday), follow_symlinks=False)
    remove_old_headers()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("elsewhere", new.name, "other", link.name))
