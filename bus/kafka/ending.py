# SPDX-License-Identifier: Apache-2.0
"""The end of a consumer of aiokafka, within a time. Neighbours: `reader` (who ends)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from aiokafka.errors import KafkaError

from bus.kafka.connection import BrokerLink

_STOP_SECONDS: Final = 3.0
_GIVEN_UP_SECONDS: Final = 0.03


async def stopped(consumer: Any, fetch: asyncio.Task[Any] | None, link: BrokerLink) -> None:
    """The library's `stop`, for seconds at each of its steps: it may hang while brokers are away, and may raise CancelledError to who
    was not cancelled. Once brokers are given up a step has 30 ms, the one under way too."""
    stop = asyncio.get_running_loop().create_task(consumer.stop())
    await _ended(link, [stop])
    coordinator, fetcher, client = consumer._coordinator, consumer._fetcher, consumer._client
    if not stop.done():
        for task in _tasks(coordinator, "_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
            task.cancel()
        stop.cancel()
        await _ended(link, [stop])
        if not link.given_up and hasattr(coordinator, "_maybe_leave_group"):
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with link.limited(1.0, least=_GIVEN_UP_SECONDS):
                    await coordinator._maybe_leave_group()
        if fetcher is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
                async with link.limited(1.0, least=_GIVEN_UP_SECONDS):
                    await fetcher.close()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        stop.result()
    with contextlib.suppress(TimeoutError):
        async with link.limited(2.0, least=_GIVEN_UP_SECONDS):
            await client.end()
    left = _tasks(coordinator, "_coordination_task", "_heartbeat_task", "_commit_refresh_task")
    if fetch is not None:
        left.append(fetch)
    for task in left:
        task.cancel()
    if left:
        await _ended(link, left)
        for task in left:
            if task.done() and not task.cancelled():
                task.exception()


async def _ended(link: BrokerLink, tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until they are, `_STOP_SECONDS` at most; they are not cancelled."""
    with contextlib.suppress(TimeoutError):
        async with link.limited(_STOP_SECONDS, least=_GIVEN_UP_SECONDS):
            await asyncio.wait(tasks)


def _tasks(owner: Any, *names: str) -> list[asyncio.Task[Any]]:
    found = [getattr(owner, name, None) for name in names]
    return [task for task in found if isinstance(task, asyncio.Task) and not task.done()]
