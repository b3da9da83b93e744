# SPDX-License-Identifier: Apache-2.0
"""Which sightings are of one workload's container, what its policy is called and how it is selected. Pure.

A workload is the owner of a pod (of a job its cron job; static pods of one name on all nodes), outside Kubernetes a container, on a host a systemd service. Names depend on
nothing else, so that a policy learnt again is the same object.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from policy.rules.normalise import CONTAINER_LABEL
from schemas.identity import Identity, Kind, workload_name

OF_ONE_POD: Final = frozenset(
    {
        "pod-template-hash", "pod-template-generation", "controller-revision-hash", "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
    }
)  # fmt: skip
"""Labels that name one pod, revision or run, not the workload."""
_RUN: Final = re.compile(r"-[0-9]{6,}$")
_UNIT: Final = re.compile(r"/([^/]+)\.(?:service|scope|socket|slice)(?=/|$)")
_BAD: Final = re.compile(r"[^a-z0-9-]+")
NAME_LENGTH: Final = 56


class LearntWorkload(msgspec.Struct, frozen=True, order=True):
    """Whose policy. `namespace` "" for a host, whose `owner` is the service and `node` its name."""

    cluster: str
    namespace: str
    owner_kind: str
    owner: str
    container: str
    node: str = ""
    orchestrated: bool = False

    @property
    def host(self) -> bool:
        """Whether it is a service of a node."""
        return bool(self.node)

    @property
    def label(self) -> str:
        """`namespace/owner/container` or `node/service`."""
        return f"{self.node}/{self.owner}" if self.host else f"{self.namespace}/{self.owner}/{self.container}"

    @property
    def policy_name(self) -> str:
        """An RFC 1123 name, the same in every run and of no other workload."""
        digest = hashlib.blake2b(
            "\0".join(map(str, msgspec.structs.astuple(self))).encode("utf-8", "surrogatepass"), digest_size=3
        )
        said = "-".join(dict.fromkeys(part for part in (self.node, self.owner, self.container) if part))
        said = re.sub("-+", "-", _BAD.sub("-", said.lower()))[:NAME_LENGTH].strip("-")
        return f"{said or 'workload'}-{digest.hexdigest()}"


def workload(identity: Identity) -> LearntWorkload:
    """The workload that an identity is an instance of."""
    if identity.kind is not Kind.CONTAINER:
        units = _UNIT.findall(identity.cgroup_path)
        name = next((unit for unit in reversed(units) if unit not in ("system", "user", "-")), "host")
        return LearntWorkload(identity.cluster, "", "Service", re.sub(r"[0-9]+", "N", name), "", node=identity.node)
    owner = identity.owner
    name, kind = workload_name(owner, identity.pod) if owner.name else "", owner.ref
    if kind == "Job" and _RUN.search(name):
        name, kind = _RUN.sub("", name), "CronJob"
    if kind == "ReplicaSet" and (hashed := identity.labels.get("pod-template-hash")) and name.endswith(f"-{hashed}"):
        name, kind = name.removesuffix(f"-{hashed}"), "Deployment"
    if not name:
        name, kind = (
            identity.pod or identity.container_name or identity.uid[:12],
            "Pod" if identity.pod else "Container",
        )
    return LearntWorkload(
        identity.cluster, identity.namespace or "default", kind, name, identity.container_name, orchestrated=identity.orchestrated
    )  # fmt: skip


def selector(of: LearntWorkload, identities: Iterable[Identity]) -> dict[str, str]:
    """The `matchLabels` that select every instance: what all of them carry, and the container's name."""
    if of.host:
        return {"kubernetes.io/hostname": of.node}
    if not of.orchestrated:
        return {CONTAINER_LABEL: f"^{re.escape(of.container)}$"}
    carried: dict[str, str] | None = None
    for identity in identities:
        mine = {key: value for key, value in identity.labels.items() if key not in OF_ONE_POD}
        carried = mine if carried is None else dict(mine.items() & carried.items())
    made = dict(sorted((carried or {}).items()))
    if of.container:
        made[CONTAINER_LABEL] = f"[{of.container}]"
    return made
