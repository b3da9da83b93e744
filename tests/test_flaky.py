# SPDX-License-Identifier: Apache-2.0
"""The gate is sure of itself: a real pytest run with the plugin, over tests that fail always, once, or never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).with_name("flaky.py")
ONCE = """
def test_once_{n}():
    from pathlib import Path
    mark = Path(__file__).with_name("ran_{n}")
    ran = mark.exists()
    mark.touch()
    assert ran
"""
SETUP_ONCE = """
import pytest
@pytest.fixture
def room():
    from pathlib import Path
    mark = Path(__file__).with_name("ran_setup")
    ran = mark.exists()
    mark.touch()
    assert ran
def test_setup(room): pass
"""


def run(home: Path, *texts: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    (home / "pytest.ini").write_text("[pytest]\n")
    (home / "conftest.py").write_text(f"import runpy\npytest_configure = runpy.run_path({str(PLUGIN)!r})['register']\n")
    (home / "test_it.py").write_text("\n".join(texts))
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HAUBERK"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options], cwd=home, env=plain, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_a_run_without_failures_says_nothing_of_them(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_good(): pass")
    assert done.returncode == 0
    assert "flaky" not in done.stdout


@pytest.mark.parametrize("text", [ONCE.format(n=1), SETUP_ONCE], ids=["call", "setup"])
def test_what_passes_alone_is_named_and_the_run_passes(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, "def test_good(): pass", text)
    assert done.returncode == 0, done.stdout
    assert "FLAKY test_it.py::test_" in done.stdout
    assert "1 flaky of at most 3: the run passes" in done.stdout
    assert len(json.loads((tmp_path / "build/flaky.json").read_text())["flaky"]) == 1


def test_a_run_on_two_workers_is_judged_once(tmp_path: Path) -> None:
    """The name of a share is no part of the name that is run again, and a parameter with an "@" is."""
    parameter = ONCE.format(n=1).replace(
        "def test_once_1():", "import pytest\n@pytest.mark.parametrize('x', ['a@b'])\ndef test_once_1(x):"
    )
    marked = ONCE.format(n=2).replace("def test", "import pytest\n@pytest.mark.xdist_group('room')\ndef test")
    done = run(tmp_path, "def test_good(): pass", parameter, marked, options=("-n", "2", "--dist", "loadgroup"))
    assert done.returncode == 0, done.stdout
    assert "FLAKY test_it.py::test_once_1[a@b]:" in done.stdout
    assert "FLAKY test_it.py::test_once_2:" in done.stdout
    assert "2 flaky of at most 3: the run passes" in done.stdout


def test_what_fails_twice_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, ONCE.format(n=1), "def test_bad(): assert False")
    assert done.returncode == 1
    assert "FAILED TWICE test_it.py::test_bad" in done.stdout
    assert "FLAKY test_it.py::test_once_1" in done.stdout


def test_three_may_be_flaky_and_four_may_not(tmp_path: Path) -> None:
    for number, ends in ((3, 0), (4, 1)):
        home = tmp_path / str(number)
        home.mkdir()
        done = run(home, *(ONCE.format(n=one) for one in range(number)))
        assert done.returncode == ends, done.stdout
        assert ("none was" in done.stdout) == bool(ends)


def test_an_error_while_collecting_fails_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, "def test_good(): pass", "import no_such_module").returncode == 2


def test_a_steered_run_is_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, ONCE.format(n=1), options=("-x",))
    assert done.returncode == 1
    assert "FLAKY" not in done.stdout
