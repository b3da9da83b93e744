# SPDX-License-Identifier: Apache-2.0
"""File descriptors: as many as the machine allows, and some kept aside for those who enforce.

What uses descriptors by somebody else's will (connections, roots of containers) is capped where it is opened; this is for what
was overlooked. Neighbours: `enforcers.agent` (for whom they are kept), `hauberk` (raises the limit first of all).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

KEPT: Final = 32
"""Ten would do: a plan opens a program, a directory and a link at a time; a saved plan one file."""


def raise_limit() -> int:
    """RLIMIT_NOFILE of this process up to what it may be; what it is now. Children that exec inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # An unlimited hard limit above fs.nr_open: as far as the kernel goes.
            return soft
    return hard


class DescriptorReserve:
    """Descriptors that are taken and not used, until `lent` gives them to the kernel for as long as it lasts."""

    def __init__(self, count: int = KEPT) -> None:
        self._count = count
        self._held: list[int] = []
        self._fill()

    @property
    def held(self) -> int:
        """How many are kept now; fewer than asked for when the process had none left."""
        return len(self._held)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For the work within, the kept descriptors are free; taken back afterwards, as far as they are to be had."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Give them all back."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        try:
            while len(self._held) < self._count:
                self._held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return
