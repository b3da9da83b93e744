# SPDX-License-Identifier: Apache-2.0
"""The health check against an endpoint of a stage, as it is served."""

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

from sinks.endpoint import PORT, Endpoint, MetricsSettings

SOURCE = Path(__file__).parents[2] / "deploy/docker/health.py"


@pytest.fixture(scope="session")
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hauberk_health", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint("metrics", MetricsSettings(enabled=True, port=0))
    await made.open()
    yield made
    await made.close()


async def test_it_names_what_the_stage_says_is_not_ready(
    health: ModuleType, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAUBERK__METRICS__PORT", endpoint.url.rpartition(":")[2])
    assert await asyncio.to_thread(health.main, ["processor"]) == 0
    assert capsys.readouterr().out == "processor: well\n"
    endpoint.ready_when(lambda: {"policies": "not read to their end yet", "frames": "the broker is away"})
    assert await asyncio.to_thread(health.main, ["processor"]) == 1
    assert capsys.readouterr().out == "processor: policies: not read to their end yet; frames: the broker is away\n"


async def test_nobody_there_is_not_well(health: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # Held and not listened on: nobody answers there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HAUBERK__METRICS__PORT", str(taken.getsockname()[1]))
        assert "expected an answer at http://127.0.0.1:" in health.problem(health.url())


async def test_an_answer_of_another_kind_is_shown_as_it_is(
    health: ModuleType, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAUBERK_HEALTH_URL", f"{endpoint.url}/elsewhere")
    assert await asyncio.to_thread(health.problem, health.url()) == "expected /metrics, /healthz or /readyz"


def test_one_stage_is_asked_where_the_settings_put_it(health: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAUBERK__METRICS__PORT", raising=False)
    monkeypatch.delenv("HAUBERK_HEALTH_URL", raising=False)
    assert health.url() == f"http://127.0.0.1:{PORT}/readyz"
    assert health.main(["other"]) == health.main([]) == 2
