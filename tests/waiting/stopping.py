# SPDX-License-Identifier: Apache-2.0
"""How soon a role or a verb that runs as a process ends after Ctrl-C, held to the pace of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def waited(pid: int) -> tuple[float, float]:
    """Seconds that all threads of `pid` have had a core, and have waited for one (proc_pid_schedstat(5))."""
    ran = queued = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        one, two, _ = (task / "schedstat").read_text().split()
        ran, queued = ran + int(one), queued + int(two)
    return ran / 1e9, queued / 1e9


def pace(where: Path) -> float:
    """Seconds that starting an interpreter and getting a file to the disk take on this machine at this moment: 25 ms when it is quiet."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-S", "-E", "-c", ""], check=True)
    with (where / "pace").open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


def ends(running: Any, where: Path, code: int = 0) -> None:
    """Within a second of SIGINT on a quiet machine, with exit code `code`: a second, or 40 times what `pace` says right before and after."""
    before_and_after = [pace(where)]
    process = running.process
    ran, queued = before = waited(process.pid)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        assert time.monotonic() - began < 60, running.said()
        try:
            ran, queued = max((ran, queued), waited(process.pid))
        except (OSError, ValueError):
            break
        os.sched_yield()
    process.wait(60)
    took = time.monotonic() - began - (queued - before[1])
    before_and_after.append(pace(where))
    assert took < max(1.0, 40 * max(before_and_after)), (took, before_and_after, running.said())
    assert process.returncode == code, running.said()
    assert "Traceback" not in running.said(), running.said()
