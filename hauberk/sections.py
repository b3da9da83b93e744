# SPDX-License-Identifier: Apache-2.0
"""The sections of the configuration, one per stage. The structs stand above their components; here they only meet."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from bus.embedded.settings import EmbeddedSettings
from bus.registry import BusSettings
from bus.spool_settings import SpoolSettings
from enforcers.planner import PlannerSettings
from enforcers.settings import EnforceSettings
from hauberk.memory import BudgetSettings
from policy.ruleset import PostureSettings
from processors.engine import ProcessorSettings
from schemas.decoding import NAME_OR_EMPTY
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.kubernetes.settings import ClusterSettings
from sensors.node.sensor import NodeSettings
from sinks.endpoint import MetricsSettings
from sinks.kubernetes.settings import ClusterStatusSettings, ClusterWebhookSettings
from sinks.registry import SinkSettings
from sinks.web.page import PageSettings


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything. `state` and what lies in it are filled in when they are not set."""

    state: Annotated[
        str, Meta(description="Directory of the bus, the stores and the last plan.", examples=["/var/lib/hauberk"])
    ] = ""
    node: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=NAME_OR_EMPTY,
            description="Name of this node; empty takes the host name.",
            examples=["node-1"],
        ),
    ] = ""
    bus: Annotated[BusSettings, Meta(description="Which bus.", examples=[{"type": "embedded"}])] = EmbeddedSettings()
    sensor: Annotated[NodeSettings, Meta(description="The sensor of this node.", examples=[{}])] = NodeSettings()
    inventory: Annotated[
        NodeInventorySettings, Meta(description="The containers and workloads of this node.", examples=[{}])
    ] = NodeInventorySettings()
    processor: Annotated[ProcessorSettings, Meta(description="How frames are judged.", examples=[{}])] = (
        ProcessorSettings()
    )
    planner: Annotated[PlannerSettings, Meta(description="How plans are made.", examples=[{}])] = PlannerSettings()
    enforcement: Annotated[EnforceSettings, Meta(description="How this node enforces plans.", examples=[{}])] = (
        EnforceSettings()
    )
    cluster: Annotated[
        ClusterSettings, Meta(description="The Kubernetes cluster that `hauberk cluster` watches.", examples=[{}])
    ] = ClusterSettings()
    cluster_status: Annotated[
        ClusterStatusSettings,
        Meta(description="What `hauberk cluster` tells the cluster of its policies.", examples=[{}]),
    ] = ClusterStatusSettings()
    cluster_webhook: Annotated[
        ClusterWebhookSettings,
        Meta(description="The webhook of `hauberk cluster` that refuses policies with errors.", examples=[{}]),
    ] = ClusterWebhookSettings()
    postures: Annotated[
        PostureSettings, Meta(description="Default postures and visibility, for processors and planner.", examples=[{}])
    ] = PostureSettings()
    sinks: Annotated[
        list[SinkSettings],
        Meta(description="Where alerts, telemetry and summaries go.", examples=[[{"type": "console"}]]),
    ] = []
    spool: Annotated[
        SpoolSettings,
        Meta(
            description="Where `hauberk node` keeps what it reports while a bus that is elsewhere is away.",
            examples=[{}],
        ),
    ] = SpoolSettings()
    metrics: Annotated[
        MetricsSettings,
        Meta(description="Metrics and health of this process over HTTP, for every role.", examples=[{}]),
    ] = MetricsSettings()
    page: Annotated[PageSettings, Meta(description="The web page, over the first `store` sink.", examples=[{}])] = (
        PageSettings()
    )
    memory: Annotated[
        BudgetSettings, Meta(description="What this process keeps in memory.", examples=[{"budget_bytes": 16777216}])
    ] = BudgetSettings()
