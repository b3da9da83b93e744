# SPDX-License-Identifier: Apache-2.0
"""The dead man's switch: a process of its own that lifts what nobody confirmed when the agent is not there to do it.

Started strictly before a plan with trials is carried out, in a session and a cgroup of its own: a service manager that ends the
agent's cgroup does not end it. At the end of the minute it acts at once when the agent is gone (nobody holds its lock), and after `GRACE`
when it is there and has not lifted either. It must never put anything new in force. Neighbours: `trials`, `agent`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from enforcers.settings import EnforceSettings

LOCK: Final = "agent.lock"
GRACE: Final = 10.0
"""Seconds for an agent that is alive to do it: ample, it takes milliseconds."""
_STARTING: Final = 30.0
_TRIES: Final = 60
"""Of lifting, a second apart: one for each trial that is over, more where the kernel refuses."""


class TrialWatch(msgspec.Struct, frozen=True):
    """`until`: CLOCK_BOOTTIME, seconds."""

    pin_dir: str
    node: str
    settings: EnforceSettings
    until: float


def start(watch: TrialWatch) -> str:
    """Start one that outlives this process; why not, or ""."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], input=msgspec.json.encode(watch), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True, timeout=_STARTING, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        ""
        if done.returncode == 0
        else done.stderr.decode("utf-8", "replace").strip()[-300:] or f"exit status {done.returncode}"
    )


def locked(directory: str) -> int:
    """The agent's lock, held until the descriptor is closed or the process ends; -1 when somebody has it."""
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(f"{directory}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return -1
    return lock


def _sleep(until: float) -> None:
    # CLOCK_BOOTTIME goes on while the machine is suspended, sleep does not.
    while (left := until - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        time.sleep(min(left, 5.0))


def _wait(watch: TrialWatch) -> bool:
    """Until the minute is over, and the agent had its chance; whether something is still to be lifted."""
    from enforcers.swap import saved_plan
    from enforcers.trials import TrialRecord

    record = TrialRecord(watch.settings.state_dir)
    _sleep(watch.until)
    ends = time.monotonic() + GRACE
    while True:
        plan = saved_plan(watch.settings)
        if plan is None:
            return False
        seen = record.read()
        standing = record.now(plan)
        if all(one.name in seen and seen[one.name].lifted for one in standing.over):
            if standing.left is None:
                return False
            # A younger one goes on, and the agent starts nobody else for it.
            _sleep(time.clock_gettime(time.CLOCK_BOOTTIME) + standing.left)
            ends = time.monotonic() + GRACE
            continue
        if (lock := locked(watch.settings.state_dir)) >= 0:
            os.close(lock)
            return True
        if time.monotonic() > ends:
            return True
        time.sleep(0.2)


def main() -> int:
    """0 when nothing is left to do. What it is to watch is JSON on standard input."""
    watch = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialWatch)
    from enforcers.cgroup import cgroup2_mount
    from enforcers.swap import carry_over

    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    # Out of the agent's cgroup, and of every one that rules may hold. Where that is not allowed it stays, and says nothing to nobody.
    with contextlib.suppress(OSError):
        Path(cgroup2_mount(), "cgroup.procs").write_text(str(os.getpid()))
    for _ in range(_TRIES):
        if not _wait(watch):
            break
        carry_over(watch.pin_dir, watch.node, watch.settings)
        time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
