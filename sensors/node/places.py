# SPDX-License-Identifier: Apache-2.0
"""Where the cgroups lie that are older than the programs: nobody has announced them. Neighbours: `definitions`, `rings`."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice

from kernel.cgroup_tree import walk
from kernel.features import cgroup2_mount
from sensors.node.definitions import PLACES_MOST


def look_around(place: Callable[[int, bytes], None]) -> None:
    """`place(cgroup, path)` for each cgroup of this machine but the root, as many as are kept."""
    for cgroup, path in islice(walk(cgroup2_mount() or ""), PLACES_MOST):
        if path:
            place(cgroup, os.fsencode(path))
