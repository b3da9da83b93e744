# SPDX-License-Identifier: Apache-2.0
"""Counting and caching: a cache of any size, in any state, gives the answer that no cache would give."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.engine import ProcessorSettings
from processors.judge import JudgeSettings
from schemas.errors import DecodeError, Incompatible
from schemas.frame import Frame, definition, encode
from schemas.kernel import BEHAVIOUR, DefinitionKind
from schemas.operations import Operation


async def test_known_behaviours_are_not_judged_again(node, stage):
    ids = [node.behaviour(Operation.OPEN, f"/{index}", syscall=257) for index in range(5)]
    for _ in range(3):
        for ident in ids:
            node.row(ident)
        await stage.take(node.record())
    stats = stage.processor.stats()
    assert (stats.judged, stats.hits) == (5, 10)


async def test_an_identity_that_changes_is_asked_again_and_the_rest_kept(node, stage, web, replace):
    mine = node.behaviour(Operation.OPEN, "/a", syscall=257)
    hosts = node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=1)
    for _ in range(2):
        node.row(mine)
        node.row(hosts)
        await stage.take(node.record())
        stage.identity(replace(web, container_name="renamed"))
    assert stage.telemetry[1].identities[0].container_name == "renamed"
    stats = stage.processor.stats()
    assert (stats.judged, stats.revalidated) == (3, 1)


async def test_a_policy_takes_effect_on_the_next_frame(node, stage, make_policy):
    read = node.behaviour(Operation.OPEN, "/etc/a", syscall=257)
    for _ in range(2):
        node.row(read)
        await stage.take(node.record())
        stage.policies(make_policy(file={"matchPaths": [{"path": "/etc/a"}]}, action="Audit"))
    assert [alert.EventID for alert in stage.alerts] == ["node-1:boot-a:2"]


async def test_an_id_means_another_thing_after_a_restart(stage, make_node, monkeypatch):
    first, second = make_node(run="run-1"), make_node(run="run-2")
    ident = first.behaviour(Operation.OPEN, "/old", syscall=257)
    other = second.behaviour(Operation.OPEN, "/new", syscall=257)
    second.behaviours[ident] = second.behaviours.pop(other)
    first.row(ident)
    second.row(ident)
    await stage.take(first.record(), second.record())
    assert [frame.behaviours[0].behaviour.resource for frame in stage.telemetry] == ["/old", "/new"]


async def test_visibility_decides_what_is_logged_and_audit_rules_do_not_need_it(node, stage, web, replace, make_policy):
    stage.identity(replace(web, annotations={"kubearmor-visibility": "network"}))
    stage.policies(make_policy(file={"matchPaths": [{"path": "/etc/a"}]}, action="Audit"))
    opened = node.behaviour(Operation.OPEN, "/etc/a", syscall=257)
    sent = node.behaviour(
        Operation.CONNECT, family=2, socket_type=1, protocol=6, address="10.0.0.1", port=80, syscall=42
    )
    node.row(opened)
    node.row(sent)
    node.fold(opened, 7)
    await stage.take(node.record())
    (frame,) = stage.telemetry
    assert [entry.behaviour.operation for entry in frame.behaviours] == [Operation.CONNECT]
    assert (len(frame.rows) // 64, frame.folded, frame.header.events) == (1, b"", 1)
    assert [alert.Count for alert in stage.alerts] == [1, 7]
    await stage.finish()
    assert stage.counted() == 9


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (definition(DefinitionKind.BEHAVIOUR, 5, b"short"), DecodeError),
        (
            definition(DefinitionKind.BEHAVIOUR, 5, BEHAVIOUR.struct.pack(77, *[0] * 6, 60000, *[0] * 14, b"", 0)),
            Incompatible,
        ),
        (b"\x01" * 9, DecodeError),
    ],
)
async def test_a_frame_that_cannot_be_read_is_refused_and_leaves_nothing_behind(broken, error, node, stage):
    node.row(5)
    made = node.frame()
    frame = Frame(header=made.header, occurrences=made.occurrences, definitions=broken)
    record = type(node.record())(b"node-1", encode(frame))
    with pytest.raises(error):
        await stage.take(record)
    await stage.finish()
    assert (stage.telemetry, stage.summaries) == ([], [])
    assert stage.processor.stats().bad_frames == 1
    assert len(stage.processor.tracker.done()) == 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8),
    cached=st.sampled_from([2, 3, 6, 1000]),
)
def test_eviction_keeps_results_equal(rows, cached, make_stage, make_node, host, web, make_policy):
    async def told(size: int):
        stage = make_stage(ProcessorSettings(judge=JudgeSettings(cached_behaviours=size)))
        stage.identity(host)
        stage.identity(web)
        stage.policies(make_policy(file={"matchPatterns": [{"pattern": "/f[0-4]"}]}, action="Audit"))
        node = make_node()
        for frame in rows:
            for index in frame:
                node.row(node.behaviour(Operation.OPEN, f"/f{index}", syscall=257))
            await stage.take(node.record())
            assert 0 < stage.processor.judge.kept <= size
        await stage.finish()
        counts = Counter()
        for summary in stage.summaries:
            for entry in summary.entries:
                counts[entry.behaviour.resource, entry.status] += entry.count
        return counts, [alert.EventID for alert in stage.alerts], [frame.rows for frame in stage.telemetry]

    assert asyncio.run(told(cached)) == asyncio.run(told(100_000))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_replays_and_batches_give_identical_events(data, make_stage, make_node, host, web, make_policy):
    rows = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=6))
    records, node = [], make_node()
    for frame in rows:
        for index in frame:
            node.row(node.behaviour(Operation.OPEN, f"/f{index}", syscall=257), step=200_000_000)
        records.append(node.record())

    async def told(cuts):
        stage = make_stage()
        stage.identity(host)
        stage.identity(web)
        stage.policies(make_policy(file={"matchDirectories": [{"dir": "/", "recursive": True}]}, action="Audit"))
        at = 0
        for size in cuts:
            await stage.take(*records[at : at + size])
            at += size
        await stage.take(*records[at:])
        await stage.finish()
        return [(alert.EventID, alert.Suppressed) for alert in stage.alerts], stage.counted()

    cuts = data.draw(st.lists(st.integers(1, 3), max_size=4))
    assert asyncio.run(told(cuts)) == asyncio.run(told([]))
