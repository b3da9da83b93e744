# SPDX-License-Identifier: Apache-2.0
"""Where the machines of tables lie in the kernel's `patterns` map: placed first, named by the table's header, freed with the table.

The map is one array of cells for all tables of the node. What is where is read from the headers at start, so that a restarted agent
overwrites nothing that is walked. Neighbours: `tables` (who asks), `machines` (what the cells are).
"""

from __future__ import annotations

import os
from typing import Self

from kernel.maps import Map
from schemas.errors import KernelError
from schemas.kernel import RULE, RULE_KEY, RuleKind
from schemas.lsm import TableFlag


class Machines:
    """Regions of the map by table. Cell 0 is nobody's: a base of 0 is none."""

    def __init__(self, cells: Map | None) -> None:
        self._cells = cells
        self._placed: dict[int, tuple[int, int]] = {}

    @classmethod
    def open(cls, pin_dir: str) -> Self:
        """The map pinned below `pin_dir`; without hooks there is none."""
        path = f"{pin_dir}/maps/patterns"
        return cls(Map.open(path) if os.path.exists(path) else None)

    def close(self) -> None:
        """Give the map back."""
        if self._cells is not None:
            self._cells.close()

    def adopt(self, table: int, header: bytes | None) -> None:
        """Take the region that a table's header names for taken."""
        if header is None or self._cells is None:
            return
        _, flags, base, behind = RULE.struct.unpack(header)
        if not base or not flags & (TableFlag.PATTERNS | TableFlag.ACTORS):
            return
        last = (
            behind if flags & TableFlag.ACTORS else 0
        )  # of two machines in one piece the second is that of the sources
        length = self._cells.get((base + last).to_bytes(4, "little"))
        self._placed[table] = (base, last + int.from_bytes(length or b"", "little"))

    def place(self, table: int, cells: bytes) -> int:
        """Write the machine of `table`; its first cell. KernelError when nothing that large is free."""
        count = len(cells) // 4
        most = self._cells.info.max_entries if self._cells is not None else 0
        base = 1
        for start, length in sorted(self._placed.values()):
            if start - base >= count:
                break
            base = start + length
        if self._cells is None or base + count > most:
            used = sum(length for _, length in self._placed.values())
            raise KernelError(
                f"expected room for {count} cells of patterns, got {most - used} of {most} free, not all in one piece; raise "
                "`sensor.load.pattern_cells` or write fewer patterns",
                operation="fill",
                target="patterns",
            )
        self._placed[table] = (base, count)
        self._cells.put_array(base, cells)
        return base

    def free(self, table: int) -> None:
        """Nobody walks the machine of `table` any more."""
        self._placed.pop(table, None)


def with_base(key: bytes, value: bytes, base: int) -> bytes:
    """`value`, with where the machine begins if `key` is a header's."""
    if RULE_KEY.struct.unpack(key)[4] != RuleKind.HEADER:
        return value
    action, flags, _, rank = RULE.struct.unpack(value)
    return RULE.struct.pack(action, flags, base, rank)
