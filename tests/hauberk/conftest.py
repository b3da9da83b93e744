# SPDX-License-Identifier: Apache-2.0
"""The real command as a subprocess, with a state directory, sinks and pins of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(sys.executable).parent / "hauberk")
RECORDING = str(ROOT / "examples/recordings/host.hbrk")
POLICY = str(ROOT / "examples/policies/host-audit-shadow.yaml")
PINS = f"/sys/fs/bpf/hauberk-test-{os.getpid()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time here than elsewhere: a test starts up to four real processes, and each wait in it may take its own minute."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(360))


class Running:
    """A `hauberk up` or part that was started. `said()`: its stderr so far; `told()`: its stdout."""

    def __init__(self, command: Sequence[str], home: Path, environment: dict[str, str]) -> None:
        number = len(list(home.glob("*.err")))
        self.out, self.err = home / f"{number}.out", home / f"{number}.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=home)

    def said(self) -> str:
        return self.err.read_text()

    def told(self) -> str:
        return self.out.read_text()

    def until(self, text: str, seconds: float = 90.0) -> str:
        eventually(lambda: re.search(text, self.said()) or self.process.poll() is not None, seconds)
        assert re.search(text, self.said()), self.said()
        return self.said()

    def ready(self) -> str:
        return self.until(r"(?m)^  bus  |: running$")

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


class Hauberk:
    """Runs the command in `home` against `state`."""

    def __init__(self, home: Path, state: Path | None = None, sinks: list[dict[str, Any]] | None = None) -> None:
        self.home = home
        self.state = state or home / "state"
        self.sinks = [{"type": "prometheus", "port": 0}] if sinks is None else sinks
        self.pins = PINS
        self.program = PROGRAM
        self._running: list[Running] = []

    def environment(self, **more: str) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")}
        return plain | {
            "HAUBERK_STATE": str(self.state), "HAUBERK__SINKS": json.dumps(self.sinks),
            "HAUBERK__SENSOR__PIN_DIR": self.pins, "HAUBERK__PAGE__PORT": "0",
        } | more  # fmt: skip

    def __call__(
        self,
        *words: str,
        before: Sequence[str] = (),
        stdin: str | None = None,
        seconds: float = 90,
        program: str = PROGRAM,
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, program, *words], cwd=self.home, env=self.environment(**more), capture_output=True, text=True,
            timeout=seconds, check=False, input=stdin,
        )  # fmt: skip

    def start(self, *words: str, before: Sequence[str] = (), **more: str) -> Running:
        self._running.append(Running([*before, PROGRAM, *words], self.home, self.environment(**more)))
        return self._running[-1]

    def replay(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self("up", "-q", "--replay", RECORDING, "--speed", "0", *words, **more)

    def close(self) -> None:
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                one.end()
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait(60)


@pytest.fixture
def hauberk(tmp_path: Path) -> Iterator[Hauberk]:
    """A command with nothing behind it yet."""
    made = Hauberk(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def make_hauberk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Hauberk]]:
    """Makes commands that a module shares."""
    made: list[Hauberk] = []

    def make(**more: Any) -> Hauberk:
        made.append(Hauberk(tmp_path_factory.mktemp("hauberk"), **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


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
def listener() -> Iterator[int]:
    """Port of a server on loopback that greets and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"welcome\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@pytest.fixture(scope="session")
def live() -> None:
    """Skips where this kernel cannot be watched."""
    why = subprocess.run([PROGRAM, "probe", "--quiet"], capture_output=True, text=True, check=False)
    if why.returncode:
        pytest.skip(f"this node cannot be watched: {why.stderr.strip()}")


@pytest.fixture(scope="session", autouse=True)
def _no_mount_stays() -> Iterator[None]:
    """`hauberk node` keeps its pins and their file system when it ends; a test run does not."""
    from kernel.loading import is_bpffs, unmount

    before = is_bpffs("/sys/fs/bpf")
    yield
    if not before and is_bpffs("/sys/fs/bpf") and os.geteuid() == 0:
        unmount("/sys/fs/bpf")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's own configuration has nothing; a helper on the PATH leaves `ran` behind."""
    (tmp_path / "config.json").write_text("{}")
    program = tmp_path / "bin/docker-credential-mine"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path
