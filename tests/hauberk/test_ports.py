# SPDX-License-Identifier: Apache-2.0
"""A port that cannot be had, or what is no recording, is said before anything is written: a start that comes to nothing leaves no state behind."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hauberk.ports import look
from schemas.errors import SettingsError
from sinks.endpoint import Endpoint, MetricsSettings
from sinks.prometheus import PrometheusSettings
from sinks.reserved_ports import ReservedPorts
from sinks.store.sink import StoreSettings
from sinks.web.page import PageSettings

METRICS = ("--set", "metrics.enabled=true", "--set", "metrics.port={port}")
PAGE = ("--set", "page.port={port}")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("words", [PAGE, METRICS], ids=["page", "metrics"])
@pytest.mark.parametrize("role", ["up", "sink"])
def test_a_port_in_use_leaves_no_state_behind(hauberk: Any, taken: int, role: str, words: tuple[str, ...]) -> None:
    hauberk.sinks = [{"type": "store", "path": str(hauberk.state / "summary.db")}]
    given = [one.format(port=taken) for one in words]
    done = hauberk.replay(*given) if role == "up" else hauberk(role, *given)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"expected to listen on `127.0.0.1:{taken}`, but it is in use; set " in done.stderr
    assert not hauberk.state.exists()


@pytest.mark.parametrize("role", ["up", "sink"])
def test_so_does_the_port_of_a_sink(hauberk: Any, taken: int, role: str) -> None:
    hauberk.sinks = [{"type": "prometheus", "port": taken}]
    done = hauberk.replay() if role == "up" else hauberk(role)
    assert done.returncode == 2, done.stderr
    assert "it is in use; set `port` of that sink" in done.stderr
    assert not hauberk.state.exists()


def test_a_role_without_sinks_looks_at_its_metrics(hauberk: Any, taken: int) -> None:
    done = hauberk("processor", *(one.format(port=taken) for one in METRICS))
    assert done.returncode == 2, done.stderr
    assert "it is in use; set `metrics.port`" in done.stderr
    assert not hauberk.state.exists()


def test_neither_does_what_is_no_recording(hauberk: Any) -> None:
    (hauberk.home / "text").write_text("no recording")
    for name, said in (("nowhere", "got: No such file or directory"), ("text", "got `no recor` in `text`")):
        done = hauberk("up", "-q", "--replay", name)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert "hauberk up: expected a recording" in done.stderr
        assert said in done.stderr
        assert not hauberk.state.exists()


async def test_what_is_begun_is_not_looked_at_again_and_free_ports_stay_free(tmp_path: Path, taken: int) -> None:
    state, off = tmp_path / "state", MetricsSettings()
    store = StoreSettings(path=str(state / "summary.db"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    sinks = (store, PrometheusSettings(port=0))
    await look(state, MetricsSettings(enabled=True, port=free), sinks, PageSettings(port=0))
    with contextlib.closing(socket.create_server(("127.0.0.1", free))):
        pass
    assert not state.exists()
    # The page is served of a store, and where it is on.
    await look(state, off, (PrometheusSettings(port=0),), PageSettings(port=taken))
    await look(state, off, (store,), PageSettings(port=taken, enabled=False))
    with pytest.raises(SettingsError, match="page: expected to listen"):
        await look(state, off, (store,), PageSettings(port=taken))
    # One number for two.
    with pytest.raises(SettingsError, match=f"metrics: expected to listen on `127.0.0.1:{free}`, but it is in use"):
        await look(state, MetricsSettings(enabled=True, port=free), (PrometheusSettings(port=free),))
    state.mkdir()
    with pytest.raises(SettingsError):
        await look(state, off, (store,), PageSettings(port=taken))
    (state / "up.lock").touch()
    await look(state, off, (store,), PageSettings(port=taken))


async def test_nobody_is_answered_on_a_port_that_is_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    with ReservedPorts() as ports:
        await Endpoint("metrics", MetricsSettings(port=free)).reserve(ports)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free))


@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")])  # fmt: skip
async def test_one_port_is_had_once(first: str, second: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    with ReservedPorts() as ports:
        await ports.reserve(first, free)
        await ports.reserve("127.0.0.2", 0)
        with pytest.raises(OSError, match="in use"):
            await ports.reserve(second, free)
    with socket.create_server(("127.0.0.1", free)):
        pass


async def test_a_connection_that_has_ended_is_in_nobodys_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()  # who ends first keeps the port for a minute (TIME_WAIT)
        client.close()
    with ReservedPorts() as ports:
        await ports.reserve("127.0.0.1", port)


@pytest.mark.parametrize(("first", "second"), [("", None), ("0.0.0.0", "::"), ("127.0.0.1", "::1")])
async def test_addresses_of_both_families_may_have_one_number(first: str, second: str | None) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    with ReservedPorts() as ports:
        await ports.reserve(first, free)
        if second is not None:
            await ports.reserve(second, free)
