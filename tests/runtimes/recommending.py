# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend` in this process, for its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hauberk.cli import main


def run(capsys: pytest.CaptureFixture[str], state: Path, *words: object, code: int = 0) -> str:
    """What it prints, and what it says of an error; its exit code is `code`."""
    capsys.readouterr()
    got = main(["recommend", *map(str, words), "--state", str(state)])
    said = capsys.readouterr()
    assert got == code, (words, said)
    return said.out + (said.err if code else "")
