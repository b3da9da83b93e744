# SPDX-License-Identifier: Apache-2.0
"""The health checks, each against the thing it looks at."""

import fcntl
import http.server
import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bus.contract import Record
from bus.embedded import EmbeddedSettings
from bus.registry import open_bus
from schemas.topics import EVENTS_RAW

SOURCE = Path(__file__).parents[2] / "deploy/docker/health.py"


@pytest.fixture(scope="session")
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hauberk_health", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_node_is_well_while_somebody_holds_the_lock(
    health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAUBERK__SENSOR__PIN_DIR", str(tmp_path / "pins"))
    assert "expected the programs pinned" in await health.node()
    (tmp_path / "pins").mkdir()
    assert "nobody does" in await health.node()
    descriptor = os.open(tmp_path / "pins", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert await health.node() == ""
    finally:
        os.close(descriptor)


async def test_processor_has_to_get_on(health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAUBERK_STATE", str(tmp_path))
    monkeypatch.setattr(health, "LOOK_AGAIN", 0.01)
    bus = await open_bus(EmbeddedSettings(directory=str(tmp_path / "bus")))
    try:
        await bus.publish(EVENTS_RAW, [Record(key=b"n", value=b"a"), Record(key=b"n", value=b"b")])
        assert "nothing has been read yet" in await health.processor()
        async with bus.subscribe([EVENTS_RAW], "processors", "earliest") as subscription:
            first = await subscription.take(1, 60.0)
            await subscription.commit(first)
            assert "stands 1 records behind" in await health.processor()
            second = await subscription.take(1, 60.0)
            await subscription.commit(second)
            assert await health.processor() == ""
    finally:
        await bus.close()


async def test_enforcer_without_nodes_has_nothing_to_do(
    health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAUBERK_STATE", str(tmp_path))
    bus = await open_bus(EmbeddedSettings(directory=str(tmp_path / "bus")))
    try:
        assert await health.enforcer() == ""
    finally:
        await bus.close()


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[int]]]:
    """An HTTP server on loopback that answers with the status in the list."""
    status = [200]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()
            self.wfile.write(b"file: the disk is full")

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/readyz", status
    server.shutdown()
    thread.join()
    server.server_close()


async def test_sink_says_what_its_endpoint_says(
    health: ModuleType, endpoint: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, status = endpoint
    monkeypatch.setenv("HAUBERK_HEALTH_URL", url)
    assert await health.sink() == ""
    status[0] = 503
    assert await health.sink() == "file: the disk is full"
    # Held and not listened on: nobody answers there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HAUBERK_HEALTH_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/readyz")
        assert "expected an answer" in await health.sink()


def test_one_line_and_a_code(
    health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAUBERK_STATE", str(tmp_path / "none"))
    assert health.main(["enforcer"]) == 1
    assert capsys.readouterr().out.startswith("enforcer: SettingsError: expected a bus in")
    assert health.main(["other"]) == 2
