# SPDX-License-Identifier: Apache-2.0
"""Rows of unknown containers wait, and whatever the order of frames, identities and time, none is lost or told twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.commit_tracker import place_of
from processors.engine import ProcessorSettings
from processors.parking import ParkingSettings
from schemas.expand import json_lines
from schemas.identity import Identity, Kind
from schemas.operations import Operation


def container(cgroup: int, **fields: object) -> Identity:
    fields.setdefault("namespace", "demo")
    return Identity(
        kind=Kind.CONTAINER,
        node="node-1",
        uid=f"{cgroup:064x}",
        cgroups=(cgroup,),
        container_name=f"c{cgroup}",
        **fields,
    )


async def test_rows_wait_for_their_container(node, stage):
    early = node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500)
    known = node.behaviour(Operation.OPEN, "/b", syscall=257)
    node.row(early)
    node.row(known)
    (delivery,) = await stage.take(node.record())
    await stage.pass_time(2)
    assert stage.summaries == []
    assert stage.processor.tracker.done() == []
    assert stage.processor.stats().waiting == 1
    stage.identity(container(500))
    await stage.pass_time(2)
    assert {summary.identity.container_name for summary in stage.summaries} == {"web", "c500"}
    assert stage.counted() == 2
    assert [place_of(one) for one in stage.processor.tracker.done()] == [place_of(delivery)]
    assert stage.processor.stats().told_unknown == 0


async def test_after_the_time_they_are_told_with_what_is_known(node, stage):
    node.cgroups = {500: b"/kubepods/pod1/" + b"ab" * 32}
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500))
    await stage.take(node.record())
    await stage.pass_time(4.9)
    assert stage.telemetry == []
    await stage.pass_time(0.2)
    await stage.pass_time(2)
    (summary,) = stage.summaries
    assert (summary.identity.uid, summary.identity.complete) == ("ab" * 32, False)
    assert stage.processor.stats().told_unknown == 1
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500))
    await stage.take(node.record())
    assert stage.processor.stats().waiting == 0, "a place that was given up is not waited for again"
    stage.identity(container(500))
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500))
    await stage.take(node.record())
    assert stage.telemetry[-1].identities[0].container_name == "c500"


async def test_an_incomplete_container_is_waited_for(node, stage):
    stage.identity(container(500, complete=False))
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=500))
    await stage.take(node.record())
    assert stage.telemetry == []
    stage.identity(container(500, image="nginx"))
    await stage.pass_time(0.1)
    assert stage.telemetry[0].identities[0].image == "nginx"


async def test_a_full_room_tells_the_oldest(node, make_stage, host):
    stage = make_stage(ProcessorSettings(parking=ParkingSettings(max_events=2)))
    stage.identity(host)
    for path in ("/a", "/b", "/c"):
        node.row(node.behaviour(Operation.OPEN, path, syscall=257, cgroup=500))
        await stage.take(node.record())
    assert stage.processor.stats().told_unknown == 1
    await stage.finish()
    assert stage.counted() == 3


async def test_a_missing_definition_is_waited_for(node, stage):
    late = node.behaviour(Operation.OPEN, "/a", syscall=257)
    node.row(late)
    await stage.take(node.record(forget=frozenset({late})))
    assert stage.telemetry == []
    node.row(late)
    await stage.take(node.record())
    await stage.finish()
    assert stage.counted() == 2
    assert stage.processor.stats().undefined == 0


async def test_a_definition_that_never_comes_is_told_as_a_loss(node, stage):
    late = node.behaviour(Operation.OPEN, "/a", syscall=257)
    node.row(late)
    node.row(late)
    await stage.take(node.record(forget=frozenset({late})))
    await stage.finish()
    assert stage.processor.stats().undefined == 2
    (alert,) = stage.alerts
    assert (alert.Type, alert.Operation, alert.EventData) == ("SystemEvent", "EventsLost", {"undefined": "2"})
    assert len(stage.processor.tracker.done()) == 1


async def test_nested_cgroups_belong_to_the_container_above(node, stage, web):
    node.cgroups = {900: f"{web.cgroup_path}/inner/deeper".encode()}
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=900))
    await stage.take(node.record())
    assert stage.telemetry[0].identities[0].container_name == "web"


async def test_cgroups_beyond_those_an_identity_lists_have_their_owner_at_once(node, stage, web):
    """A container lists 512 of its cgroups (`sensors.containers.inner`): the others are found by their paths."""
    for cgroup in range(1000, 1600):
        node.cgroups = {cgroup: f"{web.cgroup_path}/made/{cgroup}".encode()}
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=cgroup))
        await stage.take(node.record())
    stats = stage.processor.stats()
    assert (stats.waiting, stats.told_unknown) == (0, 0)
    assert {one.container_name for frame in stage.telemetry for one in frame.identities} == {"web"}


async def test_new_cgroups_have_nothing_else_judged_again(node, stage, web):
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    for cgroup in range(1000, 1020):
        node.cgroups = {cgroup: f"{web.cgroup_path}/{cgroup}".encode()}
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
        await stage.take(node.record())
    assert stage.processor.stats().revalidated == 0
    node.row(node.behaviour(Operation.OPEN, "/b", syscall=257, cgroup=2000))
    await stage.take(node.record())
    assert stage.processor.stats().waiting == 1, "its path is not known"
    node.cgroups = {2000: f"{web.cgroup_path}/late".encode()}
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    assert stage.processor.stats().waiting == 0, "whoever waits for the path is asked again"


async def test_ended_containers_are_kept_for_late_events(node, stage, web):
    stage.gone(web)
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    assert stage.telemetry[0].identities[0].container_name == "web"
    stage.now += 61
    stage.processor.inventory.forget_ended()
    node.row(node.behaviour(Operation.OPEN, "/other", syscall=257))
    await stage.take(node.record())
    assert stage.processor.stats().waiting == 1


async def test_the_hosts_own_namespaces_are_the_host(node, stage):
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=4711, pid_ns=1, mnt_ns=2))
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=1, pid_ns=8, mnt_ns=9))
    await stage.take(node.record())
    assert [identity.kind for identity in stage.telemetry[0].identities] == [Kind.NODE]


async def test_without_cgroup_v2_the_namespace_pair_answers(node, stage):
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=0))
    await stage.take(node.record())
    assert stage.telemetry[0].identities[0].container_name == "web"


async def test_a_host_cgroup_that_nobody_announced_is_told_as_host(node, stage):
    node.cgroups = {700: b"/system.slice/cron.service"}
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=700))
    await stage.take(node.record())
    await stage.finish()
    assert stage.summaries[0].identity.kind is Kind.HOST


async def test_the_root_cgroup_is_the_node_though_nobody_announced_it(make_stage, node):
    stage = make_stage()
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=1))
    await stage.take(node.record())
    await stage.finish()
    assert stage.summaries[0].identity.kind is Kind.NODE


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6)),
        st.tuples(st.just("fold"), st.integers(0, 5), st.integers(1, 50)),
        st.tuples(st.just("forget"), st.integers(0, 5)),
        st.tuples(st.just("identity"), st.integers(500, 503)),
        st.tuples(st.just("incomplete"), st.integers(500, 503)),
        st.tuples(st.just("gone"), st.integers(500, 503)),
        st.tuples(st.just("time"), st.sampled_from([0.0, 0.3, 1.1, 3.0, 70.0])),
        st.tuples(st.just("policy"), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, cached=st.sampled_from([2, 4, 100]), room=st.sampled_from([3, 1000]))
def test_nothing_is_lost_under_any_interleaving(steps, cached, room, make_stage, make_node, host, make_policy):
    async def run() -> None:
        from processors.judge import JudgeSettings

        stage = make_stage(
            ProcessorSettings(judge=JudgeSettings(cached_behaviours=cached), parking=ParkingSettings(max_events=room))
        )
        stage.identity(host)
        node = make_node()
        ids = [
            node.behaviour(Operation.OPEN, f"/f{index}", syscall=257, cgroup=500 + index % 4, mnt_ns=600 + index % 4)
            for index in range(6)
        ]
        expected: Counter[str] = Counter()
        for step in steps:
            match step:
                case ("frame", rows):
                    for index, jump in rows:
                        node.row(ids[index], step=jump * 20_000_000_000 + 1)
                        expected[f"/f{index}"] += 1
                    await stage.take(node.record())
                case ("fold", index, many):
                    node.fold(ids[index], many)
                    expected[f"/f{index}"] += many
                    await stage.take(node.record())
                case ("forget", index):
                    node.row(ids[index])
                    expected[f"/f{index}"] += 1
                    await stage.take(node.record(forget=frozenset({ids[index]})))
                case ("identity", cgroup):
                    stage.identity(container(cgroup))
                case ("incomplete", cgroup):
                    stage.identity(container(cgroup, complete=False))
                case ("gone", cgroup):
                    stage.gone(container(cgroup))
                case ("time", seconds):
                    await stage.pass_time(seconds)
                case ("policy", block):
                    action = "Block" if block else "Audit"
                    stage.policies(make_policy(file={"matchPaths": [{"path": "/f1"}]}, action=action))
        await stage.finish()
        stats = stage.processor.stats()
        counted: Counter[str] = Counter()
        for summary in stage.summaries:
            for entry in summary.entries:
                assert summary.bucket == entry.first // 60_000_000_000 * 60
                counted[entry.behaviour.resource] += entry.count
        assert counted.total() + stats.undefined == node.sent == stats.events
        assert counted <= expected
        logged = Counter(
            msgspec.json.decode(line)["EventID"] for frame in stage.telemetry for line in json_lines(frame)
        )
        assert not logged or max(logged.values()) == 1
        assert (stats.waiting, stats.open_frames) == (0, 0)
        # In order, each frame in one record per workload and minute.
        told = Counter(
            (summary.identity.uid, summary.bucket, number)
            for summary in stage.summaries
            for number in range(summary.first_frame, summary.last_frame + 1)
        )
        assert not told or max(told.values()) == 1
        last = [summary.last_frame for summary in stage.summaries]
        assert last == sorted(last)
        done = stage.processor.tracker.done()
        assert [delivery.offset for delivery in done] == ([node.number - 1] if node.number else [])

    asyncio.run(run())
