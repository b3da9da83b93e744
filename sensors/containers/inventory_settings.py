# SPDX-License-Identifier: Apache-2.0
"""Settings of a node's inventory: section `inventory`. Neighbours: `inventory` (who works by them)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.decoding import NAME_OR_EMPTY
from sensors.containers.declared import WorkloadSettings
from sensors.containers.registry import DEFAULTS, RuntimeSettings


class NodeInventorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Containers and workloads of this node, and how long ended ones are kept."""

    node: Annotated[
        str,
        msgspec.Meta(
            max_length=253,
            pattern=NAME_OR_EMPTY,
            description="Name of the node; empty takes the host name.",
            extra={"setting": "derived"},
        ),
    ] = ""
    node_labels: Annotated[
        dict[str, str], msgspec.Meta(description="Labels of the node, for host policies.", examples=[{"zone": "a"}])
    ] = {}
    cluster: Annotated[str, msgspec.Meta(description="Name of the cluster.", examples=["prod"])] = "default"
    container_namespace: Annotated[
        str, msgspec.Meta(description="Namespace of containers outside Kubernetes.", examples=["container_namespace"])
    ] = "container_namespace"
    runtimes: Annotated[
        tuple[RuntimeSettings, ...], msgspec.Meta(description="Runtimes to ask, in order.", examples=[[]])
    ] = DEFAULTS
    workloads: Annotated[
        tuple[WorkloadSettings, ...],
        msgspec.Meta(
            description="Cgroups to be taken for containers: services, sessions, jobs.",
            examples=[[{"name": "nginx", "cgroup": "/system.slice/nginx.service"}]],
        ),
    ] = ()
    host_cgroups: Annotated[
        bool, msgspec.Meta(description="Publish cgroups of the host (services, sessions) too.", examples=[False])
    ] = True
    linger_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=86_400, description="Seconds an ended container is kept.", examples=[5.0])
    ] = 60.0
    answer_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=86_400, description="Seconds to keep asking a runtime about a container.", examples=[2.0]
        ),
    ] = 10.0
    start_socket: Annotated[
        str,
        msgspec.Meta(
            max_length=107,
            pattern="^(|/.*)$",
            description="Unix socket at which the OCI hook of a container (`hauberk hook`) waits for its rules; empty: none.",
            examples=["/var/lib/hauberk/start/start.sock"],
        ),
    ] = ""
    rescan_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=86_400, description="Seconds between full scans of cgroups.", examples=[1.0])
    ] = 10.0
