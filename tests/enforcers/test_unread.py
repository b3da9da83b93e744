# SPDX-License-Identifier: Apache-2.0
"""No plan is made of policies that are damaged, unread or gone without a deletion: what is in force stays, and is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import until

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.follow import whole
from enforcers.agent import Enforcement
from enforcers.apply import Applier
from enforcers.planner import PlannerEngine
from enforcers.settings import EnforceSettings
from policy.documents import key, to_json
from processors.engine import Processor
from schemas.alert import decode_alert
from schemas.enforcement import Plan, decode_plan, decode_receipt
from schemas.identity import encode
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES

TCP = "network: {matchProtocols: [{protocol: tcp}]}, action: Block"
UDP = TCP.replace("tcp", "udp")
AUDIT = "file: {matchPaths: [{path: /etc/shadow}]}, action: Audit"
BOX = SimpleNamespace(id=100, path="/docker/x")
NODE = "n1"


def overwritten(path: Path) -> None:
    """As `dd if=/dev/urandom of=compacted.db seek=100 count=8000 conv=notrunc`."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 8000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


DAMAGE = [overwritten, emptied, removed, cut]


class World:
    """An embedded bus that is opened anew, and who works on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.table = directory / "topics/policies.v1/compacted.db"
        self.bus: Any = None
        self.tasks: list[tuple[Any, asyncio.Task[None]]] = []

    async def open(self) -> None:
        self.bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(self.directory)))

    async def start(self, engine: Any) -> Any:
        self.tasks.append((engine, asyncio.create_task(engine.run())))
        ready = engine.ready if hasattr(engine, "ready") else engine.facts.ready
        await asyncio.wait_for(ready.wait(), 60)
        return engine

    async def close(self) -> None:
        for engine, task in self.tasks:
            engine.stop()
            await asyncio.wait_for(task, 60)
        self.tasks = []
        if self.bus is not None:
            await self.bus.close()
            self.bus = None

    async def damage(self, how: Callable[[Path], None]) -> None:
        await self.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.table}{suffix}").unlink(missing_ok=True)
        how(self.table)
        await self.open()

    async def plan(self) -> Plan | None:
        record = (await self.bus.latest(ENFORCEMENT_DESIRED)).get(NODE.encode())
        return decode_plan(record.value) if record else None

    async def apply(self, documents: Any) -> None:
        await self.bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in documents])

    async def alerts(self) -> list[Any]:
        end = (await self.bus.end(ALERTS))[0]
        if not end:
            return []
        async with self.bus.subscribe((ALERTS,), None, "earliest") as subscription:
            return [decode_alert(one.record.value) for one in await subscription.take(1000, 10)]


@pytest.fixture
async def world(tmp_path: Path, identity: Any, policies: Any, ksp: Any) -> Any:
    """A node that is held to two policies and watched by a third."""
    made = World(tmp_path / "bus")
    await made.open()
    await made.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (identity(BOX),)])
    await made.apply(policies(ksp("a", TCP) + ksp("b", UDP) + ksp("c", AUDIT)))
    await made.start(PlannerEngine(made.bus))
    plan = await made.plan()
    assert plan is not None
    assert len(plan.policies) >= 2
    yield made
    await made.close()


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_table_makes_no_plan_and_is_told(world: World, how: Callable[[Path], None]) -> None:
    before = await world.plan()
    await world.damage(how)
    planner = await world.start(PlannerEngine(world.bus))
    plan = await world.plan()
    assert plan is not None
    assert before is not None
    assert (plan.digest, plan.scopes, plan.policies) == (before.digest, before.scopes, before.policies)
    assert "it stays in force" in plan.held
    assert planner.stats.held == 1
    assert planner.stats.problem
    processor = await world.start(Processor(world.bus))
    assert processor.stats().policies_damaged
    (alert,) = await until(world.alerts)
    assert (alert.Type, alert.Operation) == ("SystemEvent", "PoliciesDamaged")
    assert "Apply" in alert.Message


@pytest.mark.parametrize("how", DAMAGE)
async def test_it_stays_so_across_a_restart_until_every_policy_is_back(
    world: World, how: Callable[[Path], None], policies: Any, ksp: Any
) -> None:
    before = await world.plan()
    await world.damage(how)
    await world.apply(policies(ksp("b", UDP)))
    await world.start(PlannerEngine(world.bus))
    await world.close()
    await world.open()
    planner = await world.start(PlannerEngine(world.bus))
    plan = await world.plan()
    assert plan is not None
    assert before is not None
    assert plan.digest == before.digest
    assert "shop/a" in plan.held
    await world.apply(policies(ksp("a", TCP) + ksp("c", AUDIT)))

    async def mended() -> bool:
        now = await world.plan()
        return now is not None and not now.held and now.digest == before.digest

    await until(mended)
    # Counted once the plan is published.
    await until(lambda: planner.stats.held == 0)


async def test_damage_while_everything_runs_is_noticed_and_what_is_remembered_is_planned_with(
    world: World, policies: Any, ksp: Any, identity: Any
) -> None:
    ((planner, _),) = world.tasks
    processor = await world.start(Processor(world.bus))
    before = await world.plan()
    assert before is not None
    # As any read or write does that finds the file damaged.
    await world.bus._read_thread(world.bus._log(POLICIES).quarantine)
    (alert,) = await until(world.alerts)
    assert alert.Operation == "PoliciesDamaged"
    assert processor.stats().policies == 3, "it judges with what it knows"
    assert processor.stats().damaged_reads == 1
    more = identity(SimpleNamespace(id=200, path="/docker/y"), uid="another")
    await world.bus.publish(INVENTORY, [Record(more.key, encode(more))])

    async def planned() -> bool:
        now = await world.plan()
        return now is not None and {id_ for scope in now.scopes for id_ in scope.cgroups} == {100, 200}

    await until(planned)
    now = await world.plan()
    assert now is not None
    assert now.policies == before.policies
    await until(lambda: planner.stats.held == 0)
    assert planner.stats.damaged_reads == 1
    await world.apply(policies(ksp("a", TCP) + ksp("b", UDP) + ksp("c", AUDIT)))

    async def mended() -> bool:
        return not processor.stats().policies_damaged

    await until(mended)


async def test_what_was_lost_can_be_deleted(world: World, policies: Any, ksp: Any) -> None:
    await world.damage(overwritten)
    await world.start(PlannerEngine(world.bus))
    await world.apply(policies(ksp("b", UDP)))
    await world.bus.publish(POLICIES, [Record(key(one), None) for one in policies(ksp("a", TCP) + ksp("c", AUDIT))])

    async def planned() -> bool:
        now = await world.plan()
        return now is not None and not now.held and now.policies == ("KubeArmorPolicy/shop/b",)

    await until(planned)


async def test_a_deletion_while_nobody_planned_is_no_damage(world: World, policies: Any, ksp: Any) -> None:
    for _, task in world.tasks:
        task.cancel()
    world.tasks = []
    await world.bus.publish(POLICIES, [Record(key(one), None) for one in policies(ksp("a", TCP))])
    await world.start(PlannerEngine(world.bus))
    plan = await world.plan()
    assert plan is not None
    assert not plan.held
    assert "KubeArmorPolicy/shop/a" not in plan.policies
    processor = await world.start(Processor(world.bus))
    assert not processor.stats().policies_damaged


async def test_one_policy_that_cannot_be_read_holds_what_was_made_of_it(world: World, policies: Any, ksp: Any) -> None:
    (name,) = [key(one) for one in policies(ksp("a", TCP))]
    before = await world.plan()
    await world.close()
    await world.open()
    await world.bus.publish(POLICIES, [Record(name, b'{"kind": "KubeArmor\xff'), Record(b"x/y/z", b"[" * 100_000)])
    await world.start(PlannerEngine(world.bus))
    plan = await world.plan()
    assert plan is not None
    assert before is not None
    assert plan.digest == before.digest
    assert "cannot be read" in plan.held
    assert "x/y/z" not in plan.held
    await world.apply(policies(ksp("a", TCP)))

    async def mended() -> bool:
        now = await world.plan()
        return now is not None and not now.held

    await until(mended)


async def test_tombstones_are_among_what_is_present(world: World, policies: Any, ksp: Any) -> None:
    (gone,) = policies(ksp("a", TCP))
    await world.bus.publish(POLICIES, [Record(key(gone), None)])
    found = await whole(world.bus, POLICIES)
    assert found[key(gone)].value is None
    assert sum(record.value is not None for record in found.values()) == 2


@pytest.mark.kernel
async def test_the_node_carries_out_no_plan_of_older_policies(
    pin_dir: str, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path, server: int
) -> None:
    """The whole bus is lost, plans too: a planner makes an empty one, and the saved one stays in force."""
    world = World(tmp_path / "bus")
    await world.open()
    box = new_cgroup()
    await world.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (identity(box),)])
    await world.apply(policies(ksp("a", TCP)))
    await world.start(PlannerEngine(world.bus))
    settings = EnforceSettings(state_dir=str(tmp_path / "state"))
    await world.start(Enforcement(world.bus, pin_dir, NODE, settings))
    assert await asyncio.to_thread(box.connect, server) == "EPERM"
    await world.close()
    world.directory = tmp_path / "another"
    await world.open()
    await world.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (identity(box),)])
    await world.start(PlannerEngine(world.bus))
    agent = await world.start(Enforcement(world.bus, pin_dir, NODE, settings))

    async def told() -> bool:
        record = (await world.bus.latest(ENFORCEMENT_STATUS)).get(NODE.encode())
        return record is not None and any("older policies" in one for one in decode_receipt(record.value).failed)

    await until(told)
    assert await asyncio.to_thread(box.connect, server) == "EPERM"
    assert "older policies" in agent.problem
    await world.apply(policies(ksp("b", UDP)))

    async def replaced() -> bool:
        return agent.plan is not None and agent.plan.policies == ("KubeArmorPolicy/shop/b",)

    await until(replaced)
    assert await asyncio.to_thread(box.connect, server) != "EPERM"
    await world.close()
    rest = Applier(pin_dir, NODE)
    rest.clear()
    rest.close()
