# SPDX-License-Identifier: Apache-2.0
"""How long a holder may believe that a lease is its own; the clock is the test's, so no API server is asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from cluster import lease
from cluster.lease import LeaderLease
from schemas.errors import Incompatible


class SlowServer:
    """Writes the lease at once and answers eleven seconds later; after that it says nothing any more."""

    def __init__(self) -> None:
        self.now = 100.0
        self.writes = 0

    async def get(self, path):
        if self.writes:
            await asyncio.Event().wait()
        raise Incompatible("there is none")

    async def send(self, method, path, body):
        self.writes += 1
        self.now += 11.0


async def test_a_lease_counts_from_when_it_was_asked_for(monkeypatch):
    """Another replica takes it fifteen seconds after it was written: two thirds of that have passed when the answer is here."""
    server = SlowServer()
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: server.now))
    leader = LeaderLease(server, "default", "one", "me", seconds=15.0)
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(leader.run(work))
    try:
        await asyncio.wait_for(ended.wait(), 5)
        assert not leader.held
    finally:
        running.cancel()
        await asyncio.wait((running,))
