# SPDX-License-Identifier: Apache-2.0
"""Nodes as a person sees them: what each refuses and why, when it was last heard of, and how one that left is dropped."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from waiting import until

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.memory import MemoryBus
from enforcers.planner import PlannerEngine
from hauberk.nodes import STALE_SECONDS, forget, last_heard
from hauberk.rollout import in_force
from hauberk.verbs.apply import publish
from policy.documents import key, to_json
from policy.parse import parse
from schemas.enforcement import Plan, Receipt, Refusal, digest
from schemas.enforcement import encode as encode_enforcement
from schemas.identity import Identity, Kind, encode
from schemas.operations import Backend
from schemas.policy_set_mark import PolicySetMark
from schemas.refusals import RefusalCode
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from schemas.verdict import RuleRef

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web-rules, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, process: {matchPatterns: [{pattern: /usr/*/curl}]}, action: Block}
"""
WHY = "patterns are matched in userspace"
NAME = "KubeArmorPolicy/shop/web-rules"


def records(node: str, ago: float = 0.0, generation: int = 1) -> dict[Any, Record]:
    """What a node left on the bus `ago` seconds ago, by topic."""
    then = int((time.time() - ago) * 1000)
    ref = RuleRef("web-rules", "KubeArmorPolicy", "shop", "spec.process.matchPatterns[0]")
    who = Identity(kind=Kind.NODE, node=node, uid=f"node-{node}")
    receipt = Receipt(
        node=node, generation=generation, digest=digest(()), applied_ns=then * 1_000_000, took_ms=1.0,
        backends=(Backend.CGROUP,), scopes=0, rules=0, refused=(Refusal(ref=ref, backend=Backend.SIGNAL, reason=WHY, code=RefusalCode.PATTERN),),
    )  # fmt: skip
    return {
        INVENTORY: Record(who.key, encode(who), timestamp_ms=then),
        ENFORCEMENT_STATUS: Record(node.encode(), encode_enforcement(receipt), timestamp_ms=then),
    }


async def put(bus: Any, *nodes: dict[Any, Record]) -> None:
    for node in nodes:
        for topic, record in node.items():
            await bus.publish(topic, [record])


@pytest.fixture
def command(hauberk: Any) -> Any:
    """The command over a bus with two nodes: `here`, and `left`, which was last heard of long ago."""

    async def fill() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(hauberk.state / "bus")))
        policy = parse(POLICY.encode(), "t").policies[0]
        await bus.publish(POLICIES, [Record(key(policy), to_json(policy))])
        await put(bus, records("here"), records("left", 7200))
        await bus.close()

    hauberk.state.mkdir()
    asyncio.run(fill())
    return hauberk


def test_tables_say_why_rules_are_not_enforced(command: Any) -> None:
    said = command("describe", "node", "here").stdout
    assert "refused: 1" in said
    (row,) = [line.split("   ") for line in said.split("Not enforced:\n")[1].splitlines()[1:]]
    assert [cell.strip() for cell in row] == [
        "here",
        "web-rules",
        "spec.process.matchPatterns[0]",
        "signal",
        "pattern",
        WHY,
    ]
    said = command("describe", "policy", "web-rules").stdout
    assert said.count(WHY) == 2, said
    assert "notEnforced" not in said
    assert "enforcedInPart" not in said
    for what in ("nodes", "policies"):
        assert WHY in command("get", what, "-o", "wide").stdout
        assert WHY not in command("get", what).stdout
    (value,) = json.loads(command("get", "policies", "-o", "json").stdout)
    assert value["status"]["rulesNotEnforced"] == 2
    assert value["status"]["notEnforced"][0] == {
        "node": "here", "rule": "spec.process.matchPatterns[0]", "backend": "signal", "code": "pattern",
        "reason": WHY,
    }  # fmt: skip


def test_a_node_says_when_it_was_heard_of(command: Any) -> None:
    table = [line.split() for line in command("get", "nodes").stdout.splitlines()]
    heard = {row[0]: row[-1] for row in table}
    assert (heard["NODE"], heard["left"]) == ("HEARD", "2h")
    assert heard["here"].endswith("s")
    assert json.loads(command("get", "nodes", "here", "-o", "json").stdout)[0]["heard"].endswith("Z")


def test_delete_node(command: Any) -> None:
    done = command("delete", "node", "here", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected `here` to be away" in done.stderr
    assert "expected node `nobody`, there is none" in done.stderr
    assert command("delete", "node", "left").stdout == "node/left deleted\n"
    assert command("get", "nodes", "-o", "name").stdout == "node/here\n"
    assert command("delete", "node", "here", "--force").stdout == "node/here deleted\n"
    assert command("get", "nodes", "-o", "name").stdout == ""
    assert command("delete", "node", "--all").returncode == 2
    assert command("get", "policies", "-o", "name").stdout == "ksp/web-rules\n"


def answer(node: str, made: str, generation: int = 1) -> tuple[Record, Record]:
    plan = Plan(node=node, generation=generation, digest=digest(()), scopes=(), policy_set=made, linked_set=made)
    return Record(node.encode(), encode_enforcement(plan)), records(node, generation=generation)[ENFORCEMENT_STATUS]


async def test_the_wait_skips_who_is_away_and_names_whom_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hauberk.rollout._PATIENCE", 0.0)
    bus = MemoryBus()
    await publish(bus, parse(POLICY.encode(), "t").policies)
    made = PolicySetMark()
    for name, record in (await bus.latest(POLICIES)).items():
        made.take(name.decode(), record.value)
    await put(bus, records("here", generation=0), records("left", STALE_SECONDS + 1, generation=0))
    for node in ("here", "left"):
        await bus.publish(ENFORCEMENT_DESIRED, [answer(node, made.text)[0]])
    waiting = asyncio.create_task(in_force(bus, [NAME], 30))
    said = ""
    async with asyncio.timeout(10):
        while "waiting for here\n" not in said:
            said += capsys.readouterr().err
            await asyncio.sleep(0.005)
    assert not waiting.done()
    await bus.publish(ENFORCEMENT_STATUS, [answer("here", made.text)[1]])
    assert await asyncio.wait_for(waiting, 10) == 0
    said = capsys.readouterr()
    assert "here: generation 1 in force" in said.out
    assert "left: not waited for, last heard of 2m1s ago; `hauberk delete node left` drops it" in said.err


async def test_nobody_but_nodes_that_are_away_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    bus = MemoryBus()
    await publish(bus, parse(POLICY.encode(), "t").policies)
    await put(bus, records("left", STALE_SECONDS + 1))
    await bus.publish(ENFORCEMENT_DESIRED, [answer("left", "")[0]])
    assert await in_force(bus, [NAME], 0.05) == 1
    said = capsys.readouterr().err
    assert "left: not waited for" in said
    assert "expected a receipt within 0.05 s" in said


async def test_a_node_with_a_new_machine_id_is_not_dropped() -> None:
    bus = MemoryBus()
    old = records("here")[INVENTORY]
    new = Identity(kind=Kind.NODE, node="here", uid="node-new")
    await bus.publish(INVENTORY, [old, Record(new.key, encode(new))])
    planner = PlannerEngine(bus)
    task = asyncio.create_task(planner.run())
    await asyncio.wait_for(planner.ready.wait(), 10)
    await bus.publish(INVENTORY, [Record(old.key, None)])
    policy = parse(POLICY.encode(), "t").policies[0]
    await bus.publish(POLICIES, [Record(key(policy), to_json(policy))])
    async with asyncio.timeout(10):
        while planner.stats.compiled < 2:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.005)
    planner.stop()
    await asyncio.wait_for(task, 10)
    assert b"here" in await bus.latest(ENFORCEMENT_DESIRED)


async def test_a_dropped_node_gets_no_plan_until_it_is_back() -> None:
    bus = MemoryBus()
    await put(bus, records("left"))
    planner = PlannerEngine(bus)
    task = asyncio.create_task(planner.run())
    await asyncio.wait_for(planner.ready.wait(), 10)
    assert b"left" in await bus.latest(ENFORCEMENT_DESIRED)
    assert await forget(bus, "left") == 3
    policy = parse(POLICY.encode(), "t").policies[0]

    async def dropped() -> bool:
        return bus.records(ENFORCEMENT_DESIRED)[-1].value is None

    async def compiled() -> bool:
        return planner.stats.compiled == 2

    async def back() -> bool:
        return b"left" in await bus.latest(ENFORCEMENT_DESIRED)

    await until(dropped)
    await bus.publish(POLICIES, [Record(key(policy), to_json(policy))])
    await until(compiled)
    assert not await last_heard(bus)
    assert not await back()
    await put(bus, records("left"))
    await until(back)
    planner.stop()
    await asyncio.wait_for(task, 10)
