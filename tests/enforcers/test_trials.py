# SPDX-License-Identifier: Apache-2.0
"""A minute for a policy that nobody has confirmed: lifted after it by the agent, by a new agent, and with the agent killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import until

from enforcers import trial_watch, trials
from enforcers.apply import Applier
from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from enforcers.trials import MINUTE, FirstSeen, TrialRecord, noted, standing
from policy.ruleset import compile_ruleset
from schemas.enforcement import Plan, ScopePlan, Trial, encode
from schemas.refusals import RefusalCode

TCP = "network: {matchProtocols: [{protocol: tcp}]}, action: Block"
UDP = "network: {matchProtocols: [{protocol: udp}]}, action: Block"
NODE = "n1"
AGENT = """
import asyncio, sys
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.settings import EnforceSettings
asyncio.run(Enforcement(MemoryBus(), sys.argv[1], "n1", EnforceSettings(state_dir=sys.argv[2])).run())
"""


def since(second: int) -> str:
    return f"{{hauberk.io/unconfirmed-since: '2026-01-31T12:00:{second:02}Z'}}"


def told(plan: Plan) -> dict[str, set[str]]:
    """uid -> protocols that are blocked."""
    return {one.uid: {rule.protocol for rule in one.network} for one in plan.scopes if one.network}


def box(number: int) -> Any:
    return type("Box", (), {"id": 100 + number, "path": f"/docker/{number}"})()


@pytest.fixture
def plan(policies: Any, ksp: Any, identity: Any) -> Plan:
    """tcp for good, udp and sctp on trial, udp first."""
    sctp = UDP.replace("udp", "sctp")
    db = ksp("c", sctp, since(2)).replace("app: web", "app: db")
    ruleset = compile_ruleset(policies(ksp("a", TCP) + ksp("b", UDP, since(1)) + db))
    return Planner(ruleset).plan(NODE, [identity(box(1)), identity(box(2), labels={"app": "db"})], 1)


def test_a_plan_says_what_holds_without_each_trial(plan: Plan) -> None:
    assert told(plan) == {"uid-101": {"tcp", "udp"}, "uid-102": {"sctp"}}
    assert [one.policy for one in plan.trials] == ["KubeArmorPolicy/shop/b", "KubeArmorPolicy/shop/c"]
    seen = noted(plan, {}, "boot", 100.0)
    assert standing(plan, seen, "boot", 100.0 + MINUTE - 1).plan is plan
    both = standing(plan, seen, "boot", 100.0 + MINUTE)
    assert (told(both.plan), both.left) == ({"uid-101": {"tcp"}}, None)
    assert {(one.code, one.ref.policy) for one in both.plan.refused} == {
        (RefusalCode.UNCONFIRMED, "b"), (RefusalCode.UNCONFIRMED, "c"),
    }  # fmt: skip
    assert (both.plan.digest, both.plan.generation) == (plan.digest, plan.generation)


def test_the_younger_one_has_its_own_minute(plan: Plan) -> None:
    first, second = (one.name for one in plan.trials)
    seen = noted(plan, {first: FirstSeen("boot", 50.0)}, "boot", 100.0)
    assert seen[second].seconds == 100.0
    later = standing(plan, seen, "boot", 115.0)
    assert told(later.plan) == {"uid-101": {"tcp"}, "uid-102": {"sctp"}}
    assert later.left == 100.0 + MINUTE - 115.0


def test_another_boot_ends_it_and_so_does_a_file_that_cannot_be_written(plan: Plan, tmp_path: Path) -> None:
    assert told(standing(plan, noted(plan, {}, "boot", 1.0), "later boot", 2.0).plan) == {"uid-101": {"tcp"}}
    (tmp_path / "file").write_text("")
    for place in ("", str(tmp_path / "file")):
        assert told(TrialRecord(place).now(plan).plan) == {"uid-101": {"tcp"}}
    record = TrialRecord(str(tmp_path / "state"))
    assert record.now(plan).plan is plan
    assert record.now(plan).left < MINUTE
    record.now(msgspec.structs.replace(plan, trials=()))
    assert record.read() == {}


def test_equal_plans_have_the_digest_that_they_had_without_trials(policies: Any, ksp: Any, identity: Any) -> None:
    made = [
        Planner(compile_ruleset(policies(ksp("a", TCP, since)))).plan(NODE, [identity(box(1))], 1)
        for since in ("{}", since(1), since(2))
    ]
    assert len({one.digest for one in made}) == 3
    assert made[0].trials == ()


def test_what_is_over_never_holds_whatever_was_seen(plan: Plan) -> None:
    chance = random.Random(7)
    for _ in range(2000):
        now = chance.uniform(0, 500)
        seen = {
            one.name: FirstSeen(chance.choice(("boot", "boot", "other")), chance.uniform(0, 500))
            for one in plan.trials if chance.random() < 0.8
        }  # fmt: skip
        made = standing(plan, seen, "boot", now)
        held = told(made.plan)
        assert held["uid-101"] >= {"tcp"}
        for trial, word in zip(plan.trials, ("udp", "sctp"), strict=True):
            first = seen.get(trial.name)
            over = first is None or first.boot != "boot" or not first.seconds <= now < first.seconds + MINUTE
            assert not (over and any(word in words for words in held.values()))
        assert made.left is None or 0 < made.left <= MINUTE


def test_a_scope_that_is_there_for_the_trial_alone_is_dropped_whole() -> None:
    plan = Plan(node=NODE, generation=1, digest="d", scopes=(ScopePlan(uid="u", cgroups=(1,)),),
                trials=(Trial(policy="KubeArmorHostPolicy//h", since="s", dropped=("u",)),))  # fmt: skip
    assert standing(plan, {}, "boot", 0.0).plan.scopes == ()


def nearly_over(state: Path, plan: Plan, left: float) -> None:
    """A record that says the minute ends in `left` seconds."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    state.mkdir(exist_ok=True)
    seen = {one.name: FirstSeen(trials.boot_id(), now - MINUTE + left) for one in plan.trials}
    (state / trials.FILE).write_bytes(msgspec.json.encode(seen))
    (state / "plan.msgpack").write_bytes(encode(plan))


@pytest.mark.kernel
@pytest.mark.parametrize("killed", [False, True])
async def test_the_minute_ends_with_and_without_the_agent(
    pin_dir: str, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path, server: int, killed: bool
) -> None:
    cgroup, state = new_cgroup(), tmp_path / "state"
    ruleset = compile_ruleset(policies(ksp("b", TCP, since(1))))
    made = Planner(ruleset).plan(NODE, [identity(cgroup)], 1)
    nearly_over(state, made, 20.0)
    agent = subprocess.Popen([sys.executable, "-c", AGENT, pin_dir, str(state)])
    try:
        await until(lambda: cgroup.connect(server) == "EPERM", 18)
        if killed:
            agent.send_signal(signal.SIGKILL)
            agent.wait(30)
            assert cgroup.connect(server) == "EPERM"
        await until(lambda: cgroup.connect(server) == "ok", 60)
        record = TrialRecord(str(state))
        await until(lambda: all(one.lifted for one in record.read().values()), 30)
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.wait(30)
        rest = Applier(pin_dir, NODE)
        rest.clear()
        rest.close()

    # The switch ends by itself: nothing of it is left.
    def watches() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"enforcers.trial_watch" in words:
                found.append(entry.parent.name)
        return found

    await asyncio.wait_for(asyncio.to_thread(os.sync), 60)
    await until(lambda: not watches(), 60)


@pytest.mark.parametrize("lifted", [True, False])
def test_the_switch_stays_for_a_younger_one_after_the_agent_has_lifted_the_older(
    plan: Plan, tmp_path: Path, lifted: bool
) -> None:
    """The agent is gone by then: nobody else is there for the younger one."""
    nearly_over(tmp_path, plan, 0.5)
    first, second = (one.name for one in plan.trials)
    seen = TrialRecord(str(tmp_path)).read()
    seen[first] = FirstSeen(seen[first].boot, seen[first].seconds - 30.0, lifted)
    (tmp_path / trials.FILE).write_bytes(msgspec.json.encode(seen))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    watch = trial_watch.TrialWatch("/none", NODE, EnforceSettings(state_dir=str(tmp_path)), now)
    assert trial_watch._wait(watch)
    over = {one.name for one in TrialRecord(str(tmp_path)).now(plan).over}
    assert over == ({first, second} if lifted else {first})
