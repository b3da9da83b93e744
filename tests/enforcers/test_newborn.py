# SPDX-License-Identifier: Apache-2.0
"""A container that starts: what of its rules holds at once, a plan that says it was thought of, and whom its hook hears from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from waiting import until

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.holding import HeldStarts
from enforcers.plan import Planner
from enforcers.planner import PlannerEngine
from policy.documents import key, to_json
from policy.ruleset import PostureSettings, compile_ruleset
from schemas.enforcement import Plan, Receipt, ScopePlan, decode_plan
from schemas.identity import encode
from schemas.operations import Backend, Class
from schemas.topics import ENFORCEMENT_DESIRED, INVENTORY, POLICIES
from schemas.verdict import Action

BOX = SimpleNamespace(id=100, path="/docker/x")
SIGNAL = "{hauberk.io/signal: enabled}"


def planned(policies: Any, text: str, identity: Any, **postures: Any) -> Plan:
    return Planner(compile_ruleset(policies(text), PostureSettings(**postures))).plan("n1", [identity], 1)


def test_what_the_runtimes_setup_needs_is_not_taken_from_it(policies: Any, ksp: Any, identity: Any) -> None:
    text = ksp("files", "file: {matchPaths: [{path: /etc/hosts}]}, action: Allow", SIGNAL)
    text += ksp("programs", "process: {matchPaths: [{path: /bin/true}]}, action: Allow", SIGNAL)
    text += ksp("secret", "file: {matchPaths: [{path: /etc/shadow}]}, action: Block", SIGNAL)
    text += ksp("tcp", "network: {matchProtocols: [{protocol: udp}]}, action: Allow")
    blocking = {"file": "block", "network": "block"}
    (whole,) = planned(policies, text, identity(BOX), **blocking).scopes
    (first,) = planned(policies, text, identity(BOX, starting=True), **blocking).scopes
    assert (Class.FILE, Action.BLOCK) in whole.posture
    assert {class_ for class_, _ in first.posture} == {class_ for class_, _ in whole.posture} - {Class.FILE}
    # Rules on paths and networks are all there.
    assert (first.paths, first.network) == (whole.paths, whole.network)
    assert {(rule.value, rule.action) for rule in first.paths} >= {
        ("/etc/shadow", Action.BLOCK),
        ("/etc/hosts", Action.ALLOW),
    }


def test_rules_on_capabilities_wait(policies: Any, ksp: Any, identity: Any) -> None:
    text = ksp("caps", "capabilities: {matchCapabilities: [{capability: sys_admin}]}, action: Block")
    (whole,) = planned(policies, text, identity(BOX)).scopes or (None,)
    assert whole is None or [rule.match for rule in whole.paths] == ["capability"]
    plan = planned(policies, text, identity(BOX, starting=True))
    assert [rule for scope in plan.scopes for rule in scope.paths] == []
    assert plan.starting == (100,)


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    made = MemoryBus()
    engine = PlannerEngine(made)
    task = asyncio.create_task(engine.run())
    await asyncio.wait_for(engine.ready.wait(), 60)
    yield made
    engine.stop()
    await asyncio.wait_for(task, 60)


async def test_a_container_that_no_policy_selects_is_answered_too_and_once(
    bus: MemoryBus, identity: Any, policies: Any, ksp: Any
) -> None:
    def plans() -> list[Plan]:
        return [decode_plan(one.value or b"") for one in bus.records(ENFORCEMENT_DESIRED)]

    async def know(**words: Any) -> None:
        one = identity(BOX, **words)
        await bus.publish(INVENTORY, [Record(one.key, encode(one))])

    for document in policies(ksp("other", "network: {matchProtocols: [{protocol: tcp}]}, action: Block")):
        await bus.publish(POLICIES, [Record(key(document), to_json(document))])
    await know(starting=True, labels={"app": "none"})
    await until(lambda: plans() and plans()[-1].starting == (100,))
    count = len(plans())
    # Its own program runs: nothing of its rules changes, so nothing is said.
    await know(labels={"app": "none"})
    other = identity(SimpleNamespace(id=101, path="/docker/y"), uid="y", labels={"app": "none"}, starting=True)
    await bus.publish(INVENTORY, [Record(other.key, encode(other))])
    await until(lambda: plans()[-1].starting == (101,))
    assert len(plans()) == count + 1


def receipt(*failed: str, backends: tuple[Backend, ...] = (Backend.CGROUP,)) -> Receipt:
    return Receipt(
        node="n1",
        generation=1,
        digest="d",
        applied_ns=1,
        took_ms=1.0,
        backends=backends,
        scopes=1,
        rules=1,
        failed=failed,
    )


async def test_a_hook_hears_of_a_plan_that_has_its_container_and_of_what_failed(
    policies: Any, ksp: Any, identity: Any
) -> None:
    plan = planned(
        policies, ksp("a", "network: {matchProtocols: [{protocol: tcp}]}, action: Block"), identity(BOX, starting=True)
    )
    (scope,) = plan.scopes
    assert scope.workload
    for said, wanted in (
        (receipt(), ""), (receipt(f"{scope.workload}: no room"), f"{scope.workload}: no room"), (receipt("other: no room"), ""),
        (receipt("nothing is enforced: no cgroup2", backends=()), "nothing is enforced: no cgroup2"),
    ):  # fmt: skip
        holding = HeldStarts()
        asked = asyncio.create_task(holding.until(100))
        # A plan of before.
        holding.carried_out(msgspec.structs.replace(plan, starting=()), receipt())
        await asyncio.sleep(0)
        assert not asked.done()
        holding.carried_out(plan, said)
        assert await asyncio.wait_for(asked, 60) == wanted
    holding.carried_out(msgspec.structs.replace(plan, held="policies are lost"), receipt())
    assert await holding.until(100) == "policies are lost"
    # Of a container without rules nothing can fail.
    nothing = msgspec.structs.replace(plan, scopes=(ScopePlan(uid="x", cgroups=(100,)),))
    holding.carried_out(nothing, receipt("nothing is enforced", backends=()))
    assert await holding.until(100) == ""
