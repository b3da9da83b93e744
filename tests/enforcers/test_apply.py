# SPDX-License-Identifier: Apache-2.0
"""What must hold whoever dies: no window without rules, no write without a change, nothing lost by a kill, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enforcers.apply import Applier
from enforcers.plan import Planner, PlanSettings
from enforcers.tables import KernelTables
from policy.ruleset import compile_ruleset
from schemas.enforcement import Plan, encode
from schemas.kernel import ScopeFlag
from schemas.refusals import RefusalCode

pytestmark = pytest.mark.kernel

NO_TCP = "network: {matchProtocols: [{protocol: tcp}]}, action: Block"
NODE = "n1"


@pytest.fixture
def make_plan(policies: Any, ksp: Any) -> Any:
    def make(*identities: Any, spec: str = NO_TCP, generation: int = 1, name: str = "p", **settings: Any) -> Plan:
        ruleset = compile_ruleset(policies(ksp(name, spec, "{hauberk.io/signal: enabled}")))
        return Planner(ruleset, PlanSettings(**settings)).plan(NODE, identities, generation)

    return make


@pytest.fixture
def applier(pin_dir: str) -> Any:
    one = Applier(pin_dir, NODE, grace=0.0)
    yield one
    one.clear()
    one.close()


def test_an_unchanged_plan_writes_nothing(applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any) -> None:
    box = new_cgroup()
    plan = make_plan(identity(box))
    applier.apply(plan)
    writes = applier.writes
    assert writes > 0
    receipt = applier.apply(msgspec.structs.replace(plan, generation=2))
    assert applier.writes == writes
    assert (receipt.generation, receipt.scopes, receipt.rules) == (2, 1, 1)
    assert receipt.failed == ()


def test_equal_containers_share_a_table(applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any) -> None:
    boxes = [new_cgroup() for _ in range(3)]
    applier.apply(make_plan(*map(identity, boxes)))
    assert len({table for table, _ in applier.enforced.values()}) == 1
    writes = applier.writes
    applier.apply(make_plan(*map(identity, boxes[:2])))
    assert applier.writes == writes + 1  # the third scope, not the table
    assert set(applier.enforced) == {box.id for box in boxes[:2]}


def test_a_restarted_agent_recognises_what_is_in_force(
    applier: Applier, pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any
) -> None:
    box = new_cgroup()
    plan = make_plan(identity(box))
    applier.apply(plan)
    again = Applier(pin_dir, NODE, grace=0.0)
    try:
        assert again.enforced == applier.enforced
        again.apply(plan)
        assert again.writes == 0
    finally:
        again.close()


HELD = """
import sys
from enforcers.apply import Applier
from schemas.enforcement import decode_plan
applier = Applier(sys.argv[1], "n1")
applier.apply(decode_plan(open(sys.argv[2], "rb").read()))
print("applied", flush=True)
if len(sys.argv) > 3:  # go on switching between two plans until killed
    plans = [decode_plan(open(one, "rb").read()) for one in sys.argv[2:]]
    while True:
        for plan in plans:
            applier.apply(plan)
            applier.sweep()
sys.stdin.read()
"""


def start_applier(pin_dir: str, *plans: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, pin_dir, *map(str, plans)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline() != b"applied\n":
        end(process)
        raise AssertionError("the applier ended before it had applied anything")
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_enforcement_outlives_the_agent(
    pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any, tmp_path: Path, server: int
) -> None:
    box = new_cgroup()
    file = tmp_path / "plan"
    file.write_bytes(encode(make_plan(identity(box))))
    process = start_applier(pin_dir, file)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    try:
        assert box.connect(server) == "EPERM"
    finally:
        one = Applier(pin_dir, NODE)
        assert set(one.enforced) == {box.id}
        one.clear()
        one.close()
    assert box.connect(server) == "ok"


def test_killed_at_any_moment_it_is_always_denied(
    pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any, tmp_path: Path, server: int
) -> None:
    box = new_cgroup()
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(encode(make_plan(identity(box))))
    both = "network: {matchProtocols: [{protocol: tcp}, {protocol: udp}, {protocol: icmp}]}, action: Block"
    two.write_bytes(encode(make_plan(identity(box), spec=both)))
    try:
        for number in range(6):
            process = start_applier(pin_dir, one, two)
            try:
                assert box.connect(server) == "EPERM"
                # A different moment of the switching each time: more connects before the kill.
                assert {box.connect(server) for _ in range(number % 3)} <= {"EPERM"}
            finally:
                end(process)
            assert box.connect(server) == "EPERM"
    finally:
        rest = Applier(pin_dir, NODE)
        rest.clear()
        rest.close()


LOOP = """
import os, socket, sys
flag, denied, passed = sys.argv[1], 0, 0
print("go", flush=True)
# On a busy machine it may not have run at all by the time the flag is there.
while not os.path.exists(flag) or denied + passed < 1000:
    for _ in range(50):
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
            passed += 1
        except PermissionError:
            denied += 1
print(denied, passed, flush=True)
"""


def test_a_switch_under_load_has_no_window(
    applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any, tmp_path: Path
) -> None:
    box = new_cgroup()
    rules = ", ".join(f"{{path: /opt/tool-{n}}}" for n in range(50))
    first = make_plan(identity(box), spec="network: {matchProtocols: [{protocol: udp}]}, action: Block")
    both = f"network: {{matchProtocols: [{{protocol: udp}}]}}, process: {{matchPaths: [{rules}]}}, action: Block"
    second = make_plan(identity(box), spec=both)
    applier.apply(first)
    flag = tmp_path / "stop"
    process = box.start(sys.executable, "-S", "-c", LOOP, str(flag), stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"go\n"
        for number in range(150):
            applier.apply((second, first)[number % 2])
            applier.sweep()
        flag.touch()
        denied, passed = map(int, process.communicate(timeout=90)[0].split())
    finally:
        end(process)
    assert passed == 0
    assert denied > 100


def test_a_full_map_keeps_what_was_in_force(
    applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any, server: int
) -> None:
    box = new_cgroup()
    applier.apply(make_plan(identity(box)))
    before = applier.enforced
    rules = ", ".join(f"{{path: /opt/t{n}}}" for n in range(3))
    plan = make_plan(identity(box), spec=f"process: {{matchPaths: [{rules}]}}, action: Block", signal=True)
    scope = plan.scopes[0]
    many = tuple(msgspec.structs.replace(scope.paths[0], value=f"/x/{n}") for n in range(300_000))
    full = msgspec.structs.replace(plan, scopes=(msgspec.structs.replace(scope, paths=many),))
    receipt = applier.apply(full)
    assert "are full: 300000 entries more were asked for; raise `sensor.load.rules`" in receipt.failed[0]
    assert applier.enforced == before
    assert box.connect(server) == "EPERM"


def test_the_root_and_the_agents_own_cgroup_are_never_enforced(
    applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any
) -> None:
    box = new_cgroup()
    for cgroups, path in (((1,), "/"), ((1,), box.path), ((box.id + 10_000,), box.path), ((0,), "")):
        receipt = applier.apply(make_plan(identity(box, cgroups=cgroups, cgroup_path=path)))
        assert receipt.scopes == 0
    assert applier.enforced == {}


def test_no_programs_means_nothing_is_enforced_and_says_so(
    tmp_path: Path, new_cgroup: Any, identity: Any, make_plan: Any
) -> None:
    one = Applier(str(tmp_path), NODE)
    receipt = one.apply(make_plan(identity(new_cgroup())))
    assert receipt.backends == ()
    assert "nothing is enforced" in receipt.failed[0]


def test_no_backend_is_said_loudly(pin_dir: str) -> None:
    one = Applier(pin_dir, NODE, backends=())
    assert "nothing is enforced" in one.problems[0]
    one.close()


def test_a_signal_only_node_denies_no_socket(
    pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any, server: int
) -> None:
    box = new_cgroup()
    one = Applier(pin_dir, NODE, backends=("signal",))
    try:
        receipt = one.apply(make_plan(identity(box)))
        assert receipt.rules == 0
        assert [(one.code, "`cgroup`" in one.reason) for one in receipt.refused] == [(RefusalCode.WRONG_CLASS, True)]
        assert box.connect(server) == "ok"
    finally:
        one.clear()
        one.close()


def test_a_flag_that_the_settings_no_longer_ask_for_goes(
    applier: Applier, pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any
) -> None:
    """Of each flag there is: with `io_uring = "stop"` every process that made a ring went on being killed after it was `pass` again."""
    box = new_cgroup()
    plan = make_plan(identity(box), spec="process: {matchPaths: [{path: /bin/nothing}]}, action: Block")
    strict = Applier(pin_dir, NODE, grace=0.0, rings=False)
    strict.apply(plan)
    asked = applier.enforced[box.id][1]
    assert ScopeFlag.STOP_IO_URING in asked
    strict.close()
    applier.apply(plan)
    assert applier.enforced[box.id][1] == asked & ~ScopeFlag.STOP_IO_URING
    assert (
        applier.apply(make_plan(identity(box), spec="process: {matchPaths: [{path: /x}]}, action: Audit")).scopes == 0
    )
    assert applier.enforced == {}


def test_a_cgroup_that_went_first_leaves_no_pins(
    applier: Applier, pin_dir: str, new_cgroup: Any, identity: Any, make_plan: Any
) -> None:
    box = new_cgroup()
    gone = type(box)(f"{box.path}-gone")
    who = identity(gone)
    applier.apply(make_plan(who))
    assert [name for name in os.listdir(f"{pin_dir}/links") if str(gone.id) in name]
    gone.close()
    receipt = applier.apply(make_plan(who, generation=2))
    assert (receipt.scopes, receipt.failed) == (0, ())
    assert not [name for name in os.listdir(f"{pin_dir}/links") if str(gone.id) in name]
    assert applier.enforced == {}


def test_a_scope_that_cannot_be_carried_out_whatever_the_error_takes_no_other_along(
    applier: Applier, new_cgroup: Any, identity: Any, make_plan: Any, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = new_cgroup(), new_cgroup()
    applier.apply(make_plan(identity(bad), identity(good)))
    assert (bad.connect(server), good.connect(server)) == ("EPERM", "EPERM")
    before = applier.enforced
    fill, switch = KernelTables.fill, KernelTables.switch
    spoiled: list[str] = []

    def filling(tables: KernelTables, *given: Any) -> None:
        if "fill" in spoiled:
            raise OverflowError("int too large")
        fill(tables, *given)

    def switching(tables: KernelTables, cgroup: int, *given: Any) -> bool:
        if "switch" in spoiled and cgroup == bad.id:
            raise RecursionError("too deep")
        return switch(tables, cgroup, *given)

    monkeypatch.setattr(KernelTables, "fill", filling)
    monkeypatch.setattr(KernelTables, "switch", switching)
    more = make_plan(
        identity(bad),
        identity(good),
        spec="network: {matchProtocols: [{protocol: udp}, {protocol: tcp}]}, action: Block",
    )
    spoiled[:] = ["fill"]
    receipt = applier.apply(more)
    assert len([one for one in receipt.failed if "OverflowError: int too large" in one]) == 2
    assert applier.enforced == before
    spoiled[:] = ["switch"]
    receipt = applier.apply(more)
    assert [one for one in receipt.failed if "RecursionError: too deep" in one]
    applier.sweep()
    assert applier.enforced.keys() == before.keys()
    assert applier.enforced[bad.id] == before[bad.id]
    assert applier.enforced[good.id] != before[good.id]
    assert (bad.connect(server), good.connect(server)) == ("EPERM", "EPERM")
