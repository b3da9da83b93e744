# SPDX-License-Identifier: Apache-2.0
"""Cgroups that workloads make below their own: gathered, told together, and of each workload so many and no more.

Every telling repeats all ids of the workload, so that thousands of new cgroups told one by one would be a square of bytes. An
id that is not told is no loss: readers find its owner by its path, as the kernel announces it. Neighbour: `sensors.containers.inventory`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from typing import Final

import msgspec

from schemas.identity import Identity

MOST: Final = 512
"""Cgroups of one workload that its identity lists: systemd in a container makes about a hundred. 4.6 kB at most."""
WITHIN: Final = 0.25
"""Seconds that new ones wait for others."""


class Inner:
    """`find(uid)` the identity known, `put` one that has grown. `warnings`: a sentence for each workload that makes too many."""

    def __init__(self, find: Callable[[str], Identity | None], put: Callable[[Identity], None]) -> None:
        self._find, self._put = find, put
        self._waiting: dict[str, dict[int, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._many: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """Of workloads that made more than are listed."""
        return list(self._many.values())

    def add(self, owner: Identity, id_: int) -> None:
        """`owner` has a cgroup more. Costs the same however many come."""
        if id_ in owner.cgroups:
            return
        self._waiting.setdefault(owner.uid, {})[id_] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN, self._tell)

    @staticmethod
    def alive(owner: Identity, seen: Container[int], uid_of: dict[int, str]) -> tuple[int, ...]:
        """The cgroups of `owner` that are in `seen`; all when none is. The others are forgotten."""
        alive = tuple(id_ for id_ in owner.cgroups if id_ in seen)
        if not alive:
            return owner.cgroups
        for id_ in set(owner.cgroups) - set(alive):
            uid_of.pop(id_, None)
        return alive

    def gone(self, id_: int, owner: Identity | None, uid_of: dict[int, str]) -> None:
        """Cgroup `id_` is not there any more. One that no identity lists is forgotten here."""
        if owner is None or id_ not in owner.cgroups:
            uid = uid_of.pop(id_, "")
            self._waiting.get(uid, {}).pop(id_, None)

    def _tell(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for uid, fresh in waiting.items():
            known = self._find(uid)
            if known is None or known.ended:
                continue
            ids = tuple(dict.fromkeys((*known.cgroups, *fresh)))
            if len(ids) > MOST and uid not in self._many and len(self._many) < MOST:
                self._many[uid] = (
                    f"`{known.workload}` has made more than {MOST} cgroups below its own; further ones are recognised by their "
                    "paths alone"
                )
            if ids[:MOST] != known.cgroups:
                self._put(msgspec.structs.replace(known, cgroups=ids[:MOST]))
