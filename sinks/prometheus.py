# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus to scrape, and the health of the process for whoever asks.

What it does: counts alerts, events and enforcement receipts, and shows every stage's own counters at `/metrics`; `/healthz`
says the process answers, `/readyz` that it works. Delivery guarantee: counters live in memory and begin again with the
process, as Prometheus expects; a redelivered record counts twice (the store is the place of exact counts). Limit:
`max_series` per metric, everything beyond is counted under `other`. It listens on the loopback unless told otherwise,
because label values name workloads and policies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec

from schemas.alert import Alert
from schemas.backends import backend_name
from schemas.enforcement import Receipt
from schemas.errors import SettingsError
from schemas.summary import Summary
from schemas.topics import ALERTS, ENFORCEMENT_STATUS, SUMMARIES
from sinks.exposition import OPENMETRICS, TEXT, Capped, Family, Sample, Stats, from_stats, render, wants_openmetrics
from sinks.listener import Listener, is_loopback, names_us, why
from sinks.settings import Common
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult

if TYPE_CHECKING:
    from aiohttp import web

Collector = Callable[[], Iterable[Stats]]
"""Called at each scrape, on the loop; must be quick and must not raise."""
Readiness = Callable[[], str]
"""Why the process is not ready, "" when it is."""


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
        self.url = ""
        self._settings = settings
        self._port = settings.port
        self._collectors: list[Collector] = []
        self._ready: list[Readiness] = []
        self._listener: Listener | None = None
        most = settings.max_series
        self._alerts = Capped(("namespace", "policy", "action", "operation", "severity"), most)
        self._suppressed = 0
        self._events = Capped(("namespace", "operation", "status"), most)
        self._receipts: dict[str, Receipt] = {}

    def collect(self, collector: Collector) -> None:
        """Show these stats at each scrape."""
        self._collectors.append(collector)

    def ready_when(self, readiness: Readiness) -> None:
        """`/readyz` answers 503 with the sentence while this gives one."""
        self._ready.append(readiness)

    async def check(self) -> None:
        if self._listener is None:
            await self.open()
            await self.close()

    async def open(self) -> None:
        if self._listener is not None:
            return
        # Imported here: 25 MB that nobody without this sink should carry.
        from aiohttp import web

        names = {name.lower() for name in (*self._settings.names, self._settings.host)}

        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            # A page in a browser of this machine may have made its own name ours. A port on another address is for others.
            if is_loopback(self._settings.host) and not names_us(request, names):
                return web.Response(
                    status=421,
                    text="expected to be asked by an address of this port; add the name to `names` of this sink if it is one\n",
                )
            return await handler(request)

        application = web.Application(middlewares=[guard])
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        listener = Listener(self.name, self._settings.host, self._port)
        try:
            await listener.open(application, shutdown_timeout=1.0)
        except OSError as error:
            raise SettingsError(
                f"prometheus: expected to listen on `{listener.host}:{listener.port}`, but {why(error)}; set `port` of that sink "
                "or stop who listens there"
            ) from error
        self._listener = listener
        # A free port that was found by `check` is the one that is said, so it is taken again.
        self._port, self.url = listener.port, listener.url

    async def send(self, items: Sequence[Item]) -> SendResult:
        for item in items:
            if isinstance(item, Alert):
                action = item.Action or "none"
                self._alerts.add((item.NamespaceName, item.PolicyName, action, item.Operation, item.Severity))
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
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    def families(self) -> list[Family]:
        """Everything a scrape shows, in order."""
        own = [
            Family(name="hauberk_alerts", kind="counter", help="Alerts told.", samples=self._alerts.samples()),
            Family(
                name="hauberk_alerts_suppressed", kind="counter", help="Alerts held back by throttling.",
                samples=[((), self._suppressed)],
            ),
            Family(
                name="hauberk_events", kind="counter", help="Events seen, by class and by what was told of them.",
                samples=self._events.samples(),
            ),
        ]  # fmt: skip
        listening = [Stats(part="listener", values=self._listener.stats)] if self._listener is not None else []
        collected = from_stats(stats for collector in (lambda: listening, *self._collectors) for stats in collector())
        return own + self._enforcement() + collected

    def _receipt(self, receipt: Receipt) -> None:
        known = self._receipts.get(receipt.node)
        if known is None and len(self._receipts) >= self._settings.max_series:
            return
        if known is None or receipt.applied_ns >= known.applied_ns:
            self._receipts[receipt.node] = receipt

    def _enforcement(self) -> list[Family]:
        receipts = self._receipts.values()

        def gauge(name: str, about: str, value: Callable[[Receipt], float]) -> Family:
            samples: list[Sample] = [((("node", receipt.node),), value(receipt)) for receipt in receipts]
            return Family(name=f"hauberk_enforcement_{name}", kind="gauge", help=about, samples=samples)

        backends: list[Sample] = [
            ((("node", receipt.node), ("backend", backend_name(backend))), 1.0)
            for receipt in receipts
            for backend in receipt.backends
        ]
        return [
            gauge("generation", "Generation of the plan in force.", lambda receipt: receipt.generation),
            gauge("applied_timestamp_seconds", "When it was applied, Unix time.", lambda each: each.applied_ns / 1e9),
            gauge("apply_duration_seconds", "What the map updates took.", lambda receipt: receipt.took_ms / 1e3),
            gauge("scopes", "Containers and cgroups under a plan.", lambda receipt: receipt.scopes),
            gauge("rules", "Rules in force.", lambda receipt: receipt.rules),
            gauge("refused_rules", "Rules no backend of the node can enforce.", lambda each: len(each.refused)),
            gauge("partial_rules", "Rules enforced in part.", lambda each: len(each.partial)),
            gauge("failed_updates", "Updates the kernel refused.", lambda receipt: len(receipt.failed)),
            Family(name="hauberk_enforcement_backend", kind="gauge", help="Backends in use.", samples=backends),
        ]

    async def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        openmetrics = wants_openmetrics(request.headers.get("Accept", ""))
        return web.Response(
            body=render(self.families(), openmetrics=openmetrics),
            headers={"Content-Type": OPENMETRICS if openmetrics else TEXT},
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        from aiohttp import web

        reasons = [reason for ready in self._ready if (reason := ready())]
        return web.Response(text="".join(f"{reason}\n" for reason in reasons) or "ok\n", status=503 if reasons else 200)
