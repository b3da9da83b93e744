# SPDX-License-Identifier: Apache-2.0
"""The planner on a bus: plans on change and only then, generations that only grow, bad records left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import until

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.planner import PlannerEngine, PlannerSettings
from policy.documents import key, to_json
from schemas.enforcement import Plan, decode_plan
from schemas.errors import Unavailable
from schemas.identity import encode
from schemas.topics import ENFORCEMENT_DESIRED, INVENTORY, POLICIES

TCP = "network: {matchProtocols: [{protocol: tcp}]}, action: Block"
BOX = SimpleNamespace(id=100, path="/docker/x")


class Desk:
    def __init__(self, bus: MemoryBus, engine: PlannerEngine) -> None:
        self.bus, self.engine = bus, engine

    def plans(self) -> list[Plan]:
        return [decode_plan(one.value or b"") for one in self.bus.records(ENFORCEMENT_DESIRED)]

    async def policy(self, documents: Any) -> None:
        await self.bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in documents])

    async def know(self, *identities: Any) -> None:
        await self.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in identities])

    async def until(self, ask: Any) -> Any:
        return await until(ask)


async def start(bus: MemoryBus, settings: PlannerSettings | None = None) -> tuple[Desk, asyncio.Task[None]]:
    engine = PlannerEngine(bus, settings)
    task = asyncio.create_task(engine.run())
    await asyncio.wait_for(engine.ready.wait(), 60)
    return Desk(bus, engine), task


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    one, task = await start(MemoryBus())
    yield one
    one.engine.stop()
    await asyncio.wait_for(task, 60)


async def test_a_plan_for_each_change_and_none_without(desk: Desk, identity: Any, policies: Any, ksp: Any) -> None:
    await desk.know(identity(BOX))
    await desk.policy(policies(ksp("a", TCP)))
    plan = await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes and desk.plans()[-1])
    assert plan.scopes[0].cgroups == (100,)
    assert plan.created_ns > 0
    count = len(desk.plans())
    compiled = desk.engine.stats.compiled
    await desk.policy(policies(ksp("a", TCP)))
    await desk.know(identity(BOX))
    await desk.policy(policies(ksp("b", TCP.replace("tcp", "udp"))))
    await desk.until(lambda: len(desk.plans()) == count + 1)
    assert desk.engine.stats.compiled == compiled + 1
    generations = [plan.generation for plan in desk.plans()]
    assert generations == sorted(set(generations))


async def test_a_policy_that_changes_no_plan_is_answered_all_the_same(
    desk: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await desk.know(identity(BOX))
    await desk.policy(policies(ksp("a", TCP)))
    old = await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes and desk.plans()[-1])
    await desk.policy(policies(ksp("nobody", TCP).replace("app: web", "app: other")))
    new = await desk.until(lambda: desk.plans()[-1].generation > old.generation and desk.plans()[-1])
    assert new.digest == old.digest
    assert new.created_ns >= (await desk.bus.latest(POLICIES))[b"KubeArmorPolicy/shop/nobody"].timestamp_ms * 1_000_000
    # Identities alone ask for no answer.
    count, unchanged = len(desk.plans()), desk.engine.stats.unchanged
    await desk.know(identity(BOX, image="other"))
    await desk.until(lambda: desk.engine.stats.unchanged > unchanged)
    assert len(desk.plans()) == count


async def test_what_comes_together_is_one_plan(identity: Any, policies: Any, ksp: Any) -> None:
    # "Together" as a machine sees it that may leave this process waiting for a while.
    desk, task = await start(MemoryBus(), PlannerSettings(debounce_seconds=1.0, longest_wait_seconds=60.0))
    before = len(desk.plans())
    for number in range(20):
        await desk.know(identity(SimpleNamespace(id=200 + number, path=f"/docker/{number}")))
    await desk.policy(policies("".join(ksp(f"p{n}", TCP) for n in range(20))))
    await desk.until(lambda: desk.plans() and len(desk.plans()[-1].scopes) == 20)
    assert len(desk.plans()) - before <= 3
    desk.engine.stop()
    await asyncio.wait_for(task, 60)


async def test_a_container_that_goes_takes_its_scope_along(desk: Desk, identity: Any, policies: Any, ksp: Any) -> None:
    one = identity(BOX)
    await desk.know(one)
    await desk.policy(policies(ksp("a", TCP)))
    await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes)
    await desk.bus.publish(INVENTORY, [Record(one.key, None)])
    await desk.until(lambda: not desk.plans()[-1].scopes)


async def test_a_record_that_is_none_leaves_the_rest_in_force(
    desk: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await desk.know(identity(BOX))
    await desk.policy(policies(ksp("a", TCP)))
    await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes)
    count = len(desk.plans())
    name = key(policies(ksp("a", TCP))[0])
    await desk.bus.publish(POLICIES, [Record(name, b"{not json")])
    await desk.bus.publish(INVENTORY, [Record(b"n1/other", b"\xc1")])
    await desk.until(lambda: desk.engine.stats.refused_records == 2)
    assert len(desk.plans()) == count


async def test_generations_grow_across_a_restart(identity: Any, policies: Any, ksp: Any) -> None:
    bus = MemoryBus()
    desk, task = await start(bus)
    await desk.know(identity(BOX))
    await desk.policy(policies(ksp("a", TCP)))
    await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes)
    desk.engine.stop()
    await task
    count, last = len(desk.plans()), desk.plans()[-1].generation
    desk, task = await start(bus)
    assert len(desk.plans()) == count
    await desk.policy(policies(ksp("b", TCP.replace("tcp", "udp"))))
    await desk.until(lambda: len(desk.plans()) > count)
    assert desk.plans()[-1].generation == last + 1
    desk.engine.stop()
    await task


async def test_a_bus_that_is_away_delays_a_plan_and_loses_none(
    desk: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await desk.know(identity(BOX))
    desk.bus.fail(Unavailable("away", retry_after=0.01), call="take", times=2)
    await desk.policy(policies(ksp("a", TCP)))
    await desk.until(lambda: desk.plans() and desk.plans()[-1].scopes)
