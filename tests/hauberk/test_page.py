# SPDX-License-Identifier: Apache-2.0
"""The page as the command serves it: `up` and `sink` say where, it answers while they run, and it ends with them."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDING = str(ROOT / "examples/recordings/host.hbrk")
POLICY = str(ROOT / "examples/policies/host-audit-shadow.yaml")
LINE = r"(?m)^  page       (http://127\.0\.0\.1:\d+/)$"


@pytest.fixture
def hauberk(hauberk: Any) -> Any:
    hauberk.sinks = [{"type": "store", "path": f"{hauberk.state}/summary.db"}]
    return hauberk


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def test_up_says_where_and_the_page_answers(hauberk: Any, eventually: Any) -> None:
    # At half a percent of its speed the recording lasts longer than the test.
    up = hauberk.start("up", "-q", "--replay", RECORDING, "--speed", "0.005", "-f", POLICY)
    url = re.search(LINE, up.ready())
    assert url is not None, up.said()
    assert b"<title>Hauberk</title>" in get(url[1])
    eventually(lambda: json.loads(get(f"{url[1]}api/survey"))["workloads"], 60)
    with urllib.request.urlopen(f"{url[1]}events", timeout=60) as stream:
        assert stream.readline() == b"event: reset\n"
        started = time.monotonic()
        assert up.end() == 0
        assert time.monotonic() - started < 20, "an open stream holds nobody up"
        assert b"event: activity\n" in stream.read()
    with pytest.raises(urllib.error.URLError):
        get(url[1])


def test_sink_serves_it_too_and_learns(hauberk: Any, eventually: Any) -> None:
    assert hauberk.replay().returncode == 0
    sink = hauberk.start("sink")
    url = re.search(LINE, sink.ready())
    assert url is not None, sink.said()
    assert json.loads(get(f"{url[1]}api/survey"))["workloads"]
    asked = f"{url[1]}api/learnt"
    eventually(lambda: not json.loads(get(asked))["learning"], 60)
    told = json.loads(get(asked))
    assert told["why"] == ""
    policy = told["lines"][0]["policy"]
    sheet = json.loads(get(f"{asked}?policy={policy}"))
    shown = hauberk("discover", "--since", "30d")
    assert sheet["yaml"] in shown.stdout, "what discover prints"
    assert sink.end() == 0


@pytest.mark.parametrize(
    ("sinks", "settings"), [([{"type": "blackhole"}], ()), (None, ("--set", "page.enabled=false"))]
)
def test_without_a_store_or_switched_off_there_is_none(hauberk: Any, sinks: Any, settings: tuple[str, ...]) -> None:
    hauberk.sinks = sinks or hauberk.sinks
    done = hauberk.replay(*settings)
    assert done.returncode == 0, done.stderr
    assert "  page " not in done.stderr


def test_a_port_in_use_is_one_sentence(hauberk: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = hauberk.replay("--set", f"page.port={port}")
        asked = hauberk("sink", HAUBERK__PAGE__PORT=str(port))
    for one in (done, asked):
        assert one.returncode == 2
        assert f"page: expected to listen on `127.0.0.1:{port}`, but it is in use; set `page.port`" in one.stderr
        assert "Traceback" not in one.stderr


def test_a_replay_takes_nobodys_port(hauberk: Any) -> None:
    """Beside a running `up`, as often as not: unless somebody says which, any free port will do."""
    environment = {name: value for name, value in hauberk.environment().items() if "PAGE" not in name}
    hauberk.environment = lambda **more: environment | more
    for _ in range(2):
        done = hauberk.replay()
        assert done.returncode == 0, done.stderr
        url = re.search(LINE, done.stderr)
        assert url is not None
        assert ":9643/" not in url[1]
