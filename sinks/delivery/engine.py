# SPDX-License-Identifier: Apache-2.0
"""Runs the configured sinks over a bus, each at its own pace.

One sink never holds up or brings down another: each has its consumer group, its delivery and its end, and is started again
by itself when it fails. Without somebody who does that, `run` raises when none is left. Neighbours: `sinks.registry` builds them, `consumer` drives one, `hauberk` wires the engine into `up`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from bus.contract import Bus
from schemas.errors import HauberkError, Permanent, SettingsError, Temporary
from sinks.delivery.consumer import SinkDelivery
from sinks.delivery.stats import DeliveryStats
from sinks.endpoint import Endpoint
from sinks.formats.exposition import ExposedStats
from sinks.prometheus import PrometheusSink
from sinks.registry import SinkSettings, build
from sinks.sink import Sink
from sinks.store.sink import StoreSink
from sinks.syslog import SyslogSink

Keep = Callable[[str, Callable[[asyncio.Event], Coroutine[Any, Any, None]], asyncio.Event], Awaitable[None]]
"""Runs a sink under a name until it returns or the event is set, and starts it again when it fails."""

_log = logging.getLogger("hauberk.sinks")


class SinkState(msgspec.Struct, frozen=True, kw_only=True):
    """How one sink is doing. `failure`: why it waits or ended, "" when all is well."""

    name: str
    type: str
    running: bool
    failure: str
    stats: DeliveryStats


class SinkEngine:
    """`await check()`, then `await run()`; `stop()` from anywhere in the loop ends `run` after what is in hand. `keep`: who
    starts a sink again when it fails; without, it has ended then."""

    def __init__(self, bus: Bus, settings: Sequence[SinkSettings], keep: Keep | None = None) -> None:
        self.sinks: list[Sink] = [build(one) for one in settings]
        names = [sink.name for sink in self.sinks]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(
                    f"`sinks`: expected a name for each sink of its own, got `{name}` {names.count(name)} times; set `name`"
                )
        self._settings = list(settings)
        self._deliveries = [
            SinkDelivery(bus, sink, wanted=one.filter, retry=one.retry, drain_seconds=one.drain_seconds)
            for sink, one in zip(self.sinks, settings, strict=True)
        ]
        self._ended: dict[str, str] = {}
        self._keep = keep
        self._stopping = asyncio.Event()
        for endpoint in self.endpoints:
            self.serve(endpoint)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Those of the `prometheus` sinks."""
        return [sink.endpoint for sink in self.sinks if isinstance(sink, PrometheusSink)]

    def serve(self, endpoint: Endpoint) -> None:
        """Show the sinks' stats there, and what keeps each from working."""
        endpoint.collect(self._stats)
        endpoint.ready_when(self.not_ready)
        for sink in self.sinks:
            if isinstance(sink, PrometheusSink) and sink.endpoint is not endpoint:
                endpoint.show(sink.families)

    async def check(self) -> None:
        """Ask every sink whether it can work. SettingsError lists all that cannot; far sides that are merely away are
        logged, because delivery waits for them."""
        problems = []
        for sink in self.sinks:
            try:
                await sink.check()
            except Temporary as error:
                _log.warning("sink `%s` will wait: %s", sink.name, error)
            except HauberkError as error:
                problems.append(str(error))
        if problems:
            raise SettingsError("; ".join(problems))

    async def run(self) -> None:
        """Run until `stop`. Raises the last Permanent when every sink has ended by one."""
        tasks = [asyncio.create_task(self._run(delivery)) for delivery in self._deliveries]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failures = [result for result in results if result is not None]
        if failures and len(failures) == len(results):
            raise failures[-1]

    async def finish(self) -> None:
        """Ask `run` to end once everything is out that is on the topics now. A far side that takes nothing is not waited for
        longer than `drain_seconds`."""
        self._stopping.set()
        await asyncio.gather(*(delivery.finish() for delivery in self._deliveries))

    def stop(self) -> None:
        """Finish the batches in hand, commit, close."""
        self._stopping.set()
        for delivery in self._deliveries:
            delivery.stop()

    def states(self) -> list[SinkState]:
        """One per sink, in the order of the settings."""
        return [
            SinkState(
                name=delivery.sink.name,
                type=str(one.__struct_config__.tag),
                running=bool(delivery.stats.up),
                failure=self._ended.get(delivery.sink.name, delivery.failure),
                stats=delivery.stats,
            )
            for delivery, one in zip(self._deliveries, self._settings, strict=True)
        ]

    def _stats(self) -> Iterator[ExposedStats]:
        for delivery in self._deliveries:
            yield ExposedStats(part="sink", values=delivery.stats)
            match delivery.sink:
                case StoreSink():
                    yield ExposedStats(part="store", values=delivery.sink.stats)
                case SyslogSink():
                    yield ExposedStats(part="syslog", values=delivery.sink.stats)

    def not_ready(self) -> dict[str, str]:
        """Sinks whose far side does not take what they send, or that have ended, and why."""
        return {f"sink.{state.name}": state.failure for state in self.states() if state.failure}

    async def _run(self, delivery: SinkDelivery) -> Permanent | None:
        name = delivery.sink.name

        async def deliver(_: asyncio.Event) -> None:
            self._ended.pop(name, None)
            try:
                await delivery.run()
            except Exception as error:
                self._ended[name] = str(error) or type(error).__name__
                raise

        if self._keep is not None:
            await self._keep(f"sink.{name}", deliver, self._stopping)
            return None
        try:
            await deliver(self._stopping)
        except Permanent as error:
            _log.error("sink `%s` ended, the others go on: %s", name, error)
            return error
        return None
