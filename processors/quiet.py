# SPDX-License-Identifier: Apache-2.0
"""Hot. Directories whose names nobody needs: no rule of the scope can match what lies in them, and nobody logs what is opened there.

A build or a backup opens thousands of files, each once, and each new name costs a hundred times what a known one does. Where
the sensor is in the same process it is told of such directories, and from a container's share of new names on the kernel names
their files by the directory (`kernel/programs/quiet.c`). All of it is taken back strictly before another policy or identity is in
force, and with the next frame when somebody begins to read telemetry. Must never call quiet what is not known to be. Neighbours: `processors.pipeline` (asks),
`hauberk.handing_over` (tells the sensor), `policy.ruleset` (whether a directory is free of rules).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from processors.inventory import Inventory
from processors.judge import JudgedBehaviour
from schemas.operations import Access, Operation

FROM: Final = 4
"""New names of a directory in one frame from which it is asked about: to tell the kernel costs as much as judging one."""
_MOST: Final = 4096
"""Directories remembered, as many as the kernel keeps; then all are forgotten."""
_FIRST, _LAST = int(Operation.OPEN), int(Operation.TRUNCATE)
"""Operations on one path. What has two keeps both names."""
_NOT_WHOLE: Final = int(Access.UNTOLD | Access.PARTIAL)
_bits: Final = int.__and__

Place = tuple[str, int, str]
"""Node, cgroup id, and a directory with its trailing slash. Two nodes have the same cgroup ids for different containers."""
Needless = Callable[[list[Place] | None], None]
"""(places whose names nobody needs; None: from the return on, every name is wanted again)."""


class QuietDirectories:
    """`look` at what is new and needed by nobody; `forget` strictly before anything changes that."""

    def __init__(self, inventory: Inventory, tell: Needless) -> None:
        self._inventory = inventory
        self._tell = tell
        self._known: set[Place] = set()
        # What one before this knew when it failed, nobody takes back any more.
        tell(None)

    def look(self, node: str, entries: Iterable[JudgedBehaviour]) -> None:
        """Behaviours of `node` that were just judged, whose names nobody asked for."""
        known, seen = self._known, dict[Place, int]()
        found: list[Place] = []
        for entry in entries:
            raw = entry.raw
            path = raw.resource
            if raw.resource2 or not path or not _FIRST <= raw.operation <= _LAST:
                continue
            place = (node, raw.cgroup, path[: path.rfind("/") + 1])
            if place in known:
                continue
            many = seen[place] = seen.get(place, 0) + 1
            if many == FROM:
                known.add(place)
                if self._is_free(entry, place):
                    found.append(place)
        if len(known) > _MOST:
            self.forget()
        elif found:
            self._tell(found)

    def forget(self) -> None:
        """Every name may be needed."""
        if self._known:
            self._known.clear()
            self._tell(None)

    def _is_free(self, entry: JudgedBehaviour, place: Place) -> bool:
        node, cgroup, directory = place
        # Only where the cgroup alone says whose it is: what the namespaces decide, another task of the cgroup may have otherwise.
        return (
            cgroup > 1
            and not _bits(entry.raw.access, _NOT_WHOLE)
            and self._inventory.owner(node, cgroup) is entry.identity
            and entry.scope.free(directory)
        )
