# SPDX-License-Identifier: Apache-2.0
"""Workloads that somebody declares: a service, a session, a batch job. Policies select them as they select containers.

No runtime knows them; their cgroup's path does. A path pattern stands for one cgroup or, with `*` (within one name), for
several, each a workload of its own; deeper cgroups belong to the one above. Pure. Neighbour: `sensors.containers.inventory`.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from schemas.identity import Identity, Kind
from schemas.workload_annotations import misread


class WorkloadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One declared workload."""

    name: Annotated[
        str, msgspec.Meta(description="Name, as a container's.", pattern="^[a-z0-9][a-z0-9._-]*$", examples=["nginx"])
    ]
    cgroup: Annotated[
        str,
        msgspec.Meta(
            description="Path in the cgroup2 hierarchy; `*` stands for anything but a slash.",
            pattern="^/.*[^/]$",
            examples=["/system.slice/nginx.service"],
        ),
    ]
    namespace: Annotated[
        str, msgspec.Meta(description="Namespace; empty takes `container_namespace`.", examples=[""])
    ] = ""
    labels: Annotated[dict[str, str], msgspec.Meta(description="Labels for selectors.", examples=[{"app": "web"}])] = {}
    annotations: Annotated[
        dict[str, str],
        msgspec.Meta(description="As a pod's, for policies.", examples=[{"kubearmor-policy": "audited"}]),
    ] = {}

    def __post_init__(self) -> None:
        """ValueError for annotations that would change nothing: here they are the settings' own."""
        if said := misread(self.annotations):
            raise ValueError(said[0])


class Declared:
    """All declared workloads of a node."""

    def __init__(self, workloads: tuple[WorkloadSettings, ...]) -> None:
        self._tests = [
            (
                re.compile(
                    "".join("[^/]*" if part == "*" else re.escape(part) for part in re.split(r"(\*)", one.cgroup))
                ),
                one,
            )
            for one in workloads
        ]

    def find(self, path: str) -> WorkloadSettings | None:
        """The first declaration that `path` (of a cgroup) fits."""
        return next((one for test, one in self._tests if test.fullmatch(path)), None)


def stands_for(one: WorkloadSettings, id_: int, path: str, like: Identity) -> Identity:
    """Whose events those of cgroup `id_` are. `like`: the node's identity. `container_namespace` is filled in by the caller."""
    return Identity(
        kind=Kind.CONTAINER, node=like.node, uid=f"workload-{one.name}-{id_}", cgroups=(id_,), cgroup_path=path,
        container_name=one.name, namespace=one.namespace, labels=one.labels, annotations=one.annotations, node_labels=like.node_labels,
        runtime="declared", cluster=like.cluster, node_id=like.node_id,
    )  # fmt: skip
