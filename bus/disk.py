# SPDX-License-Identifier: Apache-2.0
"""What the disk has, and what of it may be taken: caps of the settings never exceed their share of it.

::

    half of the disk   the embedded bus: `total_bytes`, and segments small enough that old ones can go
    a quarter          a summary store (`max_bytes`), a file of alerts with its old ones (`rotate_bytes`)
    an eighth          stays free, 512 MiB at most: below it the bus sheds, raw events first

A file `reserve` in the bus's directory holds room for offsets and alerts: it is given up when a write of theirs meets a full
disk, and taken again when there is room. Neighbours: `bus.embedded.disk_cap` (sheds), `bus.embedded.writer` (asks), sinks that keep files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

_MIB: Final = 1 << 20
LEAST_SEGMENT: Final = 65536


class Disk(msgspec.Struct, frozen=True):
    """Bytes of the file system: `total`, and `free` to this user."""

    total: int
    free: int

    @property
    def spare(self) -> int:
        """Bytes that should stay free."""
        return min(self.total // 8, 512 * _MIB)

    @property
    def short(self) -> int:
        """Bytes that are missing of them."""
        return max(0, self.spare - self.free)

    @property
    def reserve(self) -> int:
        """Bytes kept for offsets and alerts."""
        return max(256 << 10, min(self.total // 50, 16 * _MIB))


def look(path: str | Path) -> Disk:
    """The file system at `path`, or at what is above it. OSError passes through."""
    at = Path(path)
    while not at.exists() and at != at.parent:
        at = at.parent
    found = os.statvfs(at)
    return Disk(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def capped(most: int, path: str | Path, share: int) -> int:
    """`most` bytes (0: no cap), but no more than one `share`th of the disk at `path`."""
    try:
        there = look(path).total // share
    except OSError:
        return most
    return min(most, there) if most else there


def segment(wanted: int, cap: int) -> int:
    """Bytes of a segment: a 32nd of the cap at most, for the newest of each topic never goes."""
    return max(LEAST_SEGMENT, min(wanted, cap // 32)) if cap else wanted


class DiskReserve:
    """The file that holds room. For one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "reserve"

    @property
    def held(self) -> bool:
        return self._path.exists()

    def take(self, disk: Disk) -> None:
        """Hold the room where there is enough beside it. A file system that cannot promise room holds none."""
        if self.held or disk.free < disk.spare + disk.reserve:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, disk.reserve)
        except OSError:
            self.give_up()
        finally:
            os.close(descriptor)

    def give_up(self) -> bool:
        """Whether there was room to give."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False
