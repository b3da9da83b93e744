# SPDX-License-Identifier: Apache-2.0
"""Which counts are shown as metrics, by part: `hauberk_<part>_<field>`, and where a role shows them.

docs/reference/metrics.md is generated from `parts`. A stats struct that is not in it is shown nowhere, and a test fails.
Neighbours: `sinks.endpoint` (serves them), `health` (what is not ready), `up` and `single_stage` (what each role shows).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from hauberk import service

if TYPE_CHECKING:
    import msgspec

    from bus.contract import Bus
    from hauberk.health import Checks
    from schemas.enforcement import Receipt
    from sinks.delivery.engine import SinkEngine
    from sinks.endpoint import Endpoint, MetricsSettings


def parts() -> dict[str, type[msgspec.Struct]]:
    """Part -> the struct of its counts."""
    from bus.embedded.settings import EmbeddedStats
    from bus.handover import HandoverStats
    from bus.kafka.stats import KafkaStats
    from bus.pump import PumpStats
    from bus.spool_settings import SpoolStats
    from enforcers.agent import EnforcementStats
    from enforcers.planner import PlannerStats
    from hauberk.memory import MemoryStats
    from hauberk.supervision import StageStats
    from processors.stats import ProcessorStats
    from sensors.containers.hashes import HashStats
    from sensors.containers.start_socket import StartStats
    from sensors.containers.stats import InventoryStats
    from sensors.kubernetes.stats import ClusterStats
    from sensors.node.agent import AgentStats as SensorStats
    from sensors.node.rings import RingStats
    from sinks.delivery.stats import DeliveryStats, SyslogStats
    from sinks.kubernetes.policy_webhook import PolicyWebhookStats
    from sinks.kubernetes.teller import TellerStats
    from sinks.listener import ListenerStats
    from sinks.store.stats import StoreStats

    return {
        "applier": EnforcementStats, "bus": EmbeddedStats, "cluster": ClusterStats, "cluster_status": TellerStats, "cluster_webhook": PolicyWebhookStats, "handover": HandoverStats, "hashes": HashStats, "inventory": InventoryStats, "kafka": KafkaStats, "listener": ListenerStats, "memory": MemoryStats, "planner": PlannerStats,
        "processor": ProcessorStats, "pump": PumpStats, "rings": RingStats, "sensor": SensorStats, "sink": DeliveryStats,
        "spool": SpoolStats, "stage": StageStats, "starts": StartStats, "store": StoreStats, "syslog": SyslogStats,
    }  # fmt: skip


def of_bus(bus: Bus) -> Iterator[tuple[str, msgspec.Struct]]:
    """What the bus of this process counts, if it counts, and its spool and its hand-over, if it has them."""
    from bus.kafka.stats import KafkaStats
    from bus.spool import SpooledBus

    # Not asked for by its type: who is on another bus does not import it.
    if (handed := getattr(bus, "handover", None)) is not None:
        yield "handover", handed
    if isinstance(bus, SpooledBus):
        yield "spool", bus.stats
        bus = bus.inner
    stats = getattr(bus, "stats", None)
    if stats is not None:
        yield "kafka" if isinstance(stats, KafkaStats) else "bus", stats


class Exposure:
    """Where a role shows its metrics and its health: at the endpoint of the section `metrics`, and at those of its `prometheus`
    sinks; perhaps nowhere."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)

    def collect(self, counts: Callable[[], Iterable[tuple[str, msgspec.Struct]]]) -> None:
        """Show the counts of now. `counts`: (part, struct), parts as in `parts`."""
        if not self._endpoints:
            return
        from sinks.formats.exposition import ExposedStats

        for endpoint in self._endpoints:
            endpoint.collect(lambda: [ExposedStats(part=part, values=stats) for part, stats in counts()])

    def ready_when(self, checks: Checks) -> None:
        """What is not ready of a stage; see `health`."""
        for endpoint in self._endpoints:
            endpoint.ready_when(checks)

    def enforcement(self, receipt: Callable[[], Receipt | None]) -> None:
        """Show what this node enforces."""
        if not self._endpoints:
            return
        from sinks.receipt_metrics import enforcement

        for endpoint in self._endpoints:
            endpoint.show(lambda: enforcement([one] if (one := receipt()) is not None else []))


async def expose(
    settings: MetricsSettings, opened: contextlib.AsyncExitStack, sinks: SinkEngine | None = None
) -> Exposure:
    """Serve the section `metrics` until `opened` is closed, when it is enabled. `sinks`: of this process. SettingsError when the
    port cannot be had."""
    found = [] if sinks is None else sinks.endpoints
    if settings.enabled:
        from sinks.endpoint import Endpoint

        endpoint = Endpoint("metrics", settings)
        if sinks is not None:
            sinks.serve(endpoint)
        await endpoint.open()
        opened.push_async_callback(endpoint.close)
        service.say(f"metrics and health: {endpoint.url}/metrics, /healthz, /readyz")
        found = [endpoint, *found]
    return Exposure(found)
