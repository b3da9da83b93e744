# SPDX-License-Identifier: Apache-2.0
"""Settings of the watch of a cluster: section `cluster`. Neighbours: `watch` (who works by them)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.settings import ServerSettings


class LeaseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of several replicas one works."""

    enabled: Annotated[
        bool,
        msgspec.Meta(description="Take a Lease before working; needed with more than one replica.", examples=[True]),
    ] = True
    namespace: Annotated[str, msgspec.Meta(description="Namespace of the Lease.", examples=["hauberk"])] = "hauberk"
    name: Annotated[str, msgspec.Meta(description="Name of the Lease.", examples=["hauberk-cluster"])] = (
        "hauberk-cluster"
    )
    seconds: Annotated[
        float,
        msgspec.Meta(ge=2, le=600, description="Seconds after which a silent holder is replaced.", examples=[15.0]),
    ] = 15.0


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cluster that is watched."""

    server: Annotated[ServerSettings, msgspec.Meta(description="The API server.")] = ServerSettings()
    lease: Annotated[LeaseSettings, msgspec.Meta(description="Which replica works.")] = LeaseSettings()
    policies: Annotated[
        bool, msgspec.Meta(description="Put policies that are objects of the cluster in force.", examples=[True])
    ] = True
    ended_hours: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=8760, examples=[72.0],
            description="Hours in which the fact of a pod, a service or a node that is over stays, so that its addresses are told as its own.",
        ),
    ] = 24.0  # fmt: skip
    ended_most: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1_000_000,
            description="Pods, services and nodes that are over whose facts stay at a time.",
            examples=[20000],
        ),
    ] = 5000
