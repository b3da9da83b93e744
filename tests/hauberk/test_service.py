# SPDX-License-Identifier: Apache-2.0
"""The service runner: order of stopping, first failure, signals of which further ones hurry the same end."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from hauberk import service
from schemas.errors import Unavailable


def stage(name: str, said: list[str], fails: bool = False) -> service.Stage:
    async def run(stop: asyncio.Event) -> None:
        said.append(f"{name} up")
        if fails:
            raise Unavailable("gone")
        await stop.wait()
        await asyncio.sleep(0)
        said.append(f"{name} down")

    return run


async def test_stages_stop_one_after_the_other() -> None:
    said: list[str] = []
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await service.run([("a", stage("a", said)), ("b", stage("b", said))], stop)
    assert said == ["a up", "b up", "a down", "b down"]


async def test_first_failure_stops_the_others_and_is_raised() -> None:
    said: list[str] = []
    with pytest.raises(Unavailable, match="gone"):
        await service.run([("a", stage("a", said)), ("b", stage("b", said, fails=True))])
    assert said[-1] == "a down"


async def test_a_stage_that_hangs_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "DRAIN_SECONDS", 0.1)

    async def hangs(stop: asyncio.Event) -> None:
        await asyncio.Event().wait()

    stop = asyncio.Event()
    stop.set()
    await service.run([("hangs", hangs)], stop)
    assert "`hangs` did not finish" in capfd.readouterr().err


async def test_an_unforeseen_error_names_its_stage() -> None:
    async def breaks(stop: asyncio.Event) -> None:
        raise ValueError("x")

    with pytest.raises(RuntimeError, match="stage `breaks` failed: ValueError: x"):
        await service.run([("breaks", breaks)])


PROGRAM = """
import asyncio
from hauberk import service
async def stage(stop):
    print("up", flush=True)
    await stop.wait()
    print("down", flush=True)
asyncio.run(service.run([("stage", stage)]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_and_says_so_at_once(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "up\n"
        os.kill(child.pid, number)
        assert child.stderr.readline().startswith("hauberk: stopping: ")
        assert child.stdout.read() == "down\n"
        assert child.stderr.read() == ""
        assert child.wait(60) == 0


SLOW = """
import asyncio
from hauberk import service
async def slow(stop):
    print("up", flush=True)
    await stop.wait()
    print("draining", flush=True)
    await asyncio.Event().wait()
async def main():
    try:
        await service.run([("slow", slow)])
    finally:
        print("undone", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("more", [1, 2, 5])
def test_a_further_signal_hurries_the_same_end(more: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "up\n"
        os.kill(child.pid, signal.SIGTERM)
        assert child.stdout.readline() == "draining\n"
        started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)[:more]:
            os.kill(child.pid, number)
        # What is to be undone is undone, and the process ends by its own will, not by a signal.
        assert child.stdout.read() == "undone\n"
        assert child.wait(60) == 0
        assert time.monotonic() - started < service.DRAIN_SECONDS
        said = child.stderr.read()
        assert said.count("second signal: ") == 1
        assert "`slow` did not finish after the second signal" in said


def test_a_terminal_that_is_gone_is_no_reason_to_end_half_way() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=writing, text=True) as child:
        os.close(writing)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        os.close(reading)
        os.kill(child.pid, signal.SIGHUP)
        assert child.stdout.read() == "down\n"
        assert child.wait(60) == 0


def test_nohup_is_respected() -> None:
    program = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PROGRAM
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        os.kill(child.pid, signal.SIGHUP)
        os.kill(child.pid, signal.SIGTERM)
        assert child.stdout.read() == "down\n"
        assert child.wait(60) == 0


def test_systemd_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        name = f"\0hauberk-test-{os.getpid()}-{time.monotonic_ns()}"
        channel.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:])
        service.notify("READY=1")
        assert channel.recv(100) == b"READY=1"


def test_a_signal_after_the_clean_end_does_not_end_the_process() -> None:
    program = PROGRAM + "import time\nprint('ended', flush=True)\ntime.sleep(0.2)\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        os.kill(child.pid, signal.SIGTERM)
        assert [child.stdout.readline(), child.stdout.readline()] == ["down\n", "ended\n"]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(child.pid, number)
        assert child.wait(60) == 0
