# SPDX-License-Identifier: Apache-2.0
"""`apply --wait` with a real planner and a real node engine: quick and true, also for a policy that changes no plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.planner import PlannerEngine
from hauberk.rollout import in_force
from hauberk.verbs.apply import publish
from policy.parse import parse
from schemas.enforcement import Plan, Receipt, digest
from schemas.enforcement import encode as encode_enforcement
from schemas.errors import Unavailable
from schemas.identity import Identity, Kind, encode
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from sensors.containers.symlinks import Symlinks

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: NAME, namespace: shop}
spec: {selector: {matchLabels: {app: APP}}, network: {matchProtocols: [{protocol: tcp}]}, action: ACTION}
"""


def documents(name: str, app: str, action: str) -> list[Any]:
    return list(
        parse(POLICY.replace("NAME", name).replace("APP", app).replace("ACTION", action).encode(), "t").policies
    )


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    web = Identity(kind=Kind.CONTAINER, node="n1", uid="u", cgroups=(7,), cgroup_path="/none", container_name="web",
                   namespace="shop", labels={"app": "web"})  # fmt: skip
    held = {one.uid: one for one in (web, Identity(kind=Kind.NODE, node="n1", uid="node"))}
    await bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in held.values()])
    planner, agent, links = PlannerEngine(bus), Enforcement(bus, str(tmp_path / "no-pins"), "n1"), Symlinks(bus)
    waiting: asyncio.Queue[Identity] = asyncio.Queue()

    def put(identity: Identity) -> None:
        held[identity.uid] = identity
        waiting.put_nowait(identity)

    async def tell() -> None:
        while True:
            one = await waiting.get()
            await bus.publish(INVENTORY, [Record(one.key, encode(one))])

    tasks = [asyncio.create_task(planner.run()), asyncio.create_task(agent.run())]
    node = [asyncio.create_task(links.follow(held.values, put)), asyncio.create_task(tell())]
    await asyncio.wait_for(asyncio.gather(planner.ready.wait(), agent.ready.wait()), 60)
    yield bus
    planner.stop()
    agent.stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    for task in node:
        task.cancel()
    await asyncio.gather(*node, return_exceptions=True)


@pytest.mark.parametrize(
    ("app", "action", "nothing"), [("web", "Block", False), ("nobody", "Block", True), ("web", "Audit", True)]
)
async def test_the_wait_ends_soon_whatever_the_policy_changes(
    bus: MemoryBus, capsys: pytest.CaptureFixture[str], app: str, action: str, nothing: bool
) -> None:
    for attempt in ("created", "unchanged"):
        told = await publish(bus, documents("one", app, action))
        assert told == [("KubeArmorPolicy/shop/one", attempt)]
        started = time.monotonic()
        assert await in_force(bus, [told[0][0]], 90) == 0
        assert time.monotonic() - started < 45
        said = capsys.readouterr().out
        assert "n1: generation" in said
        assert ("in force; nothing to enforce on any node for this policy now" in said) is nothing


@pytest.mark.parametrize(
    ("path", "ends"),
    [("  process: {matchPaths: [{path: /bin/sh}]}", 1), ("  network: {matchProtocols: [{protocol: tcp}]}", 0)],
)
async def test_the_wait_ends_when_the_links_of_its_paths_are_in_the_plan(path: str, ends: int) -> None:
    bus, name = MemoryBus(), "KubeArmorPolicy/shop/one"
    text = f"apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {{name: one, namespace: shop}}\nspec:\n{path}\n"
    await publish(bus, list(parse(text, "t").policies))
    since = next(iter((await bus.latest(POLICIES)).values())).timestamp_ms * 1_000_000

    async def answered(generation: int, linked: int) -> int:
        plan = Plan(node="n1", generation=generation, digest=digest(()), scopes=(), created_ns=since, linked_ns=linked)
        receipt = Receipt(node="n1", generation=generation, digest=plan.digest, applied_ns=0, took_ms=0.0, backends=(), scopes=0, rules=0)  # fmt: skip
        await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode_enforcement(plan))])
        await bus.publish(ENFORCEMENT_STATUS, [Record(b"n1", encode_enforcement(receipt))])
        return await in_force(bus, [name], 0.05)

    assert await answered(1, 0) == ends
    assert await answered(2, since) == 0


async def test_the_wait_names_the_node_that_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bus, names = MemoryBus(), ["KubeArmorPolicy/shop/one"]
    await publish(bus, documents("one", "web", "Block"))
    assert await in_force(bus, names, 0.05) == 1
    assert "expected a receipt within 0.05 s, got none" in capsys.readouterr().err
    node = Identity(kind=Kind.NODE, node="n1", uid="node")
    await bus.publish(INVENTORY, [Record(node.key, encode(node))])
    planner = PlannerEngine(bus)
    task = asyncio.create_task(planner.run())
    await asyncio.wait_for(planner.ready.wait(), 60)
    assert await in_force(bus, names, 0.05) == 1
    assert "expected a receipt of n1 within" in capsys.readouterr().err
    planner.stop()
    await asyncio.wait_for(task, 60)


async def test_a_bus_that_is_away_for_a_while_delays_the_wait_and_is_named_when_it_stays_away(bus: MemoryBus) -> None:
    told = await publish(bus, documents("one", "web", "Audit"))
    bus.fail(Unavailable("the bus is away"), call="subscribe")
    assert await in_force(bus, [told[0][0]], 90) == 0
    alone = MemoryBus()
    alone.fail(Unavailable("the bus is away"), call="subscribe", times=1000)
    with pytest.raises(Unavailable, match="is away"):
        await in_force(alone, [told[0][0]], 0.05)
