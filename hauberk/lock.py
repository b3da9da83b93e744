# SPDX-License-Identifier: Apache-2.0
"""One `hauberk up` per state directory: a second would stand by on the bus and write beside the first everywhere else.

A flock(2), so that it ends with the process however that ends. The parts (`node`, `processor`, ...) share a state directory
and do not take it; the pins have a lock of their own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.errors import Unavailable


@contextmanager
def sole(state: Path) -> Iterator[None]:
    """Hold `state`/up.lock. Unavailable with the other's pid when it is held, OSError when it cannot be made."""
    fd = os.open(state / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise Unavailable(
                f"expected to be the only `hauberk up` on `{state}`, got another (pid {pid}); stop it or choose another with --state"
            ) from error
        # On a full disk the lock holds without the number.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
