# SPDX-License-Identifier: Apache-2.0
"""Which directories' names nobody needs, and that this is taken back before anybody may."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from processors.quiet import FROM
from schemas.operations import Access, Operation
from schemas.topics import EVENTS_RAW


class Told:
    """What the sensor was told, and which policies were in force when it was."""

    def __init__(self) -> None:
        self.places: set[tuple[str, int, str]] = set()
        self.taken_back = 0

    def __call__(self, places: list[tuple[str, int, str]] | None) -> None:
        if places is None:
            self.taken_back += 1
            self.places.clear()
        else:
            self.places.update(places)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def logged():
    return [False]


@pytest.fixture
def stage(make_stage, web, host, told, logged):
    made = make_stage(due=lambda header, rows, counted: None, needless=told, logged=lambda: logged[0])
    made.identity(host)
    made.identity(web)
    return made


def opens(node, directory: str, many: int = FROM, **more: object) -> None:
    for number in range(many):
        node.row(node.behaviour(Operation.OPEN, f"{directory}{number}", syscall=257, **more))


async def test_a_directory_that_no_rule_reaches_is_quiet(node, stage, told, web, make_policy):
    stage.policies(
        make_policy(action="Audit", file={"matchDirectories": [{"dir": "/etc/", "recursive": True}]}),
        make_policy(name="q", action="Block", file={"matchPaths": [{"path": "/srv/key"}]}),
    )
    for directory in ("/data/", "/etc/", "/etc/ssl/", "/srv/", "/srv/other/"):
        opens(node, directory)
    opens(node, "/few/", FROM - 1)
    await stage.take(node.record())
    cgroup = web.cgroups[0]
    assert told.places == {(node.name, cgroup, "/data/"), (node.name, cgroup, "/srv/other/")}


@pytest.mark.parametrize(
    "spec",
    [
        {"action": "Audit", "file": {"matchPatterns": [{"pattern": "/data/*.key"}]}},
        {"action": "Audit", "process": {"matchPaths": [{"path": "/bin/x"}]}, "syscalls": {"matchSyscalls": [{"syscall": ["openat"]}]}},
        {"action": "Allow", "file": {"matchDirectories": [{"dir": "/usr/", "recursive": True}]}},
    ],
    ids=["pattern", "syscalls", "posture"],
)  # fmt: skip
async def test_what_a_pattern_a_system_call_or_a_posture_may_report_keeps_its_name(
    node, stage, told, make_policy, spec
):
    stage.policies(make_policy(**spec))
    opens(node, "/data/")
    await stage.take(node.record())
    assert told.places == set()


async def test_what_is_logged_keeps_its_name(node, stage, told, logged):
    opens(node, "/data/")
    await stage.take(node.record())
    assert told.places
    logged[0] = True
    opens(node, "/more/")
    await stage.take(node.record())
    assert told.places == set()


async def test_it_is_taken_back_before_another_policy_or_identity_is_in_force(
    node, stage, told, web, replace, make_policy
):
    opens(node, "/data/")
    await stage.take(node.record())
    assert told.places
    judged = stage.processor.judge
    in_force = judged._ruleset
    seen = []
    quiet = judged.on_change
    judged.on_change = lambda: (quiet(), seen.append((judged._ruleset is in_force, set(told.places))))
    stage.policies(make_policy(action="Audit", file={"matchDirectories": [{"dir": "/data/"}]}))
    assert seen == [(True, set())]
    opens(node, "/data/x/")
    await stage.take(node.record())
    assert told.places
    stage.identity(replace(web, labels={"app": "other"}))
    assert told.places == set()


async def test_what_the_kernel_told_by_directory_is_no_loss_and_counted_exactly(node, stage, told, web):
    ident = node.behaviour(Operation.OPEN, "/data/", syscall=257, access=Access.READ | Access.UNTOLD)
    for _ in range(50):
        node.row(ident)
    await stage.take(node.record())
    await stage.finish()
    (entry,) = [entry for summary in stage.summaries for entry in summary.entries]
    assert (entry.behaviour.resource, entry.count) == ("/data/", 50)
    assert entry.behaviour.access & Access.UNTOLD
    stats = stage.processor.stats()
    assert (stats.unlisted, stats.unnamed) == (50, 0)
    assert not stage.alerts


async def test_a_stage_that_begins_anew_takes_back_what_the_one_before_said(make_stage, told):
    make_stage(needless=told)
    assert told.taken_back == 1


async def test_it_is_taken_back_when_a_container_is_forgotten(node, stage, told, web):
    opens(node, "/data/")
    await stage.take(node.record())
    assert told.places
    stage.gone(web)
    stage.now += 3600
    stage.processor.inventory.forget_ended()
    assert told.places == set()


async def test_a_stage_that_ends_takes_back_what_it_said(node, stage, told):
    running = asyncio.create_task(stage.processor.run())
    await until(lambda: stage.processor.pump.running)
    opens(node, "/data/")
    await stage.bus.publish(EVENTS_RAW, [node.record()])
    await until(lambda: told.places)
    stage.processor.stop()
    await running
    assert told.places == set()
