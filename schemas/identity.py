# SPDX-License-Identifier: Apache-2.0
"""Who did it: the snapshot of a node, a container or a host cgroup that events are attributed to."""

from __future__ import annotations

from enum import StrEnum
from math import isfinite

import msgspec

from schemas.decoding import Count, Name, Nanoseconds, decoder
from schemas.errors import DecodeError


class Kind(StrEnum):
    """What an identity stands for. HOST: a cgroup of the node that is no container (a service, a session, the root)."""

    NODE = "node"
    HOST = "host"
    CONTAINER = "container"


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """The workload that owns a pod (KubeArmor `Owner`): kind, name, namespace."""

    ref: str = ""
    name: str = ""
    namespace: str = ""


def workload_name(owner: Owner, pod: str) -> str:
    """What its pods have in common by name: the owner; where there is none, or the owner of a static pod, which is its node, the
    pod's own name without the node's, which a kubelet puts behind it."""
    if owner.ref == "Node" and pod:
        return pod.removesuffix(f"-{owner.name.lower()}") or pod
    return owner.name or pod


class Identity(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `inventory.v1`, key `node/uid`. Times are Unix seconds; `ended` 0 while it lives.

    `complete` is False when only the cgroup is known yet (the runtime has not answered); such a container is judged with
    what is known and announced again. Outside Kubernetes `namespace` is `container_namespace` and `orchestrated` False
    (KubeArmor section 1.5).
    """

    kind: Kind
    node: Name
    uid: str
    cgroups: tuple[Count, ...] = ()
    cgroup_path: str = ""
    pid_ns: Count = 0
    mnt_ns: Count = 0
    complete: bool = True
    container_name: str = ""
    image: str = ""
    image_digest: str = ""
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    owner: Owner = Owner()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    namespace_annotations: dict[str, str] = {}
    node_labels: dict[str, str] = {}
    runtime: str = ""
    orchestrated: bool = False
    privileged: bool = False
    root_pid: Count = 0
    started: float = 0.0
    ended: float = 0.0
    cluster: str = "default"
    links: dict[str, str] = {}
    """What paths named by policies really are in this root, where they differ: `/bin/sh` -> `/usr/bin/dash`, `/bin/` -> `/usr/bin/`."""
    node_id: str = ""
    """The node's machine id, the same for everything on it."""
    users: dict[str, str] = {}
    """NODE only: user names by uid (as text), from the node's `/etc/passwd`."""
    confirmed: bool = True
    """CONTAINER only. False: its cgroup is named like a container's and no runtime and no setting says that it is one. Anybody who
    may make cgroups can name one so: host policies hold for it too."""
    linked_ns: Nanoseconds = 0
    """Of versions before `linked_set`, not read: the bus's time of the newest policy whose paths were looked up."""
    pod_cgroup: Count = 0
    """CONTAINER only: id of its pod's cgroup, the parent of `cgroup_path`; 0 where there is none."""
    linked_set: str = ""
    """NODE only: mark of the policies (`schemas.policy_set_mark`) whose paths were looked up in every root of the node."""
    starting: bool = False
    """CONTAINER only. Its runtime sets it up and waits, because of an OCI hook, until its rules are in force."""

    @property
    def key(self) -> bytes:
        """The record key on `inventory.v1`."""
        return f"{self.node}/{self.uid}".encode()

    @property
    def doubtful(self) -> bool:
        """Whether it may as well be a process of the host: told as a container, held to the policies of both."""
        return self.kind is Kind.CONTAINER and not self.confirmed

    @property
    def workload(self) -> str:
        """`namespace/owner-or-pod-or-container` for containers, `node` for the host: the key of alerts and summaries."""
        if self.kind is not Kind.CONTAINER:
            return self.node
        return f"{self.namespace}/{workload_name(self.owner, self.pod) or self.container_name or self.uid[:12]}"


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(Identity, "an identity")


def decode(data: bytes) -> Identity:
    """The identity in `data`; DecodeError when it is not one."""
    found = _decode(data)
    if not (isfinite(found.started) and isfinite(found.ended)):
        raise DecodeError(f"expected times of an identity in Unix seconds, got {found.started} and {found.ended}")
    return found
