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
from hauberk.verbs.apply import in_force, publish
from policy.parse import parse
from schemas.identity import Identity, Kind, encode
from schemas.topics import INVENTORY

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
    await bus.publish(INVENTORY, [Record(web.key, encode(web))])
    planner, agent = PlannerEngine(bus), Enforcement(bus, str(tmp_path / "no-pins"), "n1")
    tasks = [asyncio.create_task(planner.run()), asyncio.create_task(agent.run())]
    await asyncio.wait_for(asyncio.gather(planner.ready.wait(), agent.ready.wait()), 60)
    yield bus
    planner.stop()
    agent.stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)


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
