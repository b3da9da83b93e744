# SPDX-License-Identifier: Apache-2.0
"""The planner on a bus: plans on change and only then, generations that only grow, bad records left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from waiting import until

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
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
    def __init__(self, bus: Any, engine: PlannerEngine) -> None:
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
    # The same rules; at most told anew, as answered for the policies that are there now.
    assert len({plan.digest for plan in desk.plans()[count - 1 :]}) == 1


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


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Desk]:
    """A bus that takes no record over 4 KiB."""
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path), record_bytes=4096))
    engine = PlannerEngine(bus)
    task = asyncio.create_task(engine.run())
    await asyncio.wait_for(engine.ready.wait(), 60)
    yield Desk(bus, engine)
    engine.stop()
    await asyncio.wait_for(task, 60)
    await bus.close()


def boxes(node: str, count: int, identity: Any) -> list[Any]:
    return [
        identity(SimpleNamespace(id=1000 + number, path=f"/docker/{number}"), node=node, uid=f"{node}-{number}")
        for number in range(count)
    ]


async def of_node(desk: Desk, node: str) -> Plan | None:
    record = (await desk.bus.latest(ENFORCEMENT_DESIRED)).get(node.encode())
    return None if record is None else decode_plan(record.value or b"")


async def test_a_plan_that_the_bus_refuses_holds_back_no_other(
    narrow: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await narrow.know(*boxes("small", 1, identity), *boxes("big", 1, identity))
    await narrow.policy(policies(ksp("a", TCP)))

    async def planned() -> bool:
        small, big = await of_node(narrow, "small"), await of_node(narrow, "big")
        return bool(small and big and small.policies and big.policies)

    await narrow.until(planned)
    before = await of_node(narrow, "big")
    assert before is not None
    many = boxes("big", 60, identity)
    for one in many:
        await narrow.know(one)
    await narrow.policy(policies(ksp("b", TCP.replace("tcp", "udp"))))

    async def both() -> bool:
        small = await of_node(narrow, "small")
        return small is not None and "KubeArmorPolicy/shop/b" in small.policies and narrow.engine.stats.held == 1

    await narrow.until(both)
    assert narrow.engine.failure == ""
    assert narrow.engine.stats.refused_plans
    assert "record_bytes" in narrow.engine.stats.problem

    async def held() -> Plan | None:
        plan = await of_node(narrow, "big")
        return plan if plan is not None and plan.held else None

    plan = await narrow.until(held)
    assert len(plan.scopes) < 60
    assert plan.generation > before.generation
    assert "record_bytes" in plan.held
    for one in many[1:]:
        await narrow.bus.publish(INVENTORY, [Record(one.key, None)])

    async def released() -> bool:
        plan = await of_node(narrow, "big")
        return plan is not None and not plan.held and len(plan.scopes) == 1

    await narrow.until(released)
    assert "KubeArmorPolicy/shop/b" in (await of_node(narrow, "big") or before).policies
    await narrow.until(lambda: narrow.engine.stats.held == 0)


async def test_a_first_plan_that_the_bus_refuses_is_reported(
    narrow: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await narrow.policy(policies(ksp("a", TCP)))
    await narrow.know(*boxes("small", 1, identity))
    await narrow.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in boxes("big", 60, identity)])
    await narrow.until(lambda: narrow.engine.stats.refused_plans and narrow.engine.unplanned == ["big"])

    async def planned() -> bool:
        return await of_node(narrow, "small") is not None

    await narrow.until(planned)
    assert narrow.engine.failure == ""


async def test_a_pass_over_one_node_forgets_no_plan_that_is_held(
    desk: Desk, identity: Any, policies: Any, ksp: Any
) -> None:
    await desk.know(*boxes("n1", 1, identity))
    (policy,) = policies(ksp("a", TCP))
    await desk.policy([policy])
    await desk.until(lambda: desk.plans() and desk.plans()[-1].policies)
    plan = desk.plans()[-1]
    # The engine writes its plan down after the bus has it: what is put there now must not be overwritten.
    await desk.until(lambda: desk.engine._published.get("n1") == plan)
    desk.engine._published["n1"] = msgspec.structs.replace(plan, policies=(*plan.policies, "KubeArmorPolicy/shop/lost"))
    await desk.know(identity(BOX, node="n1", uid="more"))
    await desk.until(lambda: desk.engine.stats.held == 1)
    await desk.know(*boxes("n2", 1, identity))
    await desk.until(lambda: any(one.node == "n2" for one in desk.plans()))
    assert desk.engine.stats.held == 1
    await desk.bus.publish(POLICIES, [Record(b"KubeArmorPolicy/shop/lost", None)])
    await desk.until(lambda: desk.engine.stats.held == 0 and not desk.plans()[-1].held)


async def test_a_flood_of_bad_records_is_one_line(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await desk.bus.publish(INVENTORY, [Record(b"n/%d" % number, b"no identity") for number in range(50)])
    await desk.until(lambda: desk.engine.stats.refused_records == 50)
    assert len([one for one in caplog.messages if "left out of the plans" in one]) == 1
