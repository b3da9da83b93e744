# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboards, made from the metrics catalogue: `make docs` writes them into deploy/grafana/dashboards.

Two: `hauberk`, a page to look at first, and `hauberk-parts`, every metric there is, a row for each part. A counter is shown as its
rate, a gauge as it is. A node tells what it enforces and the sink tells it of every node: hence `max by (node)`. Neighbours: `docs.generate` (who calls), `metrics` (the catalogue).
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

WIDTH: Final = 24
"""Columns of Grafana's grid."""
EACH: Final = 8
HIGH: Final = 7


class DashboardPanel(NamedTuple):
    """A panel: its title, PromQL, the series' legend and Grafana's name of the unit."""

    title: str
    query: str
    legend: str = "{{instance}}"
    unit: str = "short"


FIRST: Final[dict[str, tuple[DashboardPanel, ...]]] = {
    "What happens": (
        DashboardPanel("Alerts per second", "sum by (policy, action, mode) (rate(hauberk_alerts_total[$__rate_interval]))", "{{policy}} {{action}} {{mode}}"),
        DashboardPanel("Events judged per second", "sum by (operation) (rate(hauberk_events_total[$__rate_interval]))", "{{operation}}"),
        DashboardPanel("Alerts held back per second", "sum(rate(hauberk_alerts_suppressed_total[$__rate_interval]))", "held back"),
    ),
    "What is enforced": (
        DashboardPanel("Rules in force", "max by (node) (hauberk_enforcement_rules)", "{{node}}"),
        DashboardPanel("Rules that no backend enforces", "max by (node) (hauberk_enforcement_refused_rules)", "{{node}}"),
        DashboardPanel("Age of the plan in force", "time() - max by (node) (hauberk_enforcement_applied_timestamp_seconds)", "{{node}}", "s"),
    ),
    "Whether it keeps up": (
        DashboardPanel("Stages up", "hauberk_stage_up", "{{role}} {{stage}} {{instance}}"),
        DashboardPanel("Frames behind", "sum by (instance) (hauberk_pump_lag)"),
        DashboardPanel("Age of what is judged", "hauberk_pump_late_seconds", unit="s"),
        DashboardPanel("Records that sinks are behind", "sum by (sink) (hauberk_sink_lag)", "{{sink}}"),
        DashboardPanel("Rebalances", "increase(hauberk_pump_rebalances_total[10m])"),
        DashboardPanel("Losses", "sum by (kind) (increase(hauberk_processor_lost_total[10m]))", "{{kind}}"),
    ),
    "While the bus is away": (
        DashboardPanel("Nodes whose bus is away", "hauberk_spool_away"),
        DashboardPanel("Bytes in the spool", "hauberk_spool_bytes", unit="bytes"),
        DashboardPanel("Records shed", "sum by (instance, kind) (increase(hauberk_spool_shed_total[10m]))", "{{instance}} {{kind}}"),
    ),
}  # fmt: skip


def dashboards() -> dict[str, str]:
    """File name -> what it holds."""
    return {
        "hauberk.json": _text("hauberk", "Hauberk", FIRST),
        "hauberk-parts.json": _text("hauberk-parts", "Hauberk: every metric", parts()),
    }


def parts() -> dict[str, tuple[DashboardPanel, ...]]:
    """Every metric of the catalogue, by part."""
    from hauberk import metrics
    from schemas.stats import declared
    from sinks.formats.exposition import metric_name

    found = {}
    for part, struct in sorted(metrics.parts().items()):
        fields = declared(struct)
        legend = " ".join(
            f"{{{{{name}}}}}"
            for name in ("instance", *[key for key, kind in fields.items() if kind == "label"], "kind")
        )
        shown = []
        for field, kind in fields.items():
            if kind not in ("counter", "gauge"):
                continue
            name = metric_name(part, field, kind)
            unit = "s" if "_seconds" in name else "bytes" if "_bytes" in name else "short"
            query = f"rate({name}[$__rate_interval])" if kind == "counter" else name
            shown.append(DashboardPanel(field.replace("_", " "), query, legend, unit))
        found[part] = tuple(shown)
    return found


def _text(uid: str, title: str, rows: dict[str, tuple[DashboardPanel, ...]]) -> str:
    panels: list[dict[str, Any]] = []
    top = 0
    for row, shown in rows.items():
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        })  # fmt: skip
        top += 1
        for index, one in enumerate(shown):
            panels.append(
                _panel(len(panels) + 1, one, index % (WIDTH // EACH) * EACH, top + index // (WIDTH // EACH) * HIGH)
            )
        top += -(-len(shown) // (WIDTH // EACH)) * HIGH
    board = {
        "uid": uid, "title": title, "tags": ["hauberk"], "timezone": "browser", "schemaVersion": 39, "version": 1,
        "editable": False, "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "templating": {"list": []},
        "annotations": {"list": []}, "panels": panels,
    }  # fmt: skip
    return json.dumps(board, indent=1) + "\n"


def _panel(number: int, one: DashboardPanel, left: int, top: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "id": number, "type": "timeseries", "title": one.title, "datasource": source,
        "gridPos": {"h": HIGH, "w": EACH, "x": left, "y": top},
        "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": "A", "datasource": source, "expr": one.query, "legendFormat": one.legend}],
    }  # fmt: skip
