# SPDX-License-Identifier: Apache-2.0
"""A stop while programs are compiled and loaded: the loader is ended, and so is the command, with nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("live")]


def loader_of(pid: int) -> int:
    """Pid of the loader's child; 0 while there is none."""
    children = [int(word) for task in Path(f"/proc/{pid}/task").glob("*/children") for word in task.read_text().split()]
    return next((one for one in children if b"kernel.loader_child" in Path(f"/proc/{one}/cmdline").read_bytes()), 0)


@pytest.mark.parametrize("verb", ["up", "node"])
def test_a_stop_during_loading_ends_the_loader(hauberk: Any, verb: str) -> None:
    hauberk.pins = f"/sys/fs/bpf/hauberk-stop-{os.getpid()}-{verb}"
    # Nothing compiled is found, so loading takes its time.
    started = hauberk.start(verb, "--set", "sensor.program_cache=")
    loader = eventually(lambda: loader_of(started.process.pid) or started.process.poll(), 90)
    assert started.process.poll() is None, started.said()
    assert started.end(signal.SIGTERM) == 130, started.said()
    assert not Path(f"/proc/{loader}").exists()
    assert "compiled" not in started.said()
    assert "running" not in started.said()
    assert [name for name in os.listdir("/sys/fs/bpf") if name.startswith(Path(hauberk.pins).name)] == []
