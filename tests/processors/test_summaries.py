# SPDX-License-Identifier: Apache-2.0
"""Counts per workload, minute and behaviour: exact at the edges of minutes and of frames."""

from __future__ import annotations

from schemas.operations import Operation
from schemas.summary import BUCKET_SECONDS


async def test_a_frame_over_two_minutes_is_split_by_row(node, stage):
    minute = 60_000_000_000
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    # BOOT_NS is 40 s into a minute, so the next one begins 20 s after it.
    for at in (19_900_000_000, 19_999_999_999, 20_000_000_000, 20_000_000_001, 20_500_000_000):
        node.row(read, at=at)
    await stage.take(node.record())
    await stage.finish()
    found = [
        (summary.bucket, entry.count, entry.first, entry.last)
        for summary in stage.summaries
        for entry in summary.entries
    ]
    assert [(count, last - first) for _, count, first, last in found] == [(2, 99_999_999), (3, 500_000_000)]
    assert found[1][0] - found[0][0] == BUCKET_SECONDS
    assert all(bucket * 1_000_000_000 <= first < bucket * 1_000_000_000 + minute for bucket, _, first, _ in found)


async def test_equal_behaviours_of_two_boots_are_equal(stage, make_node):
    for boot in ("boot-a", "boot-b"):
        node = make_node(boot=boot, salt=boot.encode())
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
        await stage.take(node.record())
    await stage.finish()
    first, second = stage.summaries
    assert first.entries[0].behaviour == second.entries[0].behaviour
    assert first.run != second.run
    assert first.key != second.key


async def test_connections_carry_what_the_tables_need(node, stage):
    node.row(
        node.behaviour(
            Operation.ACCEPT, executable="/usr/sbin/nginx", syscall=288, family=2, socket_type=1, protocol=6,
            address="10.1.2.3", port=443,
        )
    )  # fmt: skip
    node.row(
        node.behaviour(
            Operation.CONNECT, executable="/usr/sbin/nginx", syscall=42, family=10, socket_type=1, protocol=6,
            address="::ffff:10.9.9.9", port=5432,
        )
    )  # fmt: skip
    await stage.take(node.record())
    await stage.finish()
    (summary,) = stage.summaries
    told = {(entry.behaviour.operation, entry.behaviour.address, entry.behaviour.port) for entry in summary.entries}
    assert told == {(Operation.ACCEPT, "10.1.2.3", 443), (Operation.CONNECT, "10.9.9.9", 5432)}
    assert (summary.identity.namespace, summary.identity.labels["app"]) == ("demo", "web")
    assert summary.identity.workload == "demo/web"


async def test_frames_of_one_second_share_a_record(node, stage):
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    for _ in range(12):
        node.row(read, step=100_000_000)
        await stage.take(node.record())
    await stage.finish()
    assert [(summary.first_frame, summary.last_frame, summary.entries[0].count) for summary in stage.summaries] == [
        (0, 8, 9),
        (9, 11, 3),
    ]


async def test_holes_and_losses_are_counted_and_told(node, stage):
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    node.row(read)
    await stage.take(node.record())
    node.number += 3
    node.lost = (7, 0, 1)
    node.row(read)
    record = node.record()
    await stage.take(record)
    await stage.take(record)
    stats = stage.processor.stats()
    assert (stats.holes, stats.lost, stats.repeats) == (3, {"occurrences_full": 7, "path_unresolved": 1}, 1)
    (alert,) = stage.alerts
    assert (alert.Type, alert.Operation) == ("SystemEvent", "EventsLost")
    assert alert.Data == "frames=3 occurrences_full=7 path_unresolved=1"
    assert alert.EventID == "node-1:boot-a:run-1:loss:4"


async def test_losses_without_a_row_are_told_at_the_time_of_the_latest_one(node, stage):
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    node.row(read)
    await stage.take(node.record())
    node.lost = (7,)
    await stage.take(node.record())
    await stage.finish()
    (alert,) = stage.alerts
    (summary,) = stage.summaries
    assert alert.Timestamp == summary.entries[0].last // 1_000_000_000


async def test_a_frame_that_comes_twice_is_counted_once(node, stage):
    """As a node's spool sends it again whose first answer was lost, at once or after others of the same second."""
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    sent = []
    for _ in range(12):
        node.row(read, step=100_000_000)
        sent.append(node.record())
    for record in (*sent[:3], sent[2], *sent[3:6], *sent[3:6], *sent[6:]):
        await stage.take(record)
    await stage.finish()
    assert [(summary.first_frame, summary.last_frame, summary.entries[0].count) for summary in stage.summaries] == [
        (0, 8, 9),
        (9, 11, 3),
    ]
    stats = stage.processor.stats()
    assert (stats.repeats, stats.holes, stats.frames) == (4, 0, 12)


async def test_a_frame_that_comes_late_is_counted(node, stage):
    """One behind newer ones that was not read before is no repeat, whatever its number."""
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    sent = []
    for _ in range(6):
        node.row(read, step=1_000_000_000)
        sent.append(node.record())
    for record in (sent[0], *sent[3:], *sent[1:3], sent[4], sent[1]):
        await stage.take(record)
    await stage.finish()
    assert sorted((summary.first_frame, summary.entries[0].count) for summary in stage.summaries) == [
        (number, 1) for number in range(6)
    ]
    assert stage.processor.stats().repeats == 2
