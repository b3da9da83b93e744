# SPDX-License-Identifier: Apache-2.0
"""Settings of what the cluster is told: sections `cluster_status` and `cluster_webhook`. Neighbours: `teller`, `policy_webhook`."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ClusterStatusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Status of policy objects, and Events about them."""

    enabled: Annotated[
        bool, msgspec.Meta(description="Write the status of policies that are objects of the cluster.", examples=[True])
    ] = True
    events: Annotated[bool, msgspec.Meta(description="Write Events about them too.", examples=[True])] = True
    writes_per_second: Annotated[
        float, msgspec.Meta(gt=0, le=10_000, description="Most writes to the API server a second.", examples=[20.0])
    ] = 20.0
    hits_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=86_400, examples=[60.0],
            description="Least seconds between two writes of a policy's status that differ in hits alone, and the window of its Events.",
        ),
    ] = 30.0  # fmt: skip
    storm: Annotated[
        int,
        msgspec.Meta(ge=1, le=1 << 31, description="Blocked operations in that window that are an Event.", examples=[1]),
    ] = 10  # fmt: skip


class ClusterWebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The validating webhook of policies that are objects of the cluster."""

    enabled: Annotated[
        bool, msgspec.Meta(description="Answer the API server's reviews of policies.", examples=[True])
    ] = False
    host: Annotated[str, msgspec.Meta(description="Address to listen on.", examples=["::"])] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.", examples=[9645])] = (
        9645
    )
    cert_file: Annotated[
        str,
        msgspec.Meta(
            description="Certificate (PEM) that the webhook's configuration trusts.",
            examples=["/etc/hauberk/webhook/tls.crt"],
        ),
    ] = "/etc/hauberk/webhook/tls.crt"
    key_file: Annotated[
        str, msgspec.Meta(description="Key of the certificate (PEM).", examples=["/etc/hauberk/webhook/tls.key"])
    ] = "/etc/hauberk/webhook/tls.key"
