# SPDX-License-Identifier: Apache-2.0
"""A child that gave up what it does not need, as the kernel shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GIVES_UP = """
from kernel.confinement import give_up_capabilities
give_up_capabilities()
print(open("/proc/self/status").read())
"""
PARENT = """
import os, subprocess, sys
code = "import os, sys, time; from kernel.confinement import end_with_parent; end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code, str(os.getpid() + int(sys.argv[1]))]).wait()
"""


def status() -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", GIVES_UP], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user has no capabilities to give up")
def test_it_has_those_to_read_files_and_no_other() -> None:
    shown = status()
    for sets in ("CapEff", "CapPrm"):
        assert int(shown[sets], 16) & ~0b110 == 0
        assert int(shown[sets], 16) != 0
    assert int(shown["CapInh"], 16) == int(shown["CapAmb"], 16) == 0
    assert shown["NoNewPrivs"] == "1"


def test_it_ends_with_its_parent(eventually: Callable[..., Any]) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # The pipe ends when its last writer did.
        assert parent.stdout.read() == ""
    eventually(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_it_ends_at_once_where_the_parent_is_gone_already() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, "1"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
