# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/scaling.md, computed from figures of `make bench`.

`python benchmarks/sizing.py build/bench.json` takes the figures it needs over into sizing.json (and those of Kafka's budgets), where each keeps how it was
measured; `make docs` writes the tables from that file, and a test compares. Nothing in the tables is typed by hand but what is
assumed of a node. Neighbours: bench_fleet, bench_shares, bench_kafka_alert, bench_recovery (who measure), docs/generate.py.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Final

from schemas.topics import EVENTS_RAW
from sensors.node.agent import AgentSettings

HERE: Final = Path(__file__).parent
TAKEN: Final = HERE / "sizing.json"
EVENTS: Final = 2000
"""Of a node, a second: a busy one."""
FRAMES: Final = round(1 / AgentSettings().coalesce)
"""Of a node, a second."""
FULL: Final = 0.7
"""Of a core: what a processor is given to do, so that a rebalance or a burst finds room."""
SPOOL: Final = 512 << 20
"""`spool.max_bytes`."""
FLEETS: Final = (10, 50, 200, 1000)
MEASURED: Final = {
    "node: a frame published, CPU": ("kafka_node_frame_cpu",),
    "node: an event published, CPU": ("kafka_node_event_cpu",),
    "frame before compression": ("kafka_frame_event",),
    "on the wire and on the broker's disk": ("kafka_wire_event",),
    "processor: an event, CPU": ("kafka_processor_event_cpu",),
    "sink: an alert, CPU": ("kafka_sink_alert_cpu",),
    "broker: a frame from node to sink, CPU at most": ("kafka_broker_frame_cpu",),
    "broker: an event from node to sink, CPU at most": ("kafka_broker_event_cpu",),
    "one processor as a process, an event, CPU: backlog, paced": ("kafka_processors_1_backlog_event_cpu", "kafka_processors_1_paced_event_cpu"),
    "two processors to one, CPU an event: backlog, paced": ("kafka_processors_2_to_1_backlog", "kafka_processors_2_to_1_paced"),
    "three processors to one, CPU an event: backlog, paced": ("kafka_processors_3_to_1_backlog", "kafka_processors_3_to_1_paced"),
    "busiest of three processors to an even share": ("kafka_shares_3",),
    "system call to alert, p50, p99": ("kafka_syscall_to_alert_same_p50", "kafka_syscall_to_alert_same_p99"),
    "the same for a new behaviour, p50, p99": ("kafka_syscall_to_alert_fresh_p50", "kafka_syscall_to_alert_fresh_p99"),
    "policy published to receipt, p50, p99": ("kafka_policy_to_receipt_p50", "kafka_policy_to_receipt_p99"),
    "memory of the planner, of a processor": ("kafka_fleet_planner_rss", "kafka_fleet_processor_rss"),
    "carried by the machine, all on it": ("kafka_fleet_carried",),
    "pause of alerts: processor stopped, killed": ("kafka_processor_ended_pause", "kafka_processor_killed_pause"),
    "pause of alerts: broker killed, from its return": ("kafka_broker_killed_pause",),
}  # fmt: skip
"""Row of the first table -> figures. A row of which something was not measured is left out."""
NEEDED: Final = (
    "_machine",
    "kafka_node_frame_cpu",
    "kafka_frame_event",
    "kafka_wire_event",
    "kafka_processor_event_cpu",
)
"""Without these there is no table."""


def taken() -> dict[str, dict[str, Any]]:
    """The figures that the tables are made of."""
    found: dict[str, dict[str, Any]] = json.loads(TAKEN.read_text())
    return found


def tables(figures: dict[str, dict[str, Any]]) -> str:
    """Both tables, as Markdown."""
    return f"{figures['_machine']['how']}.\n\n{_measured(figures)}\n\n{_sized(figures)}"


def _measured(figures: dict[str, dict[str, Any]]) -> str:
    lines = ["| measured | figure | how |", "|---|---|---|"]
    for title, names in MEASURED.items():
        if any(name not in figures for name in names):
            continue
        found = [figures[name] for name in names]
        shown = ", ".join(_number(one["value"]) for one in found)
        lines.append(f"| {title} | {shown} {found[0]['unit']} | n = {found[0]['n']:,}; {found[-1]['how']} |")
    return "\n".join(lines)


def _sized(figures: dict[str, dict[str, Any]]) -> str:
    value = {name: one["value"] for name, one in figures.items()}
    publishing = FRAMES * value["kafka_node_frame_cpu"] / 1e6
    wire = EVENTS * value["kafka_wire_event"]
    judging = EVENTS * value["kafka_processor_event_cpu"] / 1e6
    each = FULL / judging
    hours = EVENTS_RAW.retention_hours
    minutes = SPOOL / (EVENTS * value["kafka_frame_event"]) / 60
    lines = [
        f"A node with {EVENTS:,} events a second in {FRAMES} frames, each {_number(judging * 100)} % of a core of a processor: one processor, "
        f"{FULL:.0%} busy, has {each:.0f} of them.",
        "",
        f"| nodes | publishing, of a core of each | processors | on the wire | `events.raw`, {hours} h | partitions |",
        "|---|---|---|---|---|---|",
    ]
    for nodes in FLEETS:
        processors = max(1, math.ceil(nodes / each))
        lines.append(
            f"| {nodes:,} | {publishing:.1%} | {processors:,} | {_number(wire * nodes / 1e6)} MB/s "
            f"| {_number(wire * nodes * 3600 * hours / 1e9)} GB | {max(EVENTS_RAW.partitions, math.ceil(processors * 1.5))} |"
        )
    return "\n".join(lines) + (
        f"\n\nPartitions: half as many again as processors, so that one more finds work; {EVENTS_RAW.partitions} unless set. The spool of {SPOOL >> 20} MiB "
        f"lasts such a node {minutes:.0f} minutes without a broker."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(path: str) -> int:
    """Take over what the tables need from a run's figures; what the run did not measure stays as it was."""
    run = json.loads(Path(path).read_text())
    budgets = json.loads((HERE / "budgets.json").read_text())
    held = {name for name in budgets if name.startswith("kafka_")}
    names = {"_machine", *held, *(name for row in MEASURED.values() for name in row)}
    before = taken() if TAKEN.exists() else {}
    made = {name: run.get(name, before.get(name)) for name in sorted(names)}
    if absent := [name for name in NEEDED if made[name] is None]:
        print(
            f"sizing: expected the figures of every needed name, {path} lacks {', '.join(absent)}; run `fleet`",
            file=sys.stderr,
        )
        return 1
    made = {name: one for name, one in made.items() if one is not None}
    TAKEN.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
