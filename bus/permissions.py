# SPDX-License-Identifier: Apache-2.0
"""Who may read and write what the bus keeps: its owner alone, whatever the umask of the process.

A directory that others may write is refused: they could put another log in its place, policies included. One that others
may only read is closed. Neighbours: `bus.embedded.bus`, `spool`, `bus.embedded.layout` and `bus.embedded.notify` make their directories here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from schemas.errors import Refused

_WRITE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def private_directory(path: Path) -> None:
    """Make `path` with mode 0700, parents included, or close one that is there. `Refused` when others may write it."""
    # Not `parents=True`: it makes them as the umask says.
    for each in (*reversed(path.parents), path):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
    refuse_loose(path)
    found = path.stat()
    if stat.S_IMODE(found.st_mode) != 0o700 and found.st_uid == os.geteuid():
        path.chmod(0o700)


def refuse_loose(path: Path) -> None:
    """`Refused` when others than its owner may write the directory."""
    mode = path.stat().st_mode
    if mode & _WRITE_BY_OTHERS:
        raise Refused(
            f"expected a directory that only its owner may write at `{path}`, got mode {stat.S_IMODE(mode):o}: others "
            f"could replace policies and records there; `chmod 700 {path}`"
        )


def private_file(path: Path) -> None:
    """Make an empty file of mode 0600 for SQLite to fill, which would use 0644. What prevents it prevents SQLite too, and that
    says why. Without a descriptor: closing one would drop SQLite's POSIX locks."""
    with contextlib.suppress(OSError):
        os.mknod(path, stat.S_IFREG | 0o600)
