# SPDX-License-Identifier: Apache-2.0
"""How large rings and maps are on a machine when nobody said it: a share of its memory, and rings by its processors.

All of it is allocated when the programs are loaded, whatever happens then. Neighbours: `loading` (the settings), `machine`.
"""

from __future__ import annotations

from typing import Final

from kernel.machine import Machine

_SHARE: Final = 64
"""Part of the memory that rings and maps may take."""
_RINGS, _TABLES = 21 << 20, 27 << 20
"""Bytes of both rings, and of what is sized here of the rest, before it is doubled or halved: 48.4 MB measured as memory of all
maps, of which processes take 10.5, behaviours and strings 5.2 each, the buckets of rules 4.2."""
_MOST: Final = 8
_FULL: Final = {
    "occurrence_pages": 4096, "definition_pages": 1024, "behaviours": 65536, "strings": 65536, "processes": 65536,
    "rules": 262144,
}  # fmt: skip
"""Names of `loading.LoadSettings`. The rings held a flood of two processors without loss (docs/performance.md)."""
_OF_RINGS: Final = frozenset({"occurrence_pages", "definition_pages"})


def map_sizes(here: Machine) -> dict[str, int]:
    """Settings of `loading.LoadSettings` and their values. The rings double with each doubling of processors beyond two, up to 8
    times; all is halved, down to an eighth, until it is no more than a 64th of the memory."""
    room = here.memory // _SHARE
    up = down = 1
    while up < _MOST and 4 * up <= here.processors and 2 * up * _RINGS + _TABLES <= room:
        up *= 2
    while down < _MOST and (_RINGS + _TABLES) // down > room:
        down *= 2
    return {name: size * (up if name in _OF_RINGS else 1) // down for name, size in _FULL.items()}
