# SPDX-License-Identifier: Apache-2.0
"""Files that a person names: read whole, up to a size and within a time, whatever lies at the path.

A device without end, a FIFO that nobody writes, a file that grows: one sentence, exit 2, no hang. A pipe with a writer
(`-f <(kustomize build)`) is read to its end.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Iterable
from typing import Final

from schemas.errors import SettingsError

PATIENCE: Final = 30.0
"""Seconds that the writer of a pipe may say nothing."""
FIRST: Final = 2.0
"""Seconds to wait for somebody to open the other end of a FIFO."""
EVENTS: Final = 1 << 30
"""Bytes of a file of events: some two million lines."""
POLICIES: Final = 64 << 20
"""Bytes of a policy file, at which reading stops; what is over 4 MiB is then refused with its name and line."""


def read(path: str, what: str, most: int, hint: str = "") -> bytes:
    """The bytes at `path`, `-` for standard input. SettingsError, which names `what`, when it is no file, takes more than
    `most` bytes or does not end."""
    if path == "-":
        if sys.stdin is None:
            raise SettingsError(f"expected {what} on standard input, it is closed; give it with `< FILE`")
        return _piped(sys.stdin.fileno(), "standard input", what, most, forever=True)
    try:
        # Without waiting for a writer; regular files do not care.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"expected {what} at `{path}`, got {said}{hint}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            return _piped(descriptor, f"`{path}`", what, most)
        if not stat.S_ISREG(mode):
            raise SettingsError(f"expected {what} at `{path}`, got {kind(mode)}{hint}")
        return _whole(descriptor, path, what, most, hint)
    finally:
        os.close(descriptor)


def once(names: Iterable[str]) -> None:
    """SettingsError when standard input is to be read for more than one of `names`: the second would find nothing, and say nothing."""
    if (many := sum(name == "-" for name in names)) > 1:
        raise SettingsError(
            f"expected `-` once, for what is on standard input, got it {many} times; name a file for the others"
        )


def kind(mode: int) -> str:
    """What a path that is no regular file is."""
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a socket"


def _whole(descriptor: int, path: str, what: str, most: int, hint: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = os.read(descriptor, min(1 << 20, most + 1 - size))
        except OSError as error:
            raise SettingsError(f"expected {what} at `{path}`, got {error.strerror}{hint}") from error
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(f"`{path}`", what, most)


def _piped(descriptor: int, name: str, what: str, most: int, *, forever: bool = False) -> bytes:
    parts: list[bytes] = []
    size = 0
    deadline = time.monotonic() + FIRST
    while True:
        ready, _, _ = select.select([descriptor], [], [], None if forever else max(0.0, deadline - time.monotonic()))
        if not ready and time.monotonic() >= deadline:
            raise SettingsError(f"expected {what} in {name}, got a pipe with no data from its writer; give it a file")
        try:
            part = os.read(descriptor, min(1 << 20, most + 1 - size))
        except BlockingIOError:
            continue
        except OSError as error:
            raise SettingsError(f"expected {what} in {name}, got {error.strerror}") from error
        if not part:
            if parts or forever:
                return b"".join(parts)
            if time.monotonic() >= deadline:
                raise SettingsError(f"expected {what} in {name}, got a pipe without a writer; give it a file")
            # Nobody writes yet.
            time.sleep(0.01)
            continue
        parts.append(part)
        size += len(part)
        deadline = time.monotonic() + PATIENCE
        if size > most:
            raise _too_large(name, what, most)


def _too_large(name: str, what: str, most: int) -> SettingsError:
    shown = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
    return SettingsError(f"expected {what} of at most {shown} in {name}, got more; split it")
