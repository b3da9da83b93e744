# SPDX-License-Identifier: Apache-2.0
"""Rows whose definitions are late: looked for elsewhere, kept back a moment, and given up with a count in the end.

Two races make a definition late: a CPU may use an id that another has not finished announcing, and a full definitions
ring makes the kernel announce at the next use. So such rows wait up to `patience`; after that they go out undefined, and
the kernel is told to announce those ids, and adopt those tasks, again. Only the rows concerned wait. Must never lose a row.
Neighbours: `rings` (calls it when something is missing, never otherwise), `recovery` (the other places).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from schemas.kernel import STRIDE, DefinitionKind
from sensors.node.definitions import Closure, Definitions
from sensors.node.frames import ID, PID, PPID, WORDS, columns
from sensors.node.pins import Pins
from sensors.node.recovery import AT_MOST, Elsewhere

PATIENCE: Final = 0.5
"""Seconds: far above the time that a hypervisor takes a processor away in the middle of a program."""
HURRY: Final = 0.05
"""The same while the ring fills, for what is parked holds the space of all that came after it."""
MOST_BYTES: Final = 1 << 20


class LateRows:
    """`rows`: what waits now. `hurry`: the ring fills. `learn()` drains the definitions ring."""

    def __init__(self, pins: Pins, definitions: Definitions, learn: Callable[[], None]) -> None:
        self.rows = b""
        self.patience = PATIENCE
        self.hurry = False
        self._since = 0.0
        self._pins = pins
        self._definitions = definitions
        self._elsewhere = Elsewhere(pins.processes, pins.key)
        self._learn = learn

    def take(self) -> bytes:
        """The rows that wait, to be tried again together with what came since."""
        rows, self.rows = self.rows, b""
        if not rows:
            self._since = 0.0
        return rows

    def sort_out(self, rows: bytes, closure: Closure) -> tuple[bytes, Closure]:
        """Rows that can go out now and their closure; the others are parked, or given up once they have waited enough."""
        closure = self.look(rows, closure, *columns(rows))
        if not closure.missing.total:
            self._since = 0.0
            return rows, closure
        now = time.monotonic()
        words = memoryview(rows).cast("Q")
        ids = words[ID::WORDS].tolist()
        late = set(closure.missing.behaviours) | self._affected(set(ids), closure)
        if late and self._since == 0.0:
            self._since = now
        waits = sum(ident in late for ident in ids) * STRIDE
        patience = min(self.patience, HURRY) if self.hurry else self.patience
        if not late or now - self._since >= patience or waits > MOST_BYTES:
            self._since = 0.0
            self.give_up(rows, closure, set(ids))
            return rows, closure
        split: tuple[list[bytes], list[bytes]] = ([], [])
        for at, ident in enumerate(ids):
            split[ident in late].append(rows[at * STRIDE : (at + 1) * STRIDE])
        self.rows += b"".join(split[1])
        rows = b"".join(split[0])
        return rows, self._definitions.closure(*columns(rows))

    def look(self, rows: bytes, closure: Closure, behaviours: set[int], processes: set[int]) -> Closure:
        """The closure after looking again: in the ring, in the kernel's process map, in /proc."""
        self._learn()
        missing = closure.missing
        found = self._elsewhere.processes(missing.processes) if missing.processes else []
        if missing.strings:
            found += self._elsewhere.strings(self._tasks(rows, closure), set(missing.strings))
        for kind, ident, body in found:
            self._definitions.define(kind, ident, body)
        return self._definitions.closure(behaviours, processes)

    def give_up(self, rows: bytes, closure: Closure, behaviours: set[int]) -> None:
        """Have the kernel say again what is missing. `behaviours`: those of the rows, and of what was folded."""
        missing = closure.missing
        # Strings first, and with them the behaviours that use them: their marks stand for the strings too.
        self._pins.forget(DefinitionKind.STRING, list(missing.strings))
        using = self._affected(behaviours, closure)
        self._pins.forget(DefinitionKind.BEHAVIOUR, [*missing.behaviours, *using])
        # The kernel keeps the path's id in its process map and would not say the path again by itself.
        self._elsewhere.adopt_again(self._tasks(rows, closure))

    def _affected(self, behaviours: set[int], closure: Closure) -> set[int]:
        strings = set(closure.missing.strings)
        if not strings:
            return set()
        return {ident for ident in behaviours if strings.intersection(self._definitions.references(ident))}

    def _tasks(self, rows: bytes, closure: Closure) -> set[int]:
        # Host tgids of the tasks, and their parents, whose rows use a string that is missing.
        words, halves = memoryview(rows).cast("Q"), memoryview(rows).cast("I")
        ids = words[ID::WORDS].tolist()
        tasks: set[int] = set()
        for ident in self._affected(set(ids), closure):
            at = ids.index(ident) * WORDS * 2
            tasks |= {halves[at + PID], halves[at + PPID]}
            if len(tasks) >= AT_MOST:
                break
        return tasks - {0}
