# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while brokers are away or hang: a role ends within a second, waits for nobody, and says what comes again."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka_cluster
import pytest
from kafka_topics import create_topics

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


@pytest.fixture(scope="module")
def blackhole() -> Iterator[str]:
    """An address whose packets go nowhere: a queue of connections that is full, to which the kernel gives no answer (listen(2))."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            waiting.append(one)
        # The last of them is not answered either.
        assert not select.select([], waiting[-1:], [], 0.2)[1]
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.fixture
def start(hauberk: Any) -> Iterator[Callable[..., Any]]:
    """start(role, bootstrap, **bus): the role as a process, running."""
    from kernel.loading import unload

    hauberk.sinks = [{"type": "blackhole"}]
    hauberk.pins += "-ends"
    node = {"HAUBERK__INVENTORY__RUNTIMES": "[]", "HAUBERK__SENSOR__LOAD__HOST_VISIBILITY": "0", "HAUBERK__NODE": "n1"}

    def start(role: str, bootstrap: str, **bus: Any) -> Any:
        bus = {"type": "kafka", "bootstrap": bootstrap} | bus
        more = {"HAUBERK_STATE": str(hauberk.home / f"state-{role}"), "HAUBERK__BUS": json.dumps(bus)}
        running = hauberk.start(role, **more, **(node if role == "node" else {}), HAUBERK__METRICS__ENABLED="true",
                                HAUBERK__METRICS__PORT=str(kafka_cluster.free_ports(1)[0]))  # fmt: skip
        running.ready()
        return running

    yield start
    hauberk.close()
    if os.geteuid() == 0:
        unload(hauberk.pins)


def pace(where: Path) -> float:
    """Seconds that starting an interpreter and getting a file to the disk take on this machine at this moment: 25 ms when it is quiet."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-S", "-E", "-c", ""], check=True)
    with (where / "pace").open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


def ends(running: Any, where: Path) -> None:
    """Within a second of SIGINT on a quiet machine: a second, or 40 times what `pace` says right before and after."""
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
    assert process.returncode == 0, running.said()
    assert "Traceback" not in running.said()


@pytest.mark.fault(
    "Ctrl-C while the brokers are away (nobody there, an address that answers nothing, one that packets do not reach)",
    "ends within a second, apart from waiting for a core of a busy machine; what was not done comes again",
)
@pytest.mark.parametrize("where", ["nobody", "silent", "blackhole"])
@pytest.mark.parametrize("role", ["processor", "sink", "planner", pytest.param("node", marks=pytest.mark.kernel)])
def test_a_stop_without_brokers(
    start: Callable[..., Any],
    silent: str,
    blackhole: str,
    role: str,
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if role == "node":
        request.getfixturevalue("live")
    running = start(role, {"nobody": NOBODY, "silent": silent, "blackhole": blackhole}[where])
    if where == "nobody":
        running.until("nobody there")
    ends(running, tmp_path)


@pytest.mark.fault(
    "Ctrl-C while the broker hangs (SIGSTOP), noticed or not yet",
    "each role ends within a second; what was not done comes again",
)
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("noticed", [False, True])
async def test_a_stop_while_the_broker_hangs(
    start: Callable[..., Any], kafka_clusters: Any, eventually: Any, noticed: bool, tmp_path: Path
) -> None:
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "ends.", 2)
    try:
        running = {
            role: await asyncio.to_thread(start, role, cluster.bootstrap, prefix="ends.", away_seconds=2.0)
            for role in ("node", "processor", "planner", "sink")
        }
        for one in running.values():
            await asyncio.to_thread(eventually, lambda: _ready(one))  # noqa: B023
        cluster.pause()
        for one in running.values():
            if noticed:
                await asyncio.to_thread(one.until, "kafka: away")
            await asyncio.to_thread(ends, one, tmp_path)
    finally:
        cluster.resume()


def _ready(running: Any) -> bool:
    url = (
        running.until(r"metrics and health: (http://\S+)/metrics")
        .partition("metrics and health: ")[2]
        .split("/metrics")[0]
    )
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
