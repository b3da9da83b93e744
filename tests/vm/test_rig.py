# SPDX-License-Identifier: Apache-2.0
"""The rig itself: a stock kernel runs this checkout, what was compiled here is found there, nothing is left of a killed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vmrig.kernels import SOURCES
from vmrig.machine import CHECKOUT
from vmrig.programs import WARM, precompile

PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
RUN = str(CHECKOUT / "tests" / "vm" / "run.py")
ASK = """
import json, sys
from kernel.compiled import DIRECTORY, stored
from kernel.compiler import name_of
from kernel.loading import LoadSettings
import msgspec
for settings in json.loads(sys.argv[1]):
    print(stored(DIRECTORY, name_of(msgspec.convert(settings, LoadSettings).request())) is not None)
"""
STARTED = """
import sys
sys.path.insert(0, sys.argv[1])
from vmrig.kernels import kernel
from vmrig.machine import Guest
guest = Guest(kernel(sys.argv[2]))
print(guest.place, flush=True)
guest.run(["sleep", "3600"], seconds=3600)
"""


WORK = """
import time
for _ in range(7):
    began = time.monotonic_ns()
    for _ in range(200000):
        pass
    print(time.monotonic_ns() - began)
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("series", SOURCES if os.environ.get("HAUBERK_TEST_VM") == "all" else ("6.1",))
def test_a_stock_kernel_finds_what_was_compiled_for_it(
    series: str, kernels: Callable[[str], Any], guest: Callable[[str], Any]
) -> None:
    found = kernels(series)
    precompile(found)
    status, said = guest(series).run(["uname", "-r", "-v"])
    assert (status, said.strip()) == (0, f"{found.release} {found.version}")
    import json

    status, said = guest(series).run([PYTHON, "-c", ASK, json.dumps(WARM)], seconds=300, PYTHONPATH=str(CHECKOUT))
    assert (status, said.split()) == (0, ["True"] * len(WARM)), said


@pytest.mark.timeout(1800)
def test_the_guest_sees_the_files_and_keeps_its_own_writes(
    kernels: Callable[[str], Any], guest: Callable[[str], Any]
) -> None:
    running = guest("6.1")
    written = CHECKOUT / "build" / "by-the-guest"
    status, said = running.run(["sh", "-c", f"mkdir -p {written} && test -d {written} && cat /sys/kernel/security/lsm"])
    assert status == 0, said
    assert {"apparmor", "bpf"} <= set(said.split(","))
    assert not written.exists()
    assert running.run(["sh", "-c", f"echo told >{running.room}/word; exit 3"]) == (3, "")
    assert (running.room / "word").read_text() == "told\n"
    assert running.run(["sleep", "600"], seconds=1)[0] == -1


@pytest.mark.skipif(os.environ.get("HAUBERK_TEST_VM") != "all", reason="boots a kernel: make test-vm")
@pytest.mark.timeout(1800)
def test_time_of_a_counted_guest_is_its_instructions(kernels: Callable[[str], Any]) -> None:
    """The same work takes the same time, whatever else this machine does."""
    from vmrig.machine import Guest

    running = Guest(kernels("6.1"), template=False, counted=True)
    try:
        status, said = running.run([PYTHON, "-S", "-c", WORK], seconds=600)
    finally:
        running.off()
    assert status == 0, said
    took = [int(word) for word in said.split()]
    assert max(took) < 1.02 * min(took), took


@pytest.mark.timeout(1800)
def test_nothing_is_left_of_a_run_that_was_killed(
    kernels: Callable[[str], Any], eventually: Callable[..., Any]
) -> None:
    kernels("6.1")
    with subprocess.Popen(
        [sys.executable, "-c", STARTED, str(Path(RUN).parent), "6.1"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        place = child.stdout.readline().strip()
        assert place
        assert running(place)
        os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: not running(place))
    eventually(lambda: not Path(place).exists())


def running(place: str) -> list[str]:
    """Processes with `place` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if place.encode() in words:
            found.append(path.parent.name)
    return found


@pytest.mark.timeout(1800)
def test_the_command_of_the_documentation(kernels: Callable[[str], Any]) -> None:
    kernels("6.1")
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    (line,) = [line.strip() for line in text.splitlines() if "tests/vm/run.py" in line and line.startswith("    ")]
    done = subprocess.run(line.split(), cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_no_guest_without_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmrig import machine

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/qemu")
    assert machine.why_not() == "needs root: the guest's root reads the host's files"
