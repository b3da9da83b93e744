# SPDX-License-Identifier: Apache-2.0
"""Parts of one stage that run side by side: the first that ends, as a rule by an error, ends all, and its error is the stage's.

Neighbours: `processors.engine`, `sensors.kubernetes.watch`, `sinks.kubernetes.teller`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class SideBySide:
    """`async with SideBySide() as parts`: `start` each; whatever still runs at the end of the block is cancelled and waited for."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> SideBySide:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, *parts: Coroutine[Any, Any, object]) -> None:
        """Run them until they end or the block does."""
        self._tasks += [asyncio.create_task(part) for part in parts]

    async def until(self, wanted: Coroutine[Any, Any, object]) -> None:
        """Wait for `wanted`, or for the first part that ends. Raises what ended it."""
        waiting = asyncio.create_task(wanted)
        try:
            await asyncio.wait((waiting, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            self._raise()
            if waiting.done():
                waiting.result()
        finally:
            waiting.cancel()

    async def first(self) -> None:
        """Wait for the first part that ends. Raises what ended it."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._raise()

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
