# SPDX-License-Identifier: Apache-2.0
"""Settings of the connection to a cluster: section `cluster.server`."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the API server is, and how long it may take."""

    kubeconfig: Annotated[
        str,
        msgspec.Meta(
            description="Path of a kubeconfig; empty takes $KUBECONFIG, `~/.kube/config`, or the account of the pod.",
            examples=["/etc/hauberk/kubeconfig"],
        ),
    ] = ""
    context: Annotated[
        str, msgspec.Meta(description="Context of the kubeconfig; empty takes its current one.", examples=["prod"])
    ] = ""
    timeout_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=3600, description="Seconds until an answer must have begun.", examples=[30.0])
    ] = 20.0
    page: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="Objects of one page of a list.", examples=[100])
    ] = 500
    watch_seconds: Annotated[
        int,
        msgspec.Meta(ge=5, le=3600, description="Seconds after which a watch is asked for anew.", examples=[60]),
    ] = 300
