# SPDX-License-Identifier: Apache-2.0
"""Which processes read a topic right now: a locked file for each, so that what nobody reads need not be written.

The lock ends with its process, however it ends; a file without one is nobody's and is removed by whoever meets it. Neighbours:
`bus` (each subscription stands here), `bus.handover` (who asks).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bus.permissions import private_directory

_TRIES: Final = 20
"""A file is unprotected for microseconds; who looks in them takes it away once."""


class TopicReaders:
    """The files in `directory`/readers. `mine`: name of this bus among those that have the directory open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "readers"
        private_directory(self._directory)
        self._mine = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._number = 0

    @contextmanager
    def reading(self, topic: str) -> Iterator[None]:
        """Somebody in this process reads `topic`. A directory that cannot be written lets nobody stand here."""
        self._number += 1
        path = self._directory / f"{topic}@{self._mine}-{self._number}"
        descriptor = _locked(path)
        try:
            yield
        finally:
            if descriptor >= 0:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def elsewhere(self, topic: str) -> bool:
        """Whether another process reads `topic`. Some 20 us."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return True
        mine = f"{topic}@{self._mine}-"
        others = [name for name in names if name.startswith(f"{topic}@") and not name.startswith(mine)]
        return any(_held(self._directory / name) for name in others)


def _locked(path: Path) -> int:
    """A descriptor of `path`, made and locked; -1 where that cannot be. Whoever looked between the two took it for nobody's."""
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return -1
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
    return -1


def _held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
