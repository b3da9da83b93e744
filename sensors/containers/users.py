# SPDX-License-Identifier: Apache-2.0
"""User names of the node, from its `/etc/passwd`: what a uid of a host process is called.

Only the file is read: a directory service may be away, slow, or ask for a password, and the sensor must do without. Never
used for containers, whose uids are names of their own. Neighbour: `sensors.containers.inventory`.
"""

from __future__ import annotations

import os
from typing import Final

MOST: Final = 4096
"""Names kept; a file with more is of a machine whose users are not told apart by it."""


class Users:
    """`names` by uid as text, read again when the file has changed."""

    def __init__(self, path: str = "/etc/passwd") -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.names: dict[str, str] = {}
        self.changed()

    def changed(self) -> bool:
        """Whether the file had changed, and was read."""
        try:
            with open(self._path, encoding="utf-8", errors="backslashreplace") as file:
                of = os.fstat(file.fileno())
                seen = (of.st_ino, of.st_mtime_ns, of.st_size)
                if seen == self._seen:
                    return False
                lines = file.readlines()
        except OSError:
            return False
        self._seen = seen
        names: dict[str, str] = {}
        for line in lines:
            parts = line.split(":")
            if len(parts) >= 3 and parts[2].isdigit() and len(names) < MOST:
                names.setdefault(parts[2], parts[0])  # as getpwuid(3): the first line of a uid counts
        self.names = names
        return True
