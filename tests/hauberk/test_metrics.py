# SPDX-License-Identifier: Apache-2.0
"""Every count that is kept is shown, under a name that documents and rules use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from bus.memory import MemoryBus
from bus.spool import SpooledBus
from bus.spool_settings import SpoolSettings
from hauberk.metrics import Exposure, of_bus, parts
from processors.pipeline import PipelineCounts
from processors.stats import ProcessorStats
from schemas.stats import Gauge, Label, Level, declared
from sinks.delivery.engine import SinkEngine
from sinks.formats.exposition import ExposedStats, from_stats, metric_name
from sinks.prometheus import PrometheusSettings, PrometheusSink
from sinks.store.sink import StoreSettings
from sinks.syslog import SyslogSettings

ROOT = Path(__file__).parents[2]
ROOMS = ("bus", "enforcers", "hauberk", "kernel", "policy", "processors", "sensors", "sinks")
PARTS = parts()


class Sample(msgspec.Struct):
    who: Label = "x"
    done: int = 1
    waiting: Gauge = 2
    took_ms: Level = 1500.0
    away: bool = False
    lost: dict[str, int] = {}
    problem: str = ""


def names() -> set[str]:
    found = {
        metric_name(part, field, kind)
        for part, struct in PARTS.items()
        for field, kind in declared(struct).items()
        if kind in ("counter", "gauge")
    }
    own = PrometheusSink(PrometheusSettings()).families()
    return found | {family.name + ("_total" if family.kind == "counter" else "") for family in own}


def test_a_struct_says_what_its_fields_are() -> None:
    assert declared(Sample) == {
        "who": "label", "done": "counter", "waiting": "gauge", "took_ms": "gauge", "away": "gauge", "lost": "counter",
        "problem": "text",
    }  # fmt: skip
    families = from_stats([ExposedStats(part="p", values=Sample())])
    assert [(family.name, family.kind) for family in families] == [
        ("hauberk_p_done", "counter"), ("hauberk_p_waiting", "gauge"), ("hauberk_p_took_seconds", "gauge"),
        ("hauberk_p_away", "gauge"), ("hauberk_p_lost", "counter"),
    ]  # fmt: skip
    assert families[2].samples == [((("who", "x"),), 1.5)]


def test_every_stats_struct_is_shown() -> None:
    kept = {
        node.name
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Stats") and node.name != ExposedStats.__name__
    }
    assert kept <= {base.__name__ for struct in PARTS.values() for base in struct.__mro__} | {"Stats"}
    assert set(declared(PipelineCounts)) <= set(declared(ProcessorStats)), (
        "what the pipeline counts is in the processor's stats"
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_number_of_a_stats_struct_is_a_metric_with_a_good_name(part: str) -> None:
    struct = PARTS[part]
    values = {name: "x" for name, kind in declared(struct).items() if kind == "label"}
    shown = {family.name for family in from_stats([ExposedStats(part=part, values=struct(**values))])}
    numbers = [name for name, kind in declared(struct).items() if kind in ("counter", "gauge")]
    assert len(shown) == len(numbers) > 0
    for family in shown:
        assert re.fullmatch(r"hauberk_[a-z0-9]+(_[a-z0-9]+)+", family)
        assert not family.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_milliseconds", "_megabytes"))


def test_every_metric_that_documents_and_rules_name_is_there() -> None:
    known = names()
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy/prometheus").glob("*.yml")]
    # A word with a dot or a slash behind it is a file, `hauberk_*` the whole of them.
    named = {
        (name, path.name)
        for path in files
        for name in re.findall(r"\bhauberk_[a-z0-9_]*[a-z0-9](?![./a-z0-9_*-])", path.read_text())
    }
    assert len(named) > 20
    assert sorted(one for one in named if one[0] not in known) == []


def test_counters_that_were_kept_and_not_shown() -> None:
    assert {
        "hauberk_rings_unlogged_total", "hauberk_rings_discarded_total", "hauberk_syslog_resent_total",
        "hauberk_syslog_reconnects_total",
    } <= names()  # fmt: skip
    assert {"hauberk_planner_plan_seconds", "hauberk_sensor_behind_seconds", "hauberk_processor_waiting"} <= names()


async def test_sinks_and_the_spool_show_what_they_count(tmp_path: Path) -> None:
    bus = MemoryBus()
    settings = [
        PrometheusSettings(port=0),
        StoreSettings(path=str(tmp_path / "store.db")),
        SyslogSettings(address="127.0.0.1:1"),
    ]
    engine = SinkEngine(bus, settings)
    (endpoint,) = engine.endpoints
    exposure = Exposure([endpoint])
    spooled = await SpooledBus.open(bus, SpoolSettings(directory=str(tmp_path / "spool")))
    exposure.collect(lambda: of_bus(spooled))
    shown = {family.name for family in endpoint.families()}
    await spooled.close()
    for part in ("sink", "store", "syslog", "spool"):
        kinds = declared(PARTS[part]).items()
        assert {metric_name(part, field, "gauge") for field, kind in kinds if kind in ("counter", "gauge")} <= shown
    assert endpoint.not_ready() == {}
