# SPDX-License-Identifier: Apache-2.0
"""Offsets follow what was told: a crash anywhere, and the counts are still exact for a store that knows its frames."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from bus.contract import Delivery, Record
from bus.memory import MemoryBus, MemorySettings
from processors.commit_tracker import CommitTracker, place_of
from processors.engine import Processor
from processors.summaries import FrameCounts
from schemas import identity as identities
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind
from schemas.operations import Operation
from schemas.summary import decode as decode_summary
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, SUMMARIES


class Store:
    """A summary store as `schemas.summary` asks for: repeats are told by their frames."""

    def __init__(self) -> None:
        self.applied: dict[tuple[str, str, int], int] = {}
        self.counts: Counter[str] = Counter()

    def take(self, summary) -> None:
        key = (summary.run, summary.identity.uid, summary.bucket)
        known = self.applied.get(key, -1)
        if summary.last_frame <= known:
            return
        assert summary.first_frame > known, "a record overlaps what is known: it can be neither added nor ignored"
        self.applied[key] = summary.last_frame
        for entry in summary.entries:
            self.counts[entry.behaviour.resource] += entry.count


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frames"), st.integers(1, 4)),
        st.tuples(st.just("time"), st.sampled_from([0.1, 0.4, 1.7])),
        st.tuples(st.just("identity"), st.just(0)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 4)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_counts_are_exact_whenever_the_processor_dies(steps, make_node, make_stage, host, web):
    async def run() -> None:
        nodes = [make_node("node-1"), make_node("node-2")]
        log: list[Delivery] = []
        committed, now, known = 0, 100.0, False
        store, events = Store(), Counter()
        late = Identity(kind=Kind.CONTAINER, node="node-1", uid="late", cgroups=(500,), namespace="demo")

        def start():
            stage = make_stage()
            stage.now = now
            stage.identity(host)
            stage.identity(web)
            stage.identity(Identity(kind=Kind.CONTAINER, node="node-2", uid="far", cgroups=(77,)))
            if known:
                stage.identity(late)
            return stage, [0]

        def arrive(stage, number):
            """Frames on the bus, whether or not anybody takes them."""
            nonlocal now
            batch = []
            for index in range(number):
                node = nodes[index % 2]
                now += 0.1
                stage.now = now
                cgroup = 500 if node.name == "node-1" and index % 4 == 2 else 77
                behaviour = node.behaviour(Operation.OPEN, f"/{node.name}/{cgroup}", syscall=257, cgroup=cgroup)
                for _ in range(3):
                    node.row(behaviour, at=round(now * 1e9))
                    events[f"/{node.name}/{cgroup}"] += 1
                log.append(Delivery(EVENTS_RAW, 0, len(log), node.record()))
                batch.append(log[-1])
            return batch

        async def feed(stage, batch):
            stage.processor.tracker.taken(batch)
            await stage.processor.handle(batch)
            await stage.processor.tick(idle=False)

        def publish(stage, seen):
            for summary in stage.summaries[seen[0] :]:
                store.take(summary)
            seen[0] = len(stage.summaries)

        def commit(stage):
            nonlocal committed
            for delivery in stage.processor.tracker.done():
                committed = delivery.offset + 1

        stage, seen = start()
        for name, number in steps:
            match name:
                case "frames":
                    await feed(stage, arrive(stage, number))
                case "time":
                    now += number
                    await stage.pass_time(number)
                case "identity":
                    known = True
                    stage.identity(late)
                    await stage.pass_time(0)
                case "commit":
                    publish(stage, seen)
                    commit(stage)
                case "crash":
                    publish(stage, seen)
                    arrive(stage, number)
                    stage, seen = start()
                    again = log[committed:]
                    for at in range(0, len(again), 3):
                        await feed(stage, again[at : at + 3])
            publish(stage, seen)
        await stage.finish()
        publish(stage, seen)
        commit(stage)
        assert store.counts == events
        assert committed == len(log)

    asyncio.run(run())


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(st.integers(0, 4), max_size=12), order=st.permutations(range(5)), upto=st.integers(0, 5))
def test_a_commit_never_cuts_a_group(groups, order, upto):
    tracker = CommitTracker()
    frames: dict[int, list[FrameCounts]] = {}
    members: dict[int, list[int]] = {}
    for offset, group in enumerate(groups):
        header = FrameHeader(node=f"n{group}", boot="b", run="r", number=offset, clock_offset_ns=0, events=0)
        frame_counts = FrameCounts(header, 1, 0.0)
        tracker.open(Delivery(EVENTS_RAW, 0, offset, Record(b"", b"")), frame_counts)
        frames.setdefault(group, []).append(frame_counts)
        members.setdefault(group, []).append(offset)
    told = [group for group in order if group in frames][:upto]
    for group in told:
        tracker.published(frames[group])
    done = tracker.done()
    cut = done[0].offset + 1 if done else 0
    for group, offsets in members.items():
        inside = [offset < cut for offset in offsets]
        assert all(inside) or not any(inside)
        assert group in told or not any(inside)
    if set(told) == set(frames):
        assert cut == len(groups)


async def test_what_another_member_reads_is_forgotten_and_told_by_nobody_twice(stage, node, make_node):
    """A partition is taken away with a frame untold and a frame parked; it comes back with frames in between read elsewhere."""
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    node.row(node.behaviour(Operation.OPEN, "/late", syscall=257, cgroup=500))
    await stage.take(node.record())
    processor = stage.processor
    assert processor.parking.waiting == 1
    processor.released([("events.raw", 0)])
    assert (processor.parking.waiting, processor.tracker.open_frames, processor.tracker.done()) == (0, 0, [])
    await stage.finish()
    assert not stage.summaries
    for _ in range(20):
        node.row(node.behaviour(Operation.OPEN, "/b", syscall=257))
        node.record()
    node.row(node.behaviour(Operation.OPEN, "/c", syscall=257))
    (delivery,) = await stage.take(node.record())
    await stage.finish()
    assert processor.stats().holes == 0, "frames that another member read are not lost"
    assert not [alert for alert in stage.alerts if alert.Operation == "EventsLost"]
    assert [place_of(one) for one in processor.tracker.done()] == [place_of(delivery)]


def test_what_waits_for_a_commit_is_an_offset_and_no_frame():
    tracker = CommitTracker()
    tracker.taken([Delivery(EVENTS_RAW, 0, 7, Record(b"node", b"x" * 100_000))])
    (queue,) = tracker._queues.values()
    assert queue[0].delivery.record.size == 0


async def test_other_partitions_keep_what_they_have(stage, node):
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    (delivery,) = await stage.take(node.record())
    stage.processor.released([("events.raw", 1)])
    await stage.finish()
    assert [place_of(one) for one in stage.processor.tracker.done()] == [place_of(delivery)]
    assert stage.counted() == 1


async def test_processors_that_share_frames_count_each_once_and_take_none_for_lost(make_node, host, web, replace):
    """A second processor joins and leaves while frames come: partitions are settled, committed, given and taken back."""
    bus = MemoryBus(MemorySettings(partitions=3))
    nodes = [make_node(f"node-{number}") for number in range(8)]
    for node in nodes:
        one = replace(host, node=node.name, uid=node.name)
        await bus.publish(INVENTORY, [Record(one.key, identities.encode(one))])
    sent = 0

    async def publish():
        nonlocal sent
        for node in nodes:
            node.row(node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=1))
            await bus.publish(EVENTS_RAW, [node.record()])
            sent += 1

    async def publishing_until(condition):
        async def asked():
            await publish()
            return condition()

        await until(asked)

    first, second = Processor(bus), Processor(bus)
    tasks = [asyncio.create_task(first.run())]
    await publishing_until(lambda: first.stats().frames > 20)
    tasks.append(asyncio.create_task(second.run()))
    await publishing_until(lambda: second.stats().frames > 20)
    second.stop()
    await tasks.pop()
    before = first.stats().frames
    await publishing_until(lambda: first.stats().frames > before + 20)
    await first.finish()
    await tasks.pop()
    assert (first.stats().holes, second.stats().holes) == (0, 0)
    assert not bus.records(ALERTS)
    assert await bus.lag("processors") == {"events.raw": 0}
    store = Store()
    counted = [decode_summary(record.value) for record in bus.records(SUMMARIES)]
    for summary in sorted(counted, key=lambda one: (one.run, one.identity.uid, one.bucket, one.first_frame)):
        store.take(summary)
    assert store.counts == {"/a": sent}
