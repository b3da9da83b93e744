# SPDX-License-Identifier: Apache-2.0
"""How many records a process has handed over in memory and how many of them its group has committed, for other processes to see.

One small file, mapped: two numbers and the group's name, locked by the process that hands over. Without it `end`, `lag` and `groups` of
another process would say that everything is read while the newest is not. Neighbours: `bus.handover` (writes), `bus` (reads).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = "handed-over"
_FORM: Final = struct.Struct("=QQ255p")
PARTITION: Final = 1
"""Number under which what was handed over counts, beside 0, the log's."""
_TRIES: Final = 100
_TRY_AGAIN: Final = 0.01
"""Seconds."""


class HandedOver(NamedTuple):
    """`end`: records handed over since the process began; `committed` of them by `group`."""

    end: int
    committed: int
    group: str


class HandedOverFile:
    """The writer's side. `say` costs a store into a mapped page."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Who else hands over on this directory writes his numbers over these: `up` holds a lock on its state for that.
        _lock(self._descriptor)
        os.ftruncate(self._descriptor, _FORM.size)
        self._memory = mmap.mmap(self._descriptor, _FORM.size)

    def say(self, end: int, committed: int, group: str) -> None:
        """These are the numbers now."""
        _FORM.pack_into(self._memory, 0, end, committed, group.encode()[:254])

    def close(self) -> None:
        """Nothing is handed over any more. Twice is once."""
        if self._memory.closed:
            return
        self._path.unlink(missing_ok=True)
        self._memory.close()
        os.close(self._descriptor)


def _lock(descriptor: int) -> None:
    # Who only looks whether a killed process left the file holds it for some microseconds.
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_AGAIN)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def handed_over(directory: Path) -> HandedOver | None:
    """What a running process says; None when none hands over."""
    try:
        with open(directory / NAME, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                data = file.read(_FORM.size)
            else:
                # Its process is gone, and with it what it had in hand.
                return None
    except OSError:
        return None
    if len(data) < _FORM.size:
        return None
    end, committed, group = _FORM.unpack(data)
    return HandedOver(end, committed, group.decode("utf-8", "replace"))
