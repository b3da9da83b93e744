# SPDX-License-Identifier: Apache-2.0
"""Tests that share a server go to one worker of a run with `-n`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SHARES = Path(__file__).with_name("shares.py")
CONFTEST = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
import pytest

def pytest_configure(config):
    spec = spec_from_file_location("shares", {str(SHARES)!r})
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register(config)

@pytest.fixture
def results():
    return 1
"""
TESTS = """
import time
import pytest

@pytest.mark.parametrize("number", range(6))
def test_served(number, results):
    time.sleep(0.05)

@pytest.mark.parametrize("number", range(6))
def test_free(number):
    time.sleep(0.05)
"""


def test_one_worker_takes_what_shares_a_server(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "3", "--dist", "loadgroup", "-v", "-p", "no:cacheprovider", "-c", "/dev/null",
         "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ran = re.findall(r"\[(gw\d)\].* PASSED .*::test_(\w+)\[", done.stdout)
    assert len(ran) == 24
    assert len({worker for worker, name in ran if name == "served"}) == 1
    assert len({worker for worker, name in ran if name == "free"}) > 1
