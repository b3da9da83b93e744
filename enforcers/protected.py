# SPDX-License-Identifier: Apache-2.0
"""Which host cgroups are enforced: never one of init, a container runtime, the kubelet, sshd or the agent by a glob. Pure.

The root cgroup is never enforced. A host cgroup that runs a protected service is enforced only when the settings name it
exactly. A glob does not reach a cgroup above a container or a protected service either: what lies in a cgroup is held like it
from its birth. `override_protected` takes down the second, not the others. Neighbours: `policy.rules.lockout` (what rules must
not reach), `plan` (who asks), `apply` (which knows its own cgroup).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

SERVICES: Final = (
    "init.scope", "docker.service", "containerd.service", "crio.service", "podman.service", "kubelet.service",
    "ssh.service", "sshd.service", "hauberk.service", "hauberk-node.service",
)  # fmt: skip


def chosen(path: str, patterns: tuple[str, ...], override: bool, above: frozenset[str] = frozenset()) -> bool:
    """Whether a host cgroup is to be enforced: its path is named, or matched by a glob that may reach it. `above`: see `parents`."""
    if path in ("", "/"):
        return False
    if path in patterns:
        return True
    guarded = path in above or (not override and is_protected(path))
    return not guarded and any(fnmatchcase(path, pattern) for pattern in patterns)


def is_protected(path: str) -> bool:
    """Whether a protected service runs in the cgroup at `path`, or above it.

    Only where root makes cgroups: at the top or in slices alone. Below a service (`user@1000.service`) and a scope who runs in it may
    name a cgroup as he likes, and that name takes no rule off him."""
    for name in path.strip("/").split("/"):
        if name in SERVICES:
            return True
        if not name.endswith(".slice"):
            return False
    return False


def parents(paths: Iterable[str]) -> frozenset[str]:
    """The cgroups above those at `paths`, without the root."""
    found: set[str] = set()
    for path in paths:
        parts = path.split("/")
        found.update("/".join(parts[:end]) for end in range(2, len(parts)))
    return frozenset(found)
