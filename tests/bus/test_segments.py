# SPDX-License-Identifier: Apache-2.0
"""The embedded log against a model: a list per topic, an offset per group, whatever is done in whatever order."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.contract import Record, Subscription
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.embedded.segments import SegmentedLog
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY

GROUPS = ("a", "b")
LOGS = (EVENTS_RAW, ALERTS)


class EmbeddedAgainstModel(RuleBasedStateMachine):
    """Segments of 20 KB and records of up to 9 KB: every few records a segment is sealed, read, dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.published = {topic.name: [] for topic in LOGS}
        self.table: dict[bytes, bytes | None] = {}
        self.committed = {group: {topic.name: 0 for topic in LOGS} for group in GROUPS}
        self.registered: set[str] = set()
        self.taken: dict[str, dict[str, int]] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.stacks: dict[str, AsyncExitStack] = {}
        self.counter = 0
        self.open()

    def run_async(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def open(self) -> None:
        # Housekeeping by hand (`tidy`), so that a failing example can be replayed.
        changes = {"segment_bytes": 20_000, "memory_bytes": 15_000, "take_bytes": 20_000, "housekeeping": 3600.0}
        self.bus = self.run_async(EmbeddedBus.open(EmbeddedSettings(directory=self.directory.name, **changes)))

    def close(self) -> None:
        for group in list(self.subscriptions):
            self.leave(group)
        self.run_async(self.bus.close())

    @rule(topic=st.sampled_from(LOGS), count=st.integers(1, 5), size=st.sampled_from([0, 100, 9000]))
    def publish(self, topic, count, size):
        batch = []
        for _ in range(count):
            self.counter += 1
            batch.append(Record(b"%d" % (self.counter % 3), b"%d " % self.counter + b"x" * size))
        self.run_async(self.bus.publish(topic, batch))
        self.published[topic.name] += [(record.key, record.value) for record in batch]

    @rule(key=st.sampled_from([b"x", b"y", b"z"]), deleted=st.booleans())
    def put(self, key, deleted):
        self.counter += 1
        value = None if deleted else b"%d" % self.counter
        self.run_async(self.bus.publish(INVENTORY, [Record(key, value)]))
        self.table[key] = value

    @precondition(lambda self: len(self.subscriptions) < len(GROUPS))
    @rule(group=st.sampled_from(GROUPS))
    def join(self, group):
        if group in self.subscriptions:
            return
        self.stacks[group] = AsyncExitStack()
        entering = self.stacks[group].enter_async_context(self.bus.subscribe(LOGS, group))
        self.subscriptions[group] = self.run_async(entering)
        if group not in self.registered:
            # A new group begins at the oldest record kept.
            self.registered.add(group)
            self.committed[group] = self.run_async(self.bus.groups())[group]
            for topic in LOGS:
                assert self.committed[group][topic.name] <= len(self.published[topic.name])
        self.taken[group] = dict(self.committed[group])

    @precondition(lambda self: self.subscriptions)
    @rule(data=st.data())
    def leave_one(self, data):
        self.leave(data.draw(st.sampled_from(sorted(self.subscriptions))))

    def leave(self, group):
        del self.subscriptions[group]
        self.run_async(self.stacks.pop(group).aclose())

    @precondition(lambda self: self.subscriptions)
    @rule(data=st.data(), most=st.integers(1, 20))
    def take(self, data, most):
        group = data.draw(st.sampled_from(sorted(self.subscriptions)))
        got = self.run_async(self.subscriptions[group].take(most, 0.0))
        at = self.taken[group]
        waiting = any(at[topic.name] < len(self.published[topic.name]) for topic in LOGS)
        assert bool(got) == waiting
        assert len(got) <= most
        for delivery in got:
            name = delivery.topic.name
            assert delivery.offset == at[name]
            assert (delivery.record.key, delivery.record.value) == self.published[name][at[name]]
            at[name] += 1

    @precondition(lambda self: self.subscriptions)
    @rule(data=st.data())
    def commit(self, data):
        group = data.draw(st.sampled_from(sorted(self.subscriptions)))
        self.run_async(self.subscriptions[group].commit())
        self.committed[group] = dict(self.taken[group])

    @rule()
    def tidy(self):
        """What the writer does by the clock; here, from outside, as another process would."""
        layout = self.bus._layout
        offsets = layout.offsets()
        for topic in LOGS:
            log = layout.log(topic)
            bounds = offsets.bounds(topic.name)
            assert layout.tidy(topic, log, None if bounds is None else bounds[0]) == 0
            log.checkpoint(0)
            log.close()
        offsets.close()

    @rule()
    def reopen(self):
        self.close()
        self.open()

    @invariant()
    def the_table_is_right(self):
        latest = self.run_async(self.bus.latest(INVENTORY))
        expected = {key: value for key, value in self.table.items() if value is not None}
        assert {key: record.value for key, record in latest.items()} == expected

    @invariant()
    def lag_is_right(self):
        for group in self.registered:
            lag = self.run_async(self.bus.lag(group))
            for topic in LOGS:
                assert lag[topic.name] == len(self.published[topic.name]) - self.committed[group][topic.name]

    @invariant()
    def nothing_was_skipped_or_put_aside(self):
        assert all(subscription.skipped == 0 for subscription in self.subscriptions.values())
        assert self.bus.stats.quarantined == 0

    def teardown(self) -> None:
        self.close()
        self.loop.close()
        self.directory.cleanup()


TestEmbeddedAgainstModel = EmbeddedAgainstModel.TestCase
TestEmbeddedAgainstModel.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def small(tmp_path: Path):
    opened = []

    def small() -> SegmentedLog:
        log = SegmentedLog(tmp_path / "topic", durable=False, segment_bytes=1, segment_age=3600.0)
        opened.append(log)
        return log

    yield small
    for log in opened:
        log.close()


def test_a_writer_whose_segment_was_sealed_and_dropped_by_another_goes_on_in_the_newest(small):
    one, two = small(), small()
    assert one.append([Record(b"k", b"0")]) == 0
    for offset in range(1, 5):
        assert two.append([Record(b"k", b"x")]) == offset
        two.rotate(1e12)
    assert two.append([Record(b"k", b"x")]) == 5
    two.drop(5, 0, 1 << 40)
    assert len(two.bases()) == 1
    assert one.append([Record(b"k", b"6")]) == 6
    assert [offset for offset, _ in two.read(0, 10, 1 << 20).found] == [5, 6]


def test_an_empty_segment_is_never_sealed_so_every_base_is_new(small):
    log = small()
    log.append([Record(b"k", b"0")])
    assert log.rotate(1e12, force=True)
    assert not log.rotate(1e12, force=True)
    assert log.bases() == [0, 1]


def test_the_newest_segment_is_never_dropped(small):
    log = small()
    log.append([Record(b"k", b"0")])
    log.rotate(1e12)
    assert log.drop(1 << 60, 1 << 60, 0) == (0, 0)
    assert log.append([Record(b"k", b"1")]) == 1
    lost, freed = log.drop(0, 1 << 60, 0)
    assert (lost, freed > 0, log.bases()) == (1, True, [1])


def test_a_left_over_of_a_crash_while_making_a_segment_does_no_harm(small, tmp_path):
    log = small()
    (tmp_path / "topic").mkdir(exist_ok=True)
    (tmp_path / "topic" / f"{0:020d}.new").write_bytes(b"half")
    assert log.append([Record(b"k", b"0")]) == 0


@pytest.mark.parametrize("change", ["headers = x'91a1ff'", "key = 5", "value = 'text'", "at = 'x'"])
def test_a_row_that_holds_no_record_is_a_hole_and_the_others_are_read(small, change):
    log = small()
    log.append([Record(b"k", b"%d" % number) for number in range(6)])
    live = log._live
    live.execute(f"UPDATE record SET {change} WHERE offset IN (0, 1, 3)")
    assert [offset for offset, _ in log.read(0, 2, 1 << 20).found] == [2]
    assert [offset for offset, _ in log.read(3, 100, 1 << 20).found] == [4, 5]
    assert log.quarantined == 0
