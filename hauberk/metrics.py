# SPDX-License-Identifier: Apache-2.0
"""Which counts are shown as metrics, by part: `hauberk_<part>_<field>`. docs/reference/metrics.md is generated from this.

A stats struct that is not in `parts` is shown nowhere, and a test fails. Neighbours: `sinks.exposition` (how they are rendered),
`stages` (what each role shows).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import msgspec

    from bus.contract import Bus


def parts() -> dict[str, type[msgspec.Struct]]:
    """Part -> the struct of its counts."""
    from bus.embedded_settings import EmbeddedStats
    from bus.pump import PumpStats
    from bus.spool import SpoolStats
    from enforcers.agent import EnforcementStats
    from enforcers.planner import PlannerStats
    from hauberk.supervision import StageStats
    from processors.stats import ProcessorStats
    from sensors.agent import Stats as SensorStats
    from sensors.hashes import HashStats
    from sensors.rings import RingStats
    from sinks.listener import ListenerStats
    from sinks.stats import DeliveryStats, SyslogStats
    from sinks.store.stats import StoreStats

    return {
        "applier": EnforcementStats, "bus": EmbeddedStats, "hashes": HashStats, "listener": ListenerStats, "planner": PlannerStats,
        "processor": ProcessorStats, "pump": PumpStats, "rings": RingStats, "sensor": SensorStats, "sink": DeliveryStats,
        "spool": SpoolStats, "stage": StageStats, "store": StoreStats, "syslog": SyslogStats,
    }  # fmt: skip


def of_bus(bus: Bus) -> Iterator[tuple[str, msgspec.Struct]]:
    """What the bus of this process counts, if it counts."""
    from bus.spool import SpooledBus

    stats = getattr(bus, "stats", None)
    if stats is not None:
        yield ("spool" if isinstance(bus, SpooledBus) else "bus"), stats
