# SPDX-License-Identifier: Apache-2.0
"""What this machine leaves a process: bytes of memory and processors. Neighbours: `map_sizes`, `hauberk.memory`.

A container's limit counts where it is below the machine's memory: maps are charged to the cgroup of who makes them (Linux 5.11).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

_UNLIMITED: Final = 1 << 60
"""What version 1 of cgroups writes for no limit is above this."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`memory`: bytes, the smallest of the machine's and the limits of this process's cgroups. `processors`: online."""

    memory: int
    processors: int


def machine(root: str = "/") -> Machine:
    """As seen by this process; files are read below `root`. What cannot be read limits nothing."""
    found = [_total(Path(root, "proc/meminfo")), *_limits(Path(root))]
    return Machine(memory=min(found), processors=os.cpu_count() or 1)


def _total(path: Path) -> int:
    try:
        line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        return _UNLIMITED


def _limits(root: Path) -> list[int]:
    """Limits of this process's cgroup and those above it, as far as they are seen from here."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            places, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            places, name = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        for place in places:
            # In a container's view its own cgroup is the top, whatever path the kernel gives.
            below = root / place
            spot = below / path.lstrip("/")
            for directory in (spot, *spot.parents):
                if (limit := _number(directory / name)) is not None:
                    found.append(limit)
                if directory == below:
                    break
    return found


def _number(path: Path) -> int | None:
    try:
        value = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        # "max", or the top of the tree, which has no such file.
        return None
    return value if 0 < value < _UNLIMITED else None
