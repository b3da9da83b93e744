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
from policy.documents import key, to_json
from policy.parse import parse
from schemas.enforcement import Plan, Receipt, decode_plan, digest
from schemas.enforcement import encode as encode_enforcement
from schemas.errors import Unavailable
from schemas.identity import Identity, Kind, encode
from schemas.policy_set_mark import PolicySetMark
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from sensors.containers.symlinks import Symlinks
from sensors.kubernetes.published import Published

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


async def marked(bus: MemoryBus) -> str:
    """The mark of what the bus has."""
    made = PolicySetMark()
    for name, record in (await bus.latest(POLICIES)).items():
        made.take(name.decode(), record.value)
    return made.text


async def answer(bus: MemoryBus, generation: int, made: str, linked: str, created: int = 0, held: str = "") -> None:
    """A plan of node n1 and its receipt."""
    plan = Plan(node="n1", generation=generation, digest=digest(()), scopes=(), created_ns=created, policy_set=made, linked_set=linked, held=held)  # fmt: skip
    receipt = Receipt(node="n1", generation=generation, digest=plan.digest, applied_ns=0, took_ms=0.0, backends=(), scopes=0, rules=0)  # fmt: skip
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode_enforcement(plan))])
    await bus.publish(ENFORCEMENT_STATUS, [Record(b"n1", encode_enforcement(receipt))])


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

    async def answered(generation: int, linked: str) -> int:
        await answer(bus, generation, await marked(bus), linked)
        return await in_force(bus, [name], 0.05)

    assert await answered(1, "") == ends
    assert await answered(2, await marked(bus)) == 0


async def test_clocks_of_who_applies_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    """A policy put on the bus by somebody whose clock is an hour ahead makes no plan one of a younger policy."""
    bus, path = MemoryBus(), "/bin/sh"
    ahead, mine = (
        parse(POLICY.replace("network: {matchProtocols: [{protocol: tcp}]}", f"process: {{matchPaths: [{{path: {path}}}]}}")
              .replace("NAME", name).replace("APP", "web").replace("ACTION", "Block").encode(), "t").policies[0]
        for name in ("ahead", "mine")
    )  # fmt: skip
    then = int((time.time() + 3600) * 1000)
    await bus.publish(POLICIES, [Record(key(ahead), to_json(ahead), timestamp_ms=then)])
    before = await marked(bus)
    await answer(bus, 1, before, before, then * 1_000_000)
    assert await in_force(bus, [ahead.key], 30) == 0
    await publish(bus, [mine])
    assert await in_force(bus, [mine.key], 0.05) == 1, "a plan of the policies before it was taken for its own"
    await answer(bus, 2, await marked(bus), before, then * 1_000_000)
    assert await in_force(bus, [mine.key], 0.05) == 1, "its paths were not looked up"
    await answer(bus, 3, await marked(bus), await marked(bus), then * 1_000_000)
    assert await in_force(bus, [mine.key], 30) == 0
    # What is deleted by a clock that is behind does not look like a log that lost records.
    newest = max(one.timestamp_ms for one in bus.records(POLICIES))
    assert newest > then
    # By a clock that is behind: never a plan that is younger than the one before it, and in force all the same.
    behind = Record(key(mine), to_json(mine).replace(b"Block", b"Audit"), timestamp_ms=1)
    await bus.publish(POLICIES, [behind])
    assert await in_force(bus, [mine.key], 0.05) == 1
    await answer(bus, 4, await marked(bus), await marked(bus), then * 1_000_000)
    assert await in_force(bus, [mine.key], 30) == 0


async def test_a_plan_that_is_held_and_a_policy_that_is_gone_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    bus = MemoryBus()
    (mine,) = documents("one", "web", "Block")
    await publish(bus, [mine])
    node = Identity(kind=Kind.NODE, node="n1", uid="node")
    await bus.publish(INVENTORY, [Record(node.key, encode(node))])
    await answer(bus, 2, "", "", held="policies of the plan in force are missing")
    assert await in_force(bus, [mine.key], 0.05) == 1
    assert "n1: policies of the plan in force are missing\n" in capsys.readouterr().err
    await bus.publish(POLICIES, [Record(key(mine), None)])
    assert await in_force(bus, [mine.key], 30) == 1
    assert "KubeArmorPolicy/shop/one on the bus, somebody deleted it meanwhile" in capsys.readouterr().err


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


async def test_a_planner_that_starts_after_a_deletion_by_a_clock_that_is_behind_goes_on_planning() -> None:
    bus = MemoryBus()
    node = Identity(kind=Kind.NODE, node="n1", uid="node")
    await bus.publish(INVENTORY, [Record(node.key, encode(node))])
    (ahead,), (other,) = documents("ahead", "web", "Block"), documents("other", "web", "Block")
    await bus.publish(POLICIES, [Record(key(ahead), to_json(ahead), timestamp_ms=int((time.time() + 3600) * 1000))])
    first = PlannerEngine(bus)
    running = asyncio.create_task(first.run())
    await asyncio.wait_for(first.ready.wait(), 60)
    first.stop()
    await asyncio.wait_for(running, 60)
    cluster = Published(bus, POLICIES)
    await cluster.load()
    cluster.put(key(ahead), None)
    await cluster.flush()
    await publish(bus, [other])
    second = PlannerEngine(bus)
    running = asyncio.create_task(second.run())
    await asyncio.wait_for(second.ready.wait(), 60)
    (record,) = (await bus.latest(ENFORCEMENT_DESIRED)).values()
    plan = decode_plan(record.value or b"")
    assert (plan.held, plan.policy_set) == ("", await marked(bus))
    second.stop()
    await asyncio.wait_for(running, 60)
