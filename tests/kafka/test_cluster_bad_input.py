# SPDX-License-Identifier: Apache-2.0
"""The command against addresses where no broker is: one sentence, the right exit code, and an end when it is told to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from stopping import ends

PROGRAM = str(Path(sys.executable).parent / "hauberk")


class _Web(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and never says a word, as a broker that hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def command(address: str, *words: str) -> list[str]:
    return [
        PROGRAM,
        *words,
        "--set",
        "bus.type=kafka",
        "--set",
        f"bus.bootstrap={address}",
        "--set",
        "bus.call_seconds=3",
    ]


@pytest.mark.parametrize("words", [("topic", "check"), ("topic", "list"), ("get", "policies")], ids=" ".join)
def test_an_http_server_is_no_broker(web: str, words: tuple[str, ...]) -> None:
    done = subprocess.run(command(web, *words), capture_output=True, text=True, timeout=120, check=False)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("hauberk ")]
    assert done.returncode == 3
    assert "an HTTP server answers there; `bus.bootstrap` wants a Kafka listener" in line
    assert "Traceback" not in done.stderr


def test_nobody_there(nobody: str) -> None:
    done = subprocess.run(command(nobody, "topic", "list"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert "does the broker run, and is the address right?" in done.stderr


@pytest.mark.parametrize("words", [("topic", "tail", "alerts"), ("topic", "create"), ("get", "policies")], ids=" ".join)
def test_ctrl_c_ends_it_while_the_broker_says_nothing(
    silent: str, words: tuple[str, ...], eventually: Callable[..., object], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    with told.open("w") as stderr:
        process = subprocess.Popen(
            [*command(silent, *words), "--set", "bus.call_seconds=300"], stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        # It waits for an answer once it has a connection there.
        port = f":{int(silent.rpartition(':')[2]):04X}"
        eventually(lambda: any(port in line.split()[2] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]))
        ends(SimpleNamespace(process=process, said=told.read_text), tmp_path, code=130)
    finally:
        process.kill()
        process.wait(60)
