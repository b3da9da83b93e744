# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus to scrape, and the health of the process for whoever asks.

What it does: counts alerts, events and enforcement receipts, and shows every stage's own counters at `/metrics`; `/healthz`
says the process answers, `/readyz` that it works. Delivery guarantee: counters live in memory and begin again with the
process, as Prometheus expects; a redelivered record counts twice (the store is the place of exact counts). Limit:
`max_series` per metric, everything beyond is counted under `other`. It listens on the loopback unless told otherwise,
because label values name workloads and policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from schemas.alert import Alert
from schemas.enforcement import Receipt
from schemas.summary import Summary
from schemas.topics import ALERTS, ENFORCEMENT_STATUS, SUMMARIES
from sinks.endpoint import Endpoint, MetricsSettings
from sinks.formats.exposition import Capped, Family
from sinks.receipt_metrics import enforcement
from sinks.settings import Common
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult


class PrometheusSettings(
    Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="prometheus", tag_field="type"
):
    """Serve metrics."""

    host: Annotated[str, msgspec.Meta(description="Address to listen on.", examples=["127.0.0.1"])] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.", examples=[9642])] = (
        9642
    )
    names: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Host names it answers to on the loopback, besides `localhost` and addresses.",
            examples=[["metrics.local"]],
        ),
    ] = ()
    max_series: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=(1 << 31) - 1, description="Series of one metric before the rest is `other`.", examples=[1000]
        ),
    ] = 1000


class PrometheusSink:
    """See `sink.Sink`. `url` is known after `open`."""

    live = False
    takes_json = False
    topics = (ALERTS, SUMMARIES, ENFORCEMENT_STATUS)
    limits = BatchLimits(items=5000, age_seconds=0.2)

    def __init__(self, settings: PrometheusSettings) -> None:
        self.name = settings.name or "prometheus"
        self._settings = settings
        served = MetricsSettings(enabled=True, host=settings.host, port=settings.port, names=settings.names)
        self.endpoint = Endpoint(self.name, served, "`port` of that sink")
        self.endpoint.show(self.families)
        most = settings.max_series
        self._alerts = Capped(("namespace", "policy", "action", "operation", "severity", "mode"), most)
        self._suppressed = 0
        self._events = Capped(("namespace", "operation", "status"), most)
        self._receipts: dict[str, Receipt] = {}

    async def check(self) -> None:
        if not self.endpoint.listening:
            await self.open()
            await self.close()

    async def open(self) -> None:
        await self.endpoint.open()

    @property
    def url(self) -> str:
        """Where it is served; "" before `open`."""
        return self.endpoint.url

    async def send(self, items: Sequence[Item]) -> SendResult:
        for item in items:
            if isinstance(item, Alert):
                action = item.Action or "none"
                named = (item.NamespaceName, item.PolicyName, action, item.Operation, item.Severity)
                self._alerts.add((*named, item.Mode))
                self._suppressed += item.Suppressed
            elif isinstance(item, Summary):
                namespace = item.identity.namespace
                for entry in item.entries:
                    self._events.add((namespace, entry.behaviour.cls.label, entry.status), entry.count)
            elif isinstance(item, Receipt):
                self._receipt(item)
        return ACCEPTED

    async def idle(self) -> None:
        return None

    async def close(self) -> None:
        await self.endpoint.close()

    def families(self) -> list[Family]:
        """What this sink counts itself; `endpoint` shows it before the stages' stats."""
        own = [
            Family(name="hauberk_alerts", kind="counter", help="Alerts published; `mode` is shadow or baseline where nothing was enforced.", samples=self._alerts.samples()),
            Family(
                name="hauberk_alerts_suppressed", kind="counter", help="Alerts held back by throttling.",
                samples=[((), self._suppressed)],
            ),
            Family(
                name="hauberk_events", kind="counter", help="Events seen, by class and status.",
                samples=self._events.samples(),
            ),
        ]  # fmt: skip
        return own + enforcement(self._receipts.values())

    def _receipt(self, receipt: Receipt) -> None:
        known = self._receipts.get(receipt.node)
        if known is None and len(self._receipts) >= self._settings.max_series:
            return
        if known is None or receipt.applied_ns >= known.applied_ns:
            self._receipts[receipt.node] = receipt
