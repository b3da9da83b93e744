# SPDX-License-Identifier: Apache-2.0
"""A log line that somebody outside can cause as often as they like: one at once, then one each interval with a count of the others.

What is counted in metrics stays exact. Without a running event loop each line is said. Neighbours: `dead_letters`, `sinks.delivery.consumer`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

SECONDS: Final = 30.0
"""Between two lines."""


class PacedLog:
    """`say` a line; what comes within `seconds` of one waits, and the newest of it is said with how many there were."""

    def __init__(self, log: logging.Logger, seconds: float = SECONDS) -> None:
        self._log = log
        self._seconds = seconds
        self._silent = False
        self._held = 0
        self._newest: tuple[int, str] = (logging.NOTSET, "")

    def say(self, level: int, text: str, *, exc_info: bool = False) -> None:
        """Log `text` now, or count it. `exc_info`: with the traceback, of one that is said at once."""
        if self._silent:
            self._held += 1
            self._newest = (level, text)
            return
        self._log.log(level, "%s", text, exc_info=exc_info)
        self._wait()

    def _wait(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Nobody could say later what was held back.
            return
        self._silent = True
        loop.call_later(self._seconds, self._over)

    def _over(self) -> None:
        self._silent = False
        held, self._held = self._held, 0
        if held:
            level, text = self._newest
            self._log.log(level, "%s (the newest of %d such lines in %g s)", text, held, self._seconds)
            self._wait()
