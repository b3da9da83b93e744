# SPDX-License-Identifier: Apache-2.0
"""Identities that need no runtime: the node itself, which host policies select, and a container known by its cgroup alone.

Neighbours: `sensors.containers.inventory` (who publishes it), `containers.cgroups`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from bus.contract import Bus
from schemas.errors import DecodeError
from schemas.identity import Identity, Kind, decode
from schemas.topics import INVENTORY
from sensors.containers import cgroups
from sensors.containers.cgroups import Place
from sensors.containers.contract import Found


def node_id(name: str) -> str:
    """The machine's id, else one made of its name: the same after every start."""
    return word("/etc/machine-id") or hashlib.sha256(name.encode()).hexdigest()


def identity(name: str, id_: str, mount: str, labels: dict[str, str], **more: Any) -> Identity:
    """The node called `name`. `mount`: of the cgroup2 hierarchy; `more`: further fields of the identity."""
    pid_ns, mnt_ns = cgroups.namespaces(1)
    labels = {"kubernetes.io/hostname": name, "kubearmor.io/hostname": name, **labels}
    return Identity(
        kind=Kind.NODE, node=name, uid=f"node-{id_}", cgroups=(cgroups.cgroup_id(mount, "/"),), cgroup_path="/",
        pid_ns=pid_ns, mnt_ns=mnt_ns, labels=labels, node_labels=labels, root_pid=1, started=time.time(),
        annotations={"hauberk.io/boot-id": word("/proc/sys/kernel/random/boot_id")}, node_id=id_, **more,
    )  # fmt: skip


def newborn(place: Place, namespace: str, **more: Any) -> Identity:
    """A container of which only the cgroup's path is known. `more`: what all identities of the node have in common."""
    return Identity(
        kind=Kind.CONTAINER, uid=place.id, complete=False, confirmed=False, container_name=place.id[:12], namespace=namespace,
        pod_uid=place.pod_uid, runtime=place.runtime, orchestrated=bool(place.pod_uid), started=time.time(), **more,
    )  # fmt: skip


def described(found: Found, cgroup_ids: tuple[int, ...], own: str, namespace: str, **more: Any) -> Identity:
    """A container as its runtime describes it. `own`: path of its cgroup; `namespace`: for one whose runtime has no such word."""
    pid_ns, mnt_ns = cgroups.namespaces(found.root_pid)
    return Identity(
        kind=Kind.CONTAINER, uid=found.id, cgroups=cgroup_ids, cgroup_path=own, pid_ns=pid_ns, mnt_ns=mnt_ns,
        container_name=found.name or found.id[:12], image=found.image, image_digest=found.image_digest,
        namespace=found.namespace or namespace, pod=found.pod, pod_uid=found.pod_uid, labels=found.labels,
        annotations=found.annotations, runtime=found.runtime, orchestrated=found.orchestrated,
        privileged=found.privileged, root_pid=found.root_pid, started=found.started or time.time(), **more,
    )  # fmt: skip


async def read_back(bus: Bus, node: str) -> list[Identity]:
    """What the bus still says of `node`: who was here when the inventory ran last. What cannot be read is passed over."""
    found = []
    for key, record in (await bus.latest(INVENTORY)).items():
        if record.value and key.startswith(f"{node}/".encode()):
            with contextlib.suppress(DecodeError):
                found.append(decode(record.value))
    return found


def left_over(before: list[Identity], living: dict[str, Identity]) -> dict[str, Identity | None]:
    """uid -> its end, for each of `before` that is not `living`: nobody saw it go. None: at once, for its cgroup's id is
    another's by now (ids begin again with the machine), and two owners would share its events."""
    taken = {id_ for one in living.values() for id_ in one.cgroups}
    return {
        one.uid: None
        if taken.intersection(one.cgroups)
        else msgspec.structs.replace(one, ended=one.ended or time.time(), root_pid=0, complete=True)
        for one in before
        if one.uid not in living
    }


def word(path: str) -> str:
    """The one line of a file of the system; empty when there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
