# SPDX-License-Identifier: Apache-2.0
"""How far long work is, on stderr: on a terminal one line that is rewritten, elsewhere a line each few seconds; quick work says nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

_T = TypeVar("_T")

_FIRST: Final = 1.0
"""Seconds after which a terminal hears of it."""
_AGAIN: Final = 0.25
_LOGGED: Final = 5.0
"""Seconds between two lines where nobody can rewrite one."""


class ProgressLine:
    """`what` puts a count and the seconds since the start into words. Ask `tell` as often as you like, `clear` before other output."""

    def __init__(self, what: Callable[[int, float], str], name: str = "") -> None:
        self._what = what
        self._name = name
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._due = self._started + (_FIRST if self._terminal else _LOGGED)
        self._shown = False

    def of(self, found: Iterable[_T]) -> Iterator[_T]:
        """`found`, counted."""
        try:
            for number, one in enumerate(found, 1):
                if not number % 256:
                    self.tell(number)
                yield one
        finally:
            self.clear()

    def each(self, found: Iterable[_T]) -> Iterator[_T]:
        """`found`, of which each takes long."""
        try:
            for number, one in enumerate(found):
                self.tell(number)
                yield one
        finally:
            self.clear()

    def tell(self, number: int) -> None:
        """`number` is done; shown when it is time again."""
        now = time.monotonic()
        if now < self._due:
            return
        text = self._what(number, now - self._started)
        if self._terminal:
            self._shown, self._due = True, now + _AGAIN
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            self._due = now + _LOGGED
            print(f"{self._name}: {text}" if self._name else text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        if self._shown:
            self._shown = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
