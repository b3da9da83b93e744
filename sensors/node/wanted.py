# SPDX-License-Identifier: Apache-2.0
"""What the processor of this process said it needs of events: each by itself, only their number, not even their names.

Until it says something each event goes out as it came. Neighbours: `rings` (counts what may be counted), `pins` (writes the
rest into the kernel's maps), `hauberk.handing_over` (asks), kernel/programs/quiet.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sensors.node.pins import Pins

_COUNTABLE: Final = 1 << 15
"""Behaviours remembered that may be counted; then all are forgotten, and named again when they are judged anew."""


class Wanted:
    """`countable`: behaviours whose repeats are counted."""

    def __init__(self, pins: Pins) -> None:
        self.countable: set[int] = set()
        self._pins = pins
        self._quiet = False

    def call_for(self, idents: Iterable[int]) -> None:
        """Have the kernel call also a reader that dozes for events of these behaviours; each of them is sent."""
        idents = list(idents)
        self.countable.difference_update(idents)
        self._pins.call_for(idents)

    def count_only(self, idents: Iterable[int]) -> None:
        """Nobody needs events of these behaviours one by one: from now on repeats are counted."""
        if len(self.countable) >= _COUNTABLE:
            self.countable.clear()
        self.countable.update(idents)

    def count_none(self) -> None:
        """Send each event of every behaviour, by its name."""
        self.countable.clear()
        self.name_by_file()

    def name_by_directory(self, places: Iterable[tuple[int, str]]) -> None:
        """Nobody needs the names of what lies in these (cgroup id, directory with its trailing slash): a container that makes
        many has them told as the directory, with exact counts."""
        self._quiet = True
        self._pins.name_by_directory(places)

    def name_by_file(self) -> None:
        """Somebody may need them: from the return on every new name is told as ever."""
        if self._quiet:
            self._pins.name_by_file()
            # Strictly after: what could not be taken back is taken back the next time.
            self._quiet = False
