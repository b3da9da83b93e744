# SPDX-License-Identifier: Apache-2.0
"""Summaries of what never repeats: names while the budget of a minute lasts, then directories, with exact counts."""

from __future__ import annotations

from collections import Counter

import pytest

from processors.engine import ProcessorSettings
from processors.names import NameSettings
from schemas.operations import Access, Operation

MOST = 16


@pytest.fixture
def stage(make_stage, web, host):
    made = make_stage(ProcessorSettings(names=NameSettings(per_minute=MOST)))
    made.identity(host)
    made.identity(web)
    return made


def listed(stage) -> Counter[tuple[str, bool]]:
    """(resource, whether it is a remainder) -> events."""
    found: Counter[tuple[str, bool]] = Counter()
    for summary in stage.summaries:
        for entry in summary.entries:
            found[entry.behaviour.resource, bool(entry.behaviour.access & Access.UNTOLD)] += entry.count
    return found


async def test_a_backup_is_counted_by_directory(node, stage, web):
    for number in range(100):
        node.row(node.behaviour(Operation.OPEN, f"/data/{number % 2}/{number}", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    found = listed(stage)
    assert sum(found.values()) == 100
    assert sum(1 for _, left_out in found if not left_out) == MOST
    assert {name: many for (name, left_out), many in found.items() if left_out} == {"/data/0/": 42, "/data/1/": 42}
    assert stage.processor.stats().unlisted == 84


async def test_what_is_listed_stays_listed_and_the_next_minute_begins_anew(node, stage, web):
    ids = [node.behaviour(Operation.OPEN, f"/a/{number}", syscall=257) for number in range(MOST + 4)]
    for _ in range(3):
        for ident in ids:
            node.row(ident)
        await stage.take(node.record())
    node.row(ids[-1], step=60_000_000_000)
    await stage.take(node.record())
    await stage.finish()
    found = listed(stage)
    assert found["/a/0", False] == 3
    assert found["/a/", True] == 12
    assert found[f"/a/{MOST + 3}", False] == 1


async def test_directories_without_end_are_one_row(node, stage, web):
    for number in range(200):
        node.row(node.behaviour(Operation.OPEN, f"/{number}/x", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    found = listed(stage)
    assert sum(found.values()) == 200
    assert len(found) == 2 * MOST + 1
    assert found["", True] == 200 - 2 * MOST


async def test_executables_and_users_without_end_are_few_rows(node, stage, web):
    for number in range(300):
        node.row(node.behaviour(Operation.OPEN, f"/{number}/x", syscall=257, executable=f"/bin/{number}", uid=number))
    await stage.take(node.record())
    await stage.finish()
    entries = [entry for summary in stage.summaries for entry in summary.entries]
    assert sum(entry.count for entry in entries) == 300
    assert len(entries) == 3 * MOST + 1
    (rest,) = [entry for entry in entries if entry.behaviour.executable == ""]
    assert rest.count == 300 - 3 * MOST
    assert (rest.behaviour.operation, rest.behaviour.access, rest.behaviour.resource) == (
        Operation.OPEN,
        Access.UNTOLD,
        "",
    )


async def test_what_runs_and_what_a_rule_speaks_of_is_never_left_out(node, stage, web, make_policy):
    stage.policies(make_policy(action="Audit", file={"matchPaths": [{"path": "/etc/secret"}]}))
    for number in range(MOST):
        node.row(node.behaviour(Operation.OPEN, f"/data/{number}", syscall=257))
    node.row(node.behaviour(Operation.EXEC, "/bin/late", syscall=59))
    node.row(node.behaviour(Operation.OPEN, "/etc/secret", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    found = listed(stage)
    assert found["/bin/late", False] == 1
    assert found["/etc/secret", False] == 1
    assert stage.processor.stats().unlisted == 0


async def test_names_of_many_workloads_stay_within_their_bytes(node, make_stage, host, web, replace):
    stage = make_stage(ProcessorSettings(names=NameSettings(cached_bytes=65536)))
    stage.identity(host)
    for number in range(8):
        place = {"cgroup": 1000 + number, "mnt_ns": 100 + number}
        stage.identity(
            replace(web, uid=f"{number:064}", cgroups=(1000 + number,), cgroup_path=f"/c/{number}", mnt_ns=100 + number)
        )
        for name in range(300):
            node.row(node.behaviour(Operation.OPEN, f"/data/{name}", syscall=257, **place))
    await stage.take(node.record())
    assert 0 < stage.processor.pipeline.names.held_bytes <= 65536
    await stage.finish()
    assert sum(listed(stage).values()) == 2400
