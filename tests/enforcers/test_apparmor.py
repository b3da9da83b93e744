# SPDX-License-Identifier: Apache-2.0
"""AppArmor for real: a plan becomes the rules of a profile that processes run under already. Where the kernel has it (`tests/vm`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.apparmor import SECURITYFS, AppArmorEnforcer
from enforcers.apply import Applier
from enforcers.cgroup import cgroup2_mount
from enforcers.profiles import fingerprint
from enforcers.registry import Usable
from enforcers.settings import EnforceSettings
from kernel.audit import AuditStream
from schemas.alert import decode_alert
from schemas.enforcement import PathRule, Plan, ScopePlan, encode
from schemas.identity import Identity, Kind
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.topics import ALERTS, ENFORCEMENT_DESIRED
from schemas.verdict import Action, RuleRef

NAME = "hauberk-test"
WORKER = """
import os, sys
for line in sys.stdin:
    word, path = line.split()
    try:
        if word == "read":
            open(path, "rb").close()
        elif word == "write":
            open(path, "ab").close()
        elif word == "link":
            os.link(path, path + "-link")
        elif word == "move":
            os.rename(path, path + "-moved")
        elif word == "list":
            os.listdir(path)
        else:
            pid = os.posix_spawn(path, [path], os.environ)
            os.waitpid(pid, 0)
        print("done", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.fixture(scope="module")
def enforcer() -> Iterator[AppArmorEnforcer]:
    if os.geteuid():
        pytest.skip("needs root")
    made = AppArmorEnforcer((NAME,))
    if why := made.unusable():
        pytest.skip(why)
    yield made
    for name in ("hauberk-test", "hauberk-host-test"):
        subprocess.run(
            ["apparmor_parser", "--remove"],
            input=f"profile {name} {{\n}}\n",
            text=True,
            capture_output=True,
            check=False,
        )


class Workload:
    """A process in a cgroup of its own, started under `profile` as a runtime would."""

    def __init__(self, cgroup: Path, profile: str) -> None:
        self.cgroup = cgroup
        cgroup.mkdir(exist_ok=True)
        into = f"echo $$ >{cgroup}/cgroup.procs && exec aa-exec -p {profile} -- {sys.executable} -S -E -c '{WORKER}'"
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", into], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, word: str, path: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word} {path}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def scope(self, *rules: PathRule, **more: Any) -> ScopePlan:
        where = str(self.cgroup).removeprefix(cgroup2_mount())
        number = self.cgroup.stat().st_ino
        return ScopePlan(uid="w", cgroups=(number,), cgroup_path=where, workload="w", paths=rules, **more)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(enforcer: AppArmorEnforcer, eventually: Callable[..., Any]) -> Iterator[Callable[..., Workload]]:
    made: list[Workload] = []

    def begin(profile: str = NAME, beside: Workload | None = None) -> Workload:
        cgroup = Path(cgroup2_mount()) / f"hauberk-aa-{os.getpid()}-{time.monotonic_ns()}"
        made.append(Workload(beside.cgroup if beside else cgroup, profile))
        assert made[-1]("list", "/") == "done"
        return made[-1]

    yield begin
    for one in made:
        one.close()
    for cgroup in {one.cgroup for one in made}:
        eventually(lambda cgroup=cgroup: not (cgroup / "cgroup.procs").read_text())
        cgroup.rmdir()
    enforcer.release(NAME)


@pytest.fixture
def applier(enforcer: AppArmorEnforcer, tmp_path: Path) -> Iterator[Applier]:
    made = Applier(str(tmp_path / "none"), "n", chosen=Usable((), (enforcer,), ()))
    yield made
    made.close()


def rule(
    value: object, match: str = "path", cls: Class = Class.FILE, action: Action = Action.BLOCK, **more: Any
) -> PathRule:
    return PathRule(
        cls=cls, match=match, value=str(value), action=action, ref=RuleRef("p", position=str(value)), **more
    )


def revision() -> bytes:
    """The kernel's count of changes to its profiles."""
    with Path(SECURITYFS, "apparmor", "revision").open("rb", buffering=0) as file:
        return file.read(64)


def plan(*scopes: ScopePlan, generation: int = 1) -> Plan:
    return Plan(node="n", generation=generation, digest=str(generation), scopes=scopes)


def test_rules_of_a_running_process_change_and_go(start: Any, applier: Applier, tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    for path in (secret, other):
        path.write_text("x")
    work = start()
    assert work("read", secret) == "done"
    receipt = applier.apply(plan(work.scope(rule(secret))))
    assert (receipt.scopes, receipt.rules, receipt.refused) == (1, 1, ())
    assert [work(word, secret) for word in ("read", "write", "link", "move")] == ["13"] * 4
    assert work("read", other) == "done"
    applier.apply(plan(work.scope(rule(other, read_only=True)), generation=2))
    assert (work("read", secret), work("read", other), work("write", other)) == ("done", "done", "13")
    applier.apply(plan(generation=3))
    assert (work("read", secret), work("write", other)) == ("done", "done")


def test_each_kind_of_rule(start: Any, applier: Applier, tmp_path: Path) -> None:
    (tmp_path / "flat" / "below").mkdir(parents=True)
    (tmp_path / "deep" / "below").mkdir(parents=True)
    for name in ("flat/a", "flat/below/a", "deep/below/a", "x [1]*", "b.key"):
        (tmp_path / name).write_text("x")
    work = start()
    rules = (
        rule(f"{tmp_path}/flat/", "directory"), rule(f"{tmp_path}/deep/", "directory_recursive"),
        rule(f"{tmp_path}/*.key", "pattern"), rule("true", "execname", Class.PROCESS),
        rule("/usr/bin/false", cls=Class.PROCESS),
    )  # fmt: skip
    receipt = applier.apply(plan(work.scope(*rules)))
    assert (receipt.rules, receipt.refused, receipt.failed[1:]) == (5, (), ())
    asked = {name: work("read", tmp_path / name) for name in ("flat/a", "flat/below/a", "deep/below/a", "b.key")}
    assert asked == {"flat/a": "13", "flat/below/a": "done", "deep/below/a": "13", "b.key": "13"}
    assert (work("list", tmp_path / "flat"), work("list", tmp_path / "flat" / "below")) == ("13", "13")
    assert (work("exec", "/usr/bin/true"), work("exec", "/usr/bin/false"), work("exec", "/usr/bin/test")) == (
        "13",
        "13",
        "done",
    )


def test_a_posture_and_its_exceptions(start: Any, applier: Applier) -> None:
    work = start()
    allowed = rule("/usr/bin/true", cls=Class.PROCESS, action=Action.ALLOW)
    applier.apply(plan(work.scope(allowed, posture=((Class.PROCESS, Action.BLOCK),))))
    assert (work("exec", "/usr/bin/true"), work("exec", "/usr/bin/id"), work("read", "/etc/passwd")) == (
        "done",
        "13",
        "done",
    )


def test_another_agent_finds_what_is_loaded_and_writes_nothing(start: Any, applier: Applier, tmp_path: Path) -> None:
    work = start()
    scope = work.scope(rule(tmp_path))
    applier.apply(plan(scope))
    later = AppArmorEnforcer((NAME,))
    assert later.unusable() == ""
    assert later.loaded()[NAME] == fingerprint(later.render(scope).text)
    before = revision()
    assert Applier("/nowhere", "n", chosen=Usable((), (later,), ())).apply(plan(scope)).scopes == 1
    assert revision() == before
    assert work("list", tmp_path) == "13"


def test_who_runs_under_no_profile_is_told(start: Any, applier: Applier, tmp_path: Path) -> None:
    work = start("unconfined")
    receipt = applier.apply(plan(work.scope(rule(tmp_path))))
    assert [(one.backend, one.code) for one in receipt.refused] == [(Backend.APPARMOR, RefusalCode.NO_PROFILE)]
    assert receipt.scopes == 0


def test_two_profiles_in_one_container_keep_what_is_in_force(start: Any, applier: Applier, tmp_path: Path) -> None:
    work = start()
    applier.apply(plan(work.scope(rule(tmp_path))))
    free = start("unconfined", beside=work)
    receipt = applier.apply(plan(work.scope(rule("/etc/hosts")), generation=2))
    assert any("expected all processes to run under one profile" in one for one in receipt.failed)
    assert (work("list", tmp_path), work("read", "/etc/hosts"), free("list", tmp_path)) == ("13", "done", "done")


async def test_denials_become_alerts_with_their_rules_in_order(start: Any, tmp_path: Path, until: Any) -> None:
    work = start()
    bus = MemoryBus()
    for name in ("one", "two"):
        (tmp_path / name).write_text("x")
    rules = (
        rule(tmp_path / "one"),
        rule(tmp_path / "two"),
        rule("/usr/bin/true", cls=Class.PROCESS, action=Action.ALLOW),
    )
    scope = work.scope(*rules, posture=((Class.PROCESS, Action.BLOCK),))
    await bus.publish(ENFORCEMENT_DESIRED, [Record(b"n", encode(plan(scope)))])
    box = Identity(
        kind=Kind.CONTAINER, node="n", uid="w", cgroups=scope.cgroups, container_name="box", namespace="shop"
    )
    settings = EnforceSettings(backends=("apparmor",), profiles=(NAME,))
    agent = Enforcement(bus, str(tmp_path / "no-pins"), "n", settings, {scope.cgroups[0]: box}.get)
    task = asyncio.create_task(agent.run())
    try:
        await until(lambda: agent.receipt is not None and agent.receipt.scopes == 1)
        # Rules that the sensor reports too are not told again; postures are.
        for word, path in (
            ("read", "two"),
            ("exec", "/usr/bin/id"),
            ("read", "one"),
            ("write", "two"),
            ("exec", "/usr/bin/env"),
        ):
            assert await asyncio.to_thread(work, word, tmp_path / path) == "13"
        await until(lambda: agent.stats.apparmor_denials >= 2 and agent.stats.apparmor_elsewhere >= 3)
        told = [decode_alert(record.value) for record in bus.records(ALERTS)]
    finally:
        agent.stop()
        await asyncio.wait_for(task, 60)
    assert [(one.Operation, one.Resource, one.PolicyName, one.Rule) for one in told] == [
        ("Process", "/usr/bin/id", "DefaultPosture", ""), ("Process", "/usr/bin/env", "DefaultPosture", ""),
    ]  # fmt: skip
    assert {(one.Enforcer, one.Action, one.Result, one.ContainerName, one.NamespaceName) for one in told} == {
        ("AppArmor", "Block", "Permission denied", "box", "shop")
    }
    assert len({one.EventID for one in told}) == 2
    assert (agent.stats.apparmor_silenced, agent.stats.apparmor_dropped) == (0, 0)


def test_a_denial_is_in_the_audit_stream(start: Any, applier: Applier, tmp_path: Path, eventually: Any) -> None:
    work = start()
    applier.apply(plan(work.scope(rule(tmp_path / "a b"))))
    stream = AuditStream()
    try:
        (tmp_path / "a b").mkdir()
        link = tmp_path / "link"
        link.symlink_to("a b")
        assert work("list", link) == "13"
        seen: list[Any] = []
        eventually(lambda: seen.extend(stream.take()) or seen)
    finally:
        stream.close()
    (denial,) = [one for one in seen if one.pid == work.process.pid]
    assert (denial.profile, denial.operation, denial.name, denial.mask) == (NAME, "open", f"{tmp_path}/a b/", "r")
    assert stream.lost == 0
