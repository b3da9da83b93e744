# SPDX-License-Identifier: Apache-2.0
"""The sections that `hauberk node` reads. Judge, planner and sinks are not imported: 5 MB of the 40 that a node may take.

The other sections may stand in the same file and are not looked at there; `hauberk settings` and `hauberk doctor` check them all.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from bus.embedded.settings import EmbeddedSettings
from bus.registry import BusSettings
from bus.spool_settings import SpoolSettings
from enforcers.settings import EnforceSettings
from hauberk.memory import BudgetSettings
from schemas.decoding import NAME_OR_EMPTY
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.node.sensor import NodeSettings
from sinks.endpoint import MetricsSettings


class NodeConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See `sections.Configuration`, where each field is described."""

    state: str = ""
    node: Annotated[str, msgspec.Meta(max_length=253, pattern=NAME_OR_EMPTY)] = ""
    bus: BusSettings = EmbeddedSettings()
    sensor: NodeSettings = NodeSettings()
    inventory: NodeInventorySettings = NodeInventorySettings()
    processor: Any = None
    planner: Any = None
    enforcement: EnforceSettings = EnforceSettings()
    cluster: Any = None
    cluster_status: Any = None
    cluster_webhook: Any = None
    postures: Any = None
    sinks: Any = None
    spool: SpoolSettings = SpoolSettings()
    metrics: MetricsSettings = MetricsSettings()
    page: Any = None
    memory: BudgetSettings = BudgetSettings()
