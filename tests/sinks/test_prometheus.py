# SPDX-License-Identifier: Apache-2.0
"""Metrics that promtool accepts, in both formats; capped series; health; a port in use is a sentence."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import aiohttp
import msgspec
import promql
import pytest

from hauberk.metrics import parts
from schemas.enforcement import Receipt, Refusal
from schemas.errors import SettingsError
from schemas.operations import Backend, Operation
from schemas.stats import Gauge, Label, declared
from schemas.verdict import RuleRef
from sinks.delivery.engine import SinkEngine
from sinks.file import FileSettings
from sinks.formats import exposition
from sinks.formats.exposition import Capped, ExposedStats, Family
from sinks.listener import is_loopback
from sinks.prometheus import PrometheusSettings, PrometheusSink

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (apt install prometheus)")
pytestmark = pytest.mark.servers
RULES = Path(__file__).parents[2] / "deploy" / "prometheus"


class Counts(msgspec.Struct):
    """What a stage counts. More text."""

    node: Label = "n1"
    frames: int = 5
    size: Gauge = 3
    took_ms: float = 250.0
    lost: dict[str, int] = msgspec.field(default_factory=lambda: {"ring": 2, "path": 0})
    spread: tuple[int, ...] = (1, 2)
    last_error: str = "not a label"
    away: bool = True


@pytest.fixture
async def sink():
    sink = PrometheusSink(PrometheusSettings(port=0, max_series=3))
    await sink.open()
    yield sink
    await sink.close()


async def get(url: str, accept: str = "") -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


def receipt(generation: int, at: int, **fields: object) -> Receipt:
    values: dict[str, object] = {
        "node": "node-1", "generation": generation, "digest": "d", "applied_ns": at, "took_ms": 12.5,
        "backends": (Backend.CGROUP, Backend.SIGNAL), "scopes": 2, "rules": 9,
        "refused": (Refusal(ref=RuleRef("p"), reason="no"),),
    }  # fmt: skip
    return Receipt(**{**values, **fields})  # type: ignore[arg-type]


async def fill(sink: PrometheusSink, make) -> None:
    sink.endpoint.collect(
        lambda: [ExposedStats(part="test", values=Counts()), ExposedStats(part="test", values=Counts(node='n"2\n\\'))]
    )
    alerts = [make.alert(1), make.alert(2, Suppressed=4), make.alert(3, PolicyName='bad"name\n')]
    summary = make.summary(0, None, make.entry(7), make.entry(2, "Deny", operation=Operation.CONNECT))
    await sink.send([*alerts, summary, receipt(3, 10**18), receipt(2, 10**17)])


@needs_promtool
async def test_promtool_finds_nothing_to_say(sink, make):
    await fill(sink, make)
    status, kind, text = await get(f"{sink.url}/metrics")
    assert (status, kind) == (200, exposition.TEXT)
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (
        'hauberk_alerts_total{namespace="shop",policy="no-shadow",action="Audit",operation="File",severity="7",mode=""} 2'
        in text
    )
    assert "hauberk_alerts_suppressed_total 4\n" in text
    assert 'hauberk_events_total{namespace="shop",operation="Network",status="Deny"} 2' in text
    assert 'hauberk_enforcement_generation{node="node-1"} 3' in text
    assert 'hauberk_enforcement_refused_rules{node="node-1"} 1' in text
    assert 'hauberk_enforcement_backend{node="node-1",backend="cgroup"} 1.0' in text
    assert 'hauberk_test_frames_total{node="n1"} 5' in text
    assert "# TYPE hauberk_test_size gauge" in text
    assert 'hauberk_test_took_seconds_total{node="n1"} 0.25' in text
    assert 'hauberk_test_lost_total{node="n1",kind="ring"} 2' in text
    assert 'hauberk_test_spread_total{node="n1",index="1"} 2' in text
    assert 'hauberk_test_away{node="n\\"2\\n\\\\"} 1' in text
    assert "last_error" not in text
    assert text.count("# TYPE hauberk_test_frames_total ") == 1
    sink.endpoint.collect(lambda: [ExposedStats(part="test", values=Counts(frames=6))])
    _, _, text = await get(f"{sink.url}/metrics")
    assert re.findall(r'hauberk_test_frames_total\{node="n1"\} (\d+)', text) == ["6"]


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5",
            True,
        ),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text;q=bad", False),
    ],
)
async def test_openmetrics_on_request(sink, make, accept, openmetrics):
    await fill(sink, make)
    _, kind, text = await get(f"{sink.url}/metrics", accept)
    assert (kind == exposition.OPENMETRICS) is openmetrics
    assert text.endswith("# EOF\n") is openmetrics
    assert ("# TYPE hauberk_alerts counter\n" in text) is openmetrics
    assert "\nhauberk_alerts_total{" in text


async def test_what_was_only_watched_is_told_apart(sink, make):
    await sink.send([make.alert(n, Mode=mode) for n, mode in enumerate(("", "shadow", "baseline", "baseline"))])
    _, _, text = await get(f"{sink.url}/metrics")
    counts = dict(re.findall(r'^hauberk_alerts_total\{.*,mode="(\w*)"\} (\d+)$', text, re.M))
    assert counts == {"": "1", "shadow": "1", "baseline": "2"}


async def test_series_are_capped(sink, make):
    await sink.send([make.alert(n, PolicyName=f"p{n}") for n in range(10)])
    _, _, text = await get(f"{sink.url}/metrics")
    lines = re.findall(r"^hauberk_alerts_total\{.*\} (\d+)$", text, re.M)
    assert [int(count) for count in lines] == [1, 1, 1, 7]
    assert 'policy="other"' in text


def test_capped_and_odd_numbers():
    counts = Capped(("a",), 1)
    for value in ("x", "y", "x", "z"):
        counts.add((value,), 2)
    assert counts.samples() == [((("a", "x"),), 4), ((("a", "other"),), 4)]
    odd = [
        Family(
            name="x",
            kind="gauge",
            help="a\\b\nc",
            samples=[((), n) for n in (float("inf"), float("-inf"), float("nan"), 0.5)],
        )
    ]
    assert (
        exposition.render(odd, openmetrics=False)
        == b"# HELP x a\\\\b\\nc\n# TYPE x gauge\nx +Inf\nx -Inf\nx NaN\nx 0.5\n"
    )


async def test_health_and_readiness(sink):
    why: dict[str, str] = {}
    sink.endpoint.ready_when(lambda: why)
    assert await get(f"{sink.url}/healthz") == (200, "application/json", '{"live":true}\n')
    assert await get(f"{sink.url}/readyz") == (200, "application/json", '{"ready":true,"not_ready":{}}\n')
    why["sink.siem"] = "away"
    status, _, text = await get(f"{sink.url}/readyz")
    assert (status, json.loads(text)) == (503, {"ready": False, "not_ready": {"sink.siem": "away"}})
    assert (await get(f"{sink.url}/other"))[0] == 404


async def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sink = PrometheusSink(PrometheusSettings(port=port))
        for call in (sink.check, sink.open):
            with pytest.raises(
                SettingsError, match=f"listen on `127.0.0.1:{port}`, but it is in use; set `port` of that sink or stop"
            ):
                await call()
        await sink.close()


async def test_the_engine_shows_every_sinks_delivery(bus, make, publish, until, tmp_path):
    engine = SinkEngine(bus, [PrometheusSettings(port=0), FileSettings(path=str(tmp_path / "a.jsonl"))])
    prometheus = engine.sinks[0]
    assert isinstance(prometheus, PrometheusSink)
    prometheus.endpoint.collect(lambda: [ExposedStats(part="bus", values=Counts())])
    await engine.check()
    await publish(make.alert(1))
    task = asyncio.create_task(engine.run())
    await until(lambda: [state.stats.committed for state in engine.states()] == [1, 1])
    _, _, text = await get(f"{prometheus.url}/metrics")
    assert 'hauberk_sink_accepted_total{sink="file"} 1' in text
    assert 'hauberk_sink_lag{sink="file"} ' in text
    assert "# TYPE hauberk_sink_up gauge" in text
    assert "hauberk_bus_frames_total" in text
    assert (await get(f"{prometheus.url}/readyz"))[0] == 200
    engine.stop()
    await task


@needs_promtool
def test_the_rule_file():
    for arguments in (["check", "rules", "hauberk.rules.yml"], ["test", "rules", "hauberk.rules.test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


async def test_rules_and_dashboards_ask_for_what_a_scrape_has(sink: PrometheusSink, make) -> None:
    """Metrics, and the labels that are selected, grouped by or shown: of everything that any role exports, by HTTP."""
    await fill(sink, make)
    every = []
    for part, struct in parts().items():
        fields = declared(struct)
        values = struct(**{name: "x" for name, kind in fields.items() if kind == "label"})
        for name in fields:
            if isinstance(getattr(values, name), dict):
                setattr(values, name, {"x": 1})
        every.append(ExposedStats(part=part, values=values))
    sink.endpoint.collect(lambda: every)
    text = (await get(f"{sink.url}/metrics"))[2]
    exported: dict[str, set[str]] = {}
    for name, found in re.findall(r"^(hauberk_\w+)(?:{(.*)})? ", text, re.MULTILINE):
        exported.setdefault(name, set()).update(re.findall(r'(\w+)="', found))
    expressions = promql.rules() | promql.panels()
    assert len(expressions) > 100
    for title, (expression, shown) in expressions.items():
        named = promql.metrics(expression)
        assert named <= exported.keys(), title
        known = promql.OF_PROMETHEUS.union(*(exported[name] for name in named))
        # A legend may name a label that only a part of a board's series has: Grafana leaves it out.
        assert promql.labels(expression, "" if title.startswith("hauberk-parts") else shown) <= known, title


def test_every_alert_is_seen_to_fire() -> None:
    tests = (RULES / "hauberk.rules.test.yml").read_text()
    fired = set(re.findall(r'alertname="(\w+)"}\', value: [1-9]', tests))
    assert fired == promql.rules().keys()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9642", 200),
        ("[::1]", 200),
        ("Metrics.local", 200),
        ("evil.example", 421),
        ("", 421),
    ],
)
async def test_only_its_own_names_are_answered_on_the_loopback(host: str, status: int) -> None:
    made = PrometheusSink(PrometheusSettings(port=0, names=("metrics.local",)))
    await made.open()
    try:
        async with aiohttp.ClientSession() as session:
            for path in ("/metrics", "/healthz", "/readyz"):
                async with session.get(made.url + path, headers={"Host": host}) as answer:
                    assert answer.status == status, path
    finally:
        await made.close()


def test_a_port_for_others_is_asked_by_any_name() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.0.2.1")
