# SPDX-License-Identifier: Apache-2.0
"""Cgroups below a workload's own are told together, so many and no more, at a cost that does not grow as their square."""

from __future__ import annotations

import asyncio

import pytest

from schemas.identity import Identity, Kind, encode
from sensors.containers import inner
from sensors.containers.inner import MOST, Inner


class Told:
    def __init__(self) -> None:
        self.known = Identity(kind=Kind.CONTAINER, node="n", uid="c", cgroups=(1,), container_name="c", namespace="d")
        self.puts: list[Identity] = []
        self.inner = Inner(lambda uid: self.known if uid == "c" else None, self.put)

    def put(self, identity: Identity) -> None:
        self.known = identity
        self.puts.append(identity)


async def wait(told: Told, count: int) -> None:
    async with asyncio.timeout(60):
        while len(told.puts) < count:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)


async def test_what_comes_together_is_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner, "WITHIN", 0.05)
    told = Told()
    for ident in range(2, 102):
        told.inner.add(told.known, ident)
    await wait(told, 1)
    assert [one.cgroups for one in told.puts] == [tuple(range(1, 102))]
    told.inner.add(told.known, 5)
    told.inner.add(told.known, 102)
    await wait(told, 2)
    assert told.puts[1].cgroups == tuple(range(1, 103))


async def test_thousands_cost_a_bounded_number_of_bytes_and_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner, "WITHIN", 0.001)
    told = Told()
    for ident in range(2, 5002):
        told.inner.add(told.known, ident)
        if ident % 100 == 0:
            await asyncio.sleep(0.005)
    await wait(told, 1)
    async with asyncio.timeout(60):
        while len(told.known.cgroups) < MOST:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    assert told.known.cgroups == tuple(range(1, MOST + 1))
    assert max(len(encode(one)) for one in told.puts) < 10 * MOST
    assert len(told.puts) <= MOST // 99 + 1, "nothing is told once the list is full"
    assert told.inner.warnings == [
        f"`d/c` has made more than {MOST} cgroups below its own; further ones are recognised by their paths alone"
    ]


async def test_the_dead_are_forgotten_listed_or_not() -> None:
    told = Told()
    told.known = Identity(kind=Kind.CONTAINER, node="n", uid="c", cgroups=(1, 2, 3))
    uid_of = {1: "c", 2: "c", 3: "c", 9: "c"}
    assert told.inner.alive(told.known, {1, 3}, uid_of) == (1, 3)
    assert uid_of == {1: "c", 3: "c", 9: "c"}
    told.inner.gone(9, told.known, uid_of)
    told.inner.gone(1, told.known, uid_of)
    assert uid_of == {1: "c", 3: "c"}
    assert told.inner.alive(told.known, set(), uid_of) == (1, 2, 3)
