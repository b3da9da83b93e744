# SPDX-License-Identifier: Apache-2.0
"""The node's engine: enforces without the bus from what it saved, answers every plan, survives bad plans and full disks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.apply import Applier
from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from policy.ruleset import compile_ruleset
from schemas.enforcement import Plan, Refusal, decode_receipt, encode
from schemas.errors import Unavailable
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS
from schemas.verdict import RuleRef

pytestmark = pytest.mark.kernel

NODE = "n1"


@pytest.fixture
def plan_for(policies: Any, ksp: Any) -> Any:
    ruleset = compile_ruleset(policies(ksp("p", "network: {matchProtocols: [{protocol: tcp}]}, action: Block")))
    return lambda *who, generation=1: Planner(ruleset).plan(NODE, who, generation)


@pytest.fixture
def clean(pin_dir: str) -> Any:
    yield
    rest = Applier(pin_dir, NODE)
    rest.clear()
    rest.close()


async def ended(agent: Enforcement, task: asyncio.Task[None]) -> None:
    agent.stop()
    await asyncio.wait_for(task, 60)


async def test_the_saved_plan_is_carried_out_without_the_bus(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, tmp_path: Path, server: int
) -> None:
    box = new_cgroup()
    (tmp_path / "plan.msgpack").write_bytes(encode(plan_for(identity(box))))
    bus = MemoryBus()
    bus.fail(Unavailable("the broker is away", retry_after=0.01), call="subscribe", times=10_000)
    bus.fail(Unavailable("the broker is away", retry_after=0.01), call="publish", times=10_000)
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=str(tmp_path)))
    task = asyncio.create_task(agent.run())
    await asyncio.wait_for(agent.ready.wait(), 60)
    assert await asyncio.to_thread(box.connect, server) == "EPERM"
    await ended(agent, task)
    assert await asyncio.to_thread(box.connect, server) == "EPERM"


def older(data: bytes) -> bytes:
    """A plan as the version before codes and `partial` wrote it."""
    plan = msgspec.msgpack.decode(data)
    del plan[[field.name for field in msgspec.structs.fields(Plan)].index("partial") :]
    plan[6] = [[["p", "KubeArmorPolicy", "shop", "spec.network", 4, 0], "u", 3, "in part: internet sockets are denied"]]
    return msgspec.msgpack.encode(plan)


async def test_a_plan_saved_by_the_version_before_is_carried_out(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, tmp_path: Path
) -> None:
    box, bus = new_cgroup(), MemoryBus()
    (tmp_path / "plan.msgpack").write_bytes(older(encode(plan_for(identity(box)))))
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=str(tmp_path)))
    task = asyncio.create_task(agent.run())
    await asyncio.wait_for(agent.ready.wait(), 60)
    assert set(agent.applier.enforced) == {box.id}
    assert agent.receipt is not None
    assert [one.code for one in agent.receipt.refused] == [RefusalCode.UNSPECIFIED]
    assert [(one.backend, one.scopes, one.rules) for one in agent.receipt.in_force] == [
        (Backend.CGROUP, 1, 1),
        (Backend.SIGNAL, 0, 0),
    ]
    await ended(agent, task)


async def test_a_saved_plan_that_this_version_cannot_read_lifts_nothing(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, tmp_path: Path, server: int
) -> None:
    box, bus = new_cgroup(), MemoryBus()
    before = Applier(pin_dir, NODE)
    before.apply(plan_for(identity(box)))
    enforced = before.enforced
    before.close()
    plan = msgspec.msgpack.decode(encode(plan_for(identity(box))))
    plan[3] = {"scopes": "of another layout"}
    (tmp_path / "plan.msgpack").write_bytes(msgspec.msgpack.encode(plan))
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=str(tmp_path)))
    task = asyncio.create_task(agent.run())
    await asyncio.wait_for(agent.ready.wait(), 60)
    assert "expected an enforcement plan as msgpack" in agent.problem
    assert agent.applier.enforced == enforced != {}
    assert await asyncio.to_thread(box.connect, server) == "EPERM"
    await ended(agent, task)


async def test_every_plan_is_answered_by_a_receipt(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, until: Any
) -> None:
    box, bus = new_cgroup(), MemoryBus()
    agent = Enforcement(bus, pin_dir, NODE)
    task = asyncio.create_task(agent.run())
    for generation in (1, 2):
        await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(plan_for(identity(box), generation=generation)))])
        await bus.publish(ENFORCEMENT_DESIRED, [Record(b"other", encode(plan_for()))])
        await until(lambda wanted=generation: agent.receipt and agent.receipt.generation == wanted)
    await until(lambda: len(bus.records(ENFORCEMENT_STATUS)) == 2)
    receipts = [decode_receipt(one.value or b"") for one in bus.records(ENFORCEMENT_STATUS)]
    assert [one.generation for one in receipts] == [1, 2]
    assert receipts[1].backends == (Backend.CGROUP, Backend.SIGNAL)
    assert (receipts[1].scopes, receipts[1].rules, receipts[1].failed) == (1, 1, ())
    await ended(agent, task)


async def test_bytes_that_are_no_plan_leave_the_one_in_force(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, tmp_path: Path, until: Any
) -> None:
    box, bus = new_cgroup(), MemoryBus()
    (tmp_path / "plan.msgpack").write_bytes(b"half a pl")
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=str(tmp_path)))
    task = asyncio.create_task(agent.run())
    await asyncio.wait_for(agent.ready.wait(), 60)
    assert "plan.msgpack" in agent.problem
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(plan_for(identity(box))))])
    await until(lambda: agent.receipt)
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", b"\xc1")])
    await until(lambda: "plan.msgpack" not in agent.problem)
    assert set(agent.applier.enforced) == {box.id}
    await ended(agent, task)
    assert (tmp_path / "plan.msgpack").read_bytes() == encode(plan_for(identity(box)))


async def test_a_plan_that_cannot_be_saved_is_carried_out_all_the_same(
    pin_dir: str, clean: None, new_cgroup: Any, identity: Any, plan_for: Any, until: Any
) -> None:
    box, bus = new_cgroup(), MemoryBus()
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir="/dev/full"))
    task = asyncio.create_task(agent.run())
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(plan_for(identity(box))))])
    await until(lambda: agent.receipt)
    assert set(agent.applier.enforced) == {box.id}
    assert "cannot save the plan" in agent.problem
    await ended(agent, task)


async def test_the_receipt_is_repeated_so_that_others_know_the_node_is_there(
    tmp_path: Path, plan_for: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enforcers.agent.HEARTBEAT", 0.05)
    bus = MemoryBus()
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(plan_for()))])
    agent = Enforcement(bus, str(tmp_path / "no-pins"), NODE)
    task = asyncio.create_task(agent.run())
    await until(lambda: len(bus.records(ENFORCEMENT_STATUS)) >= 3)
    assert len({one.value for one in bus.records(ENFORCEMENT_STATUS)}) == 1
    await ended(agent, task)


async def test_a_receipt_that_the_bus_refuses_is_cut_and_ends_nothing(
    tmp_path: Path, plan_for: Any, until: Any
) -> None:
    many = tuple(
        Refusal(ref=RuleRef(policy=f"shop/{number}"), reason="no backend can", code=RefusalCode.UNSPECIFIED)
        for number in range(300)
    )
    plan = plan_for()
    (tmp_path / "plan.msgpack").write_bytes(encode(msgspec.structs.replace(plan, refused=many)))
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"), record_bytes=4096))
    agent = Enforcement(bus, str(tmp_path / "no-pins"), NODE, EnforceSettings(state_dir=str(tmp_path)))
    task = asyncio.create_task(agent.run())

    async def receipt() -> Any:
        record = (await bus.latest(ENFORCEMENT_STATUS)).get(b"n1")
        return decode_receipt(record.value) if record and record.value else None

    cut = await until(receipt)
    assert (cut.generation, cut.digest, cut.refused) == (plan.generation, plan.digest, ())
    assert "300 rules not enforced" in cut.failed[0]
    assert agent.stats.cut_receipts == 1
    newer = msgspec.structs.replace(plan, generation=2)
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n1", encode(newer))])

    async def whole() -> bool:
        return (await receipt()).generation == 2

    await until(whole)
    assert agent.stats.cut_receipts == 1
    await ended(agent, task)
    await bus.close()
