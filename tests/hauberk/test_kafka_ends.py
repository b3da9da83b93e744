# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while brokers are away: a role ends within a second, waits for nobody, and says what comes again."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """The address of something that takes connections and answers nothing."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)
    for one in taken:
        one.close()


def waited(pid: int) -> tuple[float, float]:
    """Seconds that all threads of `pid` have had a core, and have waited for one (proc_pid_schedstat(5))."""
    ran = queued = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        one, two, _ = (task / "schedstat").read_text().split()
        ran, queued = ran + int(one), queued + int(two)
    return ran / 1e9, queued / 1e9


@pytest.mark.fault(
    "Ctrl-C while the brokers are away (nobody there, or an address that answers nothing)",
    "ends within a second, apart from waiting for a core of a busy machine; what was not done comes again",
)
@pytest.mark.parametrize(
    ("role", "answers"), [("processor", True), ("processor", False), ("sink", True), ("planner", False)]
)
def test_a_stop_without_brokers(hauberk: Any, silent: str, role: str, answers: bool, eventually: Any) -> None:
    hauberk.sinks = [{"type": "blackhole"}]
    bus = {"type": "kafka", "bootstrap": silent if answers else NOBODY}
    running = hauberk.start(role, HAUBERK__BUS=json.dumps(bus))
    running.ready()
    if not answers:
        running.until("nobody there")
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
    # What a machine without others would have taken.
    took = time.monotonic() - began - (queued - before[1])
    assert took < 1.0, (took, running.said())
    assert process.returncode == 0
    assert "Traceback" not in running.said()
