# SPDX-License-Identifier: Apache-2.0
"""One policy on two nodes whose `enforcement.lsm` differs: each compiles its part, and `get policies` tells what each left out.

Where the kernel has not both BPF LSM programs and AppArmor it is skipped with the reason; `make test-vm` runs it in guests.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.apparmor import AppArmorEnforcer
from enforcers.plan import PlanSettings
from enforcers.planner import PlannerEngine, PlannerSettings
from enforcers.settings import EnforceSettings
from hauberk.verbs.get import policies as listing
from kernel.loading import LoadedPrograms
from policy.documents import key, to_json
from schemas.enforcement import decode_receipt
from schemas.identity import encode as encode_identity
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.topics import ENFORCEMENT_STATUS, INVENTORY, POLICIES

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]
RULES = "file: {matchPaths: [{path: /etc/hauberk-a}, {path: /etc/hauberk-b, fromSource: [{path: /usr/bin/cat}]}]}, action: Block"


async def test_two_orders_give_two_receipts(
    hooked: LoadedPrograms, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path, until: Any
) -> None:
    if why := AppArmorEnforcer().unusable():
        pytest.skip(why)
    bus, boxes = MemoryBus(), {"n1": new_cgroup(), "n2": new_cgroup()}
    await bus.publish(INVENTORY, [Record(one.key, encode_identity(one)) for node, box in boxes.items() for one in (identity(box, node=node),)])  # fmt: skip
    await bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in policies(ksp("held", RULES))])
    planner = PlannerEngine(bus, PlannerSettings(plan=PlanSettings(apparmor=True)))
    agents = [
        Enforcement(bus, hooked.pin_dir, "n1", EnforceSettings(backends=(), lsm=("bpf", "apparmor"))),
        Enforcement(bus, str(tmp_path / "no-pins"), "n2", EnforceSettings(backends=(), lsm=("apparmor", "bpf"))),
    ]
    tasks = [asyncio.create_task(one.run()) for one in (planner, *agents)]
    try:
        await until(lambda: all(one.receipt is not None for one in agents))
        await until(lambda: agents[0].receipt.scopes == 1)

        async def told() -> Any:
            found = {
                record.key.decode(): decode_receipt(record.value)
                for record in (await bus.latest(ENFORCEMENT_STATUS)).values()
            }
            return found if found.keys() == boxes.keys() and found["n1"].scopes else None

        receipts = await until(told)
        assert receipts["n1"].digest != ""
        assert {node: one.backends for node, one in receipts.items()} == {
            "n1": (Backend.BPF_LSM,),
            "n2": (Backend.APPARMOR,),
        }
        assert (receipts["n1"].refused, receipts["n1"].rules) == ((), 2)
        assert [(one.code, one.ref.position) for one in receipts["n2"].refused] == [
            (RefusalCode.SOURCE, "spec.file.matchPaths[1]")
        ]
        given = argparse.Namespace(what="policies", namespace=None, names=[], selector=None)
        (policy,) = (await listing(bus, given)).values
        assert [(one["node"], one["rule"], one["code"]) for one in policy["status"]["notEnforced"]] == [
            ("n2", "spec.file.matchPaths[1]", "source")
        ]
    finally:
        for one in (planner, *agents):
            one.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        from enforcers.apply import Applier

        rest = Applier(hooked.pin_dir, "n1", ("bpf-lsm",))
        rest.clear()
        rest.close()
