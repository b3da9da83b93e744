# SPDX-License-Identifier: Apache-2.0
"""What a container runtime owes the inventory: read this first.

A runtime only answers questions about containers; it never decides what an identity is and never touches the bus
(`sensors.containers.inventory` does both). Neighbours: `docker`, `cri`, `podman` keep the promise, `registry` lists them all,
`cgroups` says which container a cgroup path means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from sensors.containers.cgroups import Place


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime says of one container. `cgroup_path` "" when only `root_pid` (host pid, 0 when not running) tells it.
    `namespace` "" means the runtime has no such word; `started`: Unix seconds, 0 when not known."""

    id: str
    runtime: str
    name: str = ""
    image: str = ""
    image_digest: str = ""
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    orchestrated: bool = False
    privileged: bool = False
    root_pid: int = 0
    cgroup_path: str = ""
    started: float = 0.0


Changed = Callable[[str, bool], None]
"""Called with a container id and whether it ended."""


class Runtime(Protocol):
    """One source of container identities. All methods belong to the event loop; none may block it."""

    @property
    def name(self) -> str:
        """The word that `Identity.runtime` carries."""
        ...

    @property
    def status(self) -> str:
        """One sentence: what is wrong and what to do; "" when it answers or is simply not installed."""
        ...

    async def list(self) -> list[Found]:
        """Every running container. Raises `Unavailable` when the runtime is away, `PermissionMissing` when refused."""
        ...

    async def describe(self, place: Place) -> Found | None:
        """The container at `place`; None when this runtime does not know it (yet). Raises as `list` does."""
        ...

    async def watch(self, changed: Changed) -> None:
        """Tell starts, ends and renames until cancelled. Comes back after errors by itself; never raises them."""
        ...


KUBERNETES_PREFIX = "io.kubernetes."


def pod_labels(labels: dict[str, str]) -> dict[str, str]:
    """`labels` without what kubelet and the runtime put there for themselves."""
    return {key: value for key, value in labels.items() if not key.startswith(KUBERNETES_PREFIX)}
