# SPDX-License-Identifier: Apache-2.0
"""What the rules and dashboards ask Prometheus: expressions, metrics, labels.

`promql.py URL` compares them with what a running Prometheus has scraped (`deploy/docker/try.sh` calls it): every metric there,
every expression evaluated. Metrics of parts that no process of the stack has are named, not passed over.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
METRIC = re.compile(r"\b(hauberk_[a-z0-9_]+)")
SELECTED = re.compile(r"\b(hauberk_[a-z0-9_]+|up)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
LEGEND = re.compile(r"\{\{\s*\$?(?:labels\.)?([a-z_]+)\s*\}\}")
OF_PROMETHEUS = {"instance", "job", "role"}
"""Labels that the scrape gives, `role` by deploy/prometheus/prometheus.yml."""


def rules() -> dict[str, tuple[str, str]]:
    """Alert -> (its expression, its labels and texts)."""
    read = yaml.safe_load((ROOT / "deploy/prometheus/hauberk.rules.yml").read_text())
    return {
        one["alert"]: (one["expr"], " ".join(str(text) for text in one["annotations"].values()))
        for group in read["groups"]
        for one in group["rules"]
    }


def panels() -> dict[str, tuple[str, str]]:
    """`file: title` -> (expression, legend)."""
    found = {}
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        row = ""
        for panel in json.loads(path.read_text())["panels"]:
            row = panel["title"] if panel["type"] == "row" else row
            for target in panel.get("targets", []):
                found[f"{path.name}: {row}: {panel['title']}"] = (target["expr"], target["legendFormat"])
    return found


def metrics(expression: str) -> set[str]:
    return set(METRIC.findall(expression))


def labels(expression: str, text: str) -> set[str]:
    """Names of labels that an expression selects or groups by, or that the text beside it shows."""
    found = {name.strip() for names in GROUPED.findall(expression) for name in names.split(",") if name.strip()}
    for _, matchers in SELECTED.findall(expression):
        found |= set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
    return found | {name for name in LEGEND.findall(text) if name != "value"}


def asked(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        read = json.load(answer)
    assert read["status"] == "success", read
    return read["data"]


def main(url: str, absent: set[str]) -> int:
    """`absent`: parts of the catalogue (`hauberk.metrics.parts`) that no process of this stack has."""
    known = set(asked(url, "metadata")) | set(asked(url, "label/__name__/values"))
    wrong = []
    expressions = {**rules(), **panels()}
    named = {name for expression, _ in expressions.values() for name in metrics(expression)}
    elsewhere = {name for name in named if name.split("_")[1] in absent}
    # Metadata has a counter's name as it is declared or as it is sampled, by the version of Prometheus.
    wrong += [
        f"{name} is not exported"
        for name in sorted(named - elsewhere - known)
        if name.removesuffix("_total") not in known
    ]
    for title, (expression, _) in expressions.items():
        try:
            asked(url, "query", query=expression.replace("$__rate_interval", "1m"))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what is asked
            wrong.append(f"{title}: {error}")
    print("\n".join(wrong) or f"{len(named - elsewhere)} metrics of {len(expressions)} expressions are in the scrape; "
          f"{len(elsewhere)} are of {', '.join(sorted(absent))}, which this stack does not have")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], set(sys.argv[2:])))
