# SPDX-License-Identifier: Apache-2.0
"""Of several replicas one works; when it ends, or falls silent, another does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from cluster.lease import LeaderLease
from cluster.server import connected
from cluster.settings import ServerSettings
from schemas.errors import Unavailable

pytestmark = pytest.mark.kubernetes


class Replica:
    """`working`: whether its work runs now."""

    def __init__(self, server: Any, lease: str, name: str, seconds: float) -> None:
        self.lease = LeaderLease(server, "default", lease, name, seconds)
        self.working = False
        self.task = asyncio.create_task(self.lease.run(self._work))

    async def _work(self) -> None:
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def test_one_works_and_the_other_takes_over_at_once_when_it_ends(
    api_server: Any, until: Callable[..., Any]
) -> None:
    async with connected(ServerSettings(kubeconfig=str(api_server.kubeconfig()))) as server:
        first = Replica(server, "ends", "first", 30.0)
        await until(lambda: first.working)
        second = Replica(server, "ends", "second", 30.0)
        await until(lambda: second.lease.holder == "first")
        assert not second.working
        await first.end()
        assert not first.working
        await until(lambda: second.working, 20.0)  # long before 30 s of silence
        await second.end()


async def test_a_silent_holder_is_replaced_and_stops_by_itself(api_server: Any, until: Callable[..., Any]) -> None:
    """The first one's server is another one, which does not answer: as if its network was cut."""
    settings = ServerSettings(kubeconfig=str(api_server.kubeconfig()), timeout_seconds=1.0)
    async with connected(settings) as mine, connected(settings) as server:
        first = Replica(mine, "silent", "first", 4.0)
        await until(lambda: first.working)
        second = Replica(server, "silent", "second", 4.0)
        await until(lambda: second.lease.holder == "first")

        async def cut(*_: Any, **__: Any) -> bytes:
            await asyncio.sleep(3600)
            raise AssertionError

        mine.get = cut  # type: ignore[method-assign]
        overlapped = False

        def replaced() -> bool:
            nonlocal overlapped
            overlapped |= first.working and second.working
            return second.working

        await until(replaced)
        assert not overlapped
        assert not first.working
        await first.end()
        await second.end()


async def test_a_holder_that_ends_while_renewals_fail_gives_it_back(api_server: Any, until: Callable[..., Any]) -> None:
    """Who stops in a bad moment must not make the next one wait for its silence."""
    async with connected(ServerSettings(kubeconfig=str(api_server.kubeconfig()))) as server:
        first = Replica(server, "fails", "first", 30.0)
        await until(lambda: first.working)
        get = server.get
        failed = asyncio.Event()

        async def fail(*_: Any, **__: Any) -> bytes:
            failed.set()
            raise Unavailable("away for a moment")

        server.get = fail  # type: ignore[method-assign]
        await asyncio.wait_for(failed.wait(), 30)
        server.get = get  # type: ignore[method-assign]
        await first.end()
        second = Replica(server, "fails", "second", 30.0)
        await until(lambda: second.working, 10.0)
        await second.end()
