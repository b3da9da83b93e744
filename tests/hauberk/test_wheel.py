# SPDX-License-Identifier: Apache-2.0
"""The wheel holds our packages and nothing else, and its command starts where nothing else is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"hauberk", "bus", "cluster", "policy", "kernel", "schemas", "sensors", "processors", "enforcers", "sinks"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend of this environment, as `pip wheel --no-build-isolation` would: no network, nothing in the tree."""
    where = tmp_path_factory.mktemp("wheel")
    code = "import sys, hatchling.build as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return where / done.stdout.split()[-1]


def test_our_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/", 1)[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == ROOMS
    assert len([top for top in tops if top.endswith(".dist-info")]) == 1
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_every_source_file_is_in_it(wheel: Path) -> None:
    """The C programs too: the loader compiles them on the node. And what the page's browser loads."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for pattern in ("*.py", "*.c", "*.h", "static/*")
        for path in (ROOT / room).rglob(pattern)
    }
    assert any(name.startswith("kernel/programs/") and name.endswith(".c") for name in wanted)
    assert wanted <= names


def test_the_command_starts_with_nothing_else_installed(wheel: Path, tmp_path: Path) -> None:
    made = tmp_path / "fresh"
    venv.create(made, with_pip=False, symlinks=True)
    python = made / "bin/python"
    # This environment's pip, pointed at the fresh one: ensurepip would take five seconds.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "-q",
            "--no-deps", "--no-index", "--no-compile", wheel,
        ],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [made / "bin/hauberk", "--help"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Runtime security for containers")
    # Outside the tree, so that what answered is what was installed.
    code = "import hauberk, importlib.util; print(hauberk.__file__, importlib.util.find_spec('msgspec'))"
    where = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert where.stdout.startswith(str(made))
    assert where.stdout.rstrip().endswith("None")
