# SPDX-License-Identifier: Apache-2.0
"""One process per node name: the younger of two is told, an older one that is gone holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from bus.memory import MemoryBus
from schemas.claim import NodeClaim, decode
from schemas.errors import DecodeError, Unavailable
from schemas.topics import NODES
from sensors.node.claim import NameClaim


@pytest.fixture
async def claims() -> AsyncIterator[Callable[..., NameClaim]]:
    tasks = []

    def make(bus: MemoryBus, node: str = "n1") -> NameClaim:
        claim = NameClaim(bus, node)
        tasks.append((claim, asyncio.create_task(claim.run())))
        return claim

    yield make
    for claim, task in tasks:
        claim.stop()
        await task


async def test_the_younger_of_two_is_told_who_has_the_name(claims: Any) -> None:
    bus = MemoryBus()
    old = claims(bus)
    assert await old.free()
    young = claims(bus)
    assert not await young.free()
    assert not old.taken.is_set()
    assert young.other == old.mine
    assert f"got `n1`, which a process on host `{old.mine.host}`" in young.problem
    assert decode(bus.records(NODES)[-1].value or b"") == old.mine, "who looks finds the one that runs"
    other = claims(bus, "n2")
    assert await other.free()


async def test_one_that_was_killed_holds_nobody_up(claims: Any) -> None:
    bus = MemoryBus()
    dead = NameClaim(bus, "n1")
    task = asyncio.create_task(dead.run())
    await dead.free()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await claims(bus).free()


async def test_two_that_began_without_a_bus_agree_once_it_is_back(claims: Any, until: Any) -> None:
    bus = MemoryBus()
    bus.fail(Unavailable("no broker", 0.01), call="subscribe", times=2)
    old, young = claims(bus), claims(bus)
    assert old.mine.order < young.mine.order
    await until(young.taken.is_set)
    assert not old.taken.is_set()


def test_a_claim_that_is_none_is_refused() -> None:
    good = NodeClaim(node="n", run="r", host="h", boot="b", started_ns=1)
    assert decode(msgspec.msgpack.encode(good)) == good
    for bad in (b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode(["a/b", "r", "h", "b", 1])):
        with pytest.raises(DecodeError):
            decode(bad)
