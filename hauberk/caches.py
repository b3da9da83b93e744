# SPDX-License-Identifier: Apache-2.0
"""Which caches a process has, and how each says what it holds. Neighbours: `memory` (their shares), `up`, `single_stage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hauberk.memory import SHARES

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.memory import ProcessMemory
    from hauberk.stages import StagePart
    from processors.engine import Processor
    from sensors.node.sensor import Node
    from sinks.delivery.engine import SinkEngine
    from sinks.web.page import WebPage


def of_bus(memory: ProcessMemory, bus: Bus) -> None:
    """Newest records. A bus that is elsewhere keeps none; and a spool is not read here."""
    if hasattr(bus, "held_bytes"):
        memory.watch("records", lambda: bus.held_bytes)


def of_node(memory: ProcessMemory, node: Node) -> None:
    """Definitions of the rings that are open now."""
    memory.watch("definitions", lambda: node.source.definitions_bytes)


def of_processor(memory: ProcessMemory, part: StagePart[Processor]) -> None:
    """What the processor that runs now has judged, throttles and lists."""
    memory.watch("judge", lambda: part.engine.judge.kept * SHARES["judge"].unit)
    memory.watch("throttle", lambda: part.engine.throttle.held_bytes)
    memory.watch("names", lambda: part.engine.pipeline.names.held_bytes)


def of_sinks(memory: ProcessMemory, sinks: SinkEngine, page: WebPage | None) -> None:
    """What stores remember of their files, and the page of its answers."""
    from sinks.store.sink import StoreSink

    stores = [sink for sink in sinks.sinks if isinstance(sink, StoreSink)]
    if stores:
        memory.watch("store", lambda: sum(store.known for store in stores) * SHARES["store"].unit)
    if page is not None:
        memory.watch("page", lambda: page.kept_bytes)
