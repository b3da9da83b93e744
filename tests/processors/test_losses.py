# SPDX-License-Identifier: Apache-2.0
"""Losses are told at once, then summed, and never uncounted."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from processors.losses import QUIET_SECONDS, ReportedLosses
from schemas.frame import FrameHeader
from schemas.kernel import Loss
from schemas.operations import Access, Operation


def header(number: int, run: str = "r") -> FrameHeader:
    return FrameHeader(node="n", boot="b", run=run, number=number, clock_offset_ns=0, events=0)


def test_the_first_is_told_at_once_and_the_next_after_the_quiet_time() -> None:
    losses = ReportedLosses()
    losses.add(header(1), 5, [("undefined", 2)])
    assert [(found.number, unix, counts) for found, unix, counts, _ in losses.due(100.0)] == [
        (1, 5, [("undefined", 2)])
    ]
    losses.add(header(2), 6, [("undefined", 3)])
    losses.add(header(3), 7, [("undefined", 4), ("frames", 1)])
    assert list(losses.due(100.0 + QUIET_SECONDS / 2)) == []
    assert [(found.number, counts) for found, _, counts, _ in losses.due(100.0 + QUIET_SECONDS)] == [
        (3, [("frames", 1), ("undefined", 7)])
    ]
    assert list(losses.due(1e9)) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab"), st.booleans(), st.floats(0, 5))))
def test_every_loss_is_told_in_the_end(steps: list[tuple[int, str, bool, float]]) -> None:
    losses, told, added, now = ReportedLosses(), Counter[str](), Counter[str](), 0.0
    for number, (many, run, ask, wait) in enumerate(steps):
        now += wait
        losses.add(header(number, run), number, [(run, many)])
        added[run] += many
        if ask:
            for _, _, counts, _ in losses.due(now):
                told.update(dict(counts))
    for _, _, counts, _ in losses.due(now, everything=True):
        told.update(dict(counts))
    assert told == added


async def test_a_loss_is_told_as_its_containers_and_the_rest_as_the_nodes(node, stage) -> None:
    node.lost = (10, 0, 4)
    node.lost_by = ((77, Loss.OCCURRENCES_FULL, 7), (4711, Loss.OCCURRENCES_FULL, 2))
    node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    lost = {alert.ContainerName: alert for alert in stage.alerts if alert.Operation == "EventsLost"}
    assert lost["web"].EventData == {"occurrences_full": "7"}
    assert "`web`" in lost["web"].Message
    assert lost[""].EventData == {"occurrences_full": "3", "path_unresolved": "4"}
    assert len({alert.EventID for alert in lost.values()}) == 2


async def test_what_is_not_told_by_name_is_counted_for_its_container_and_not_judged(node, stage, make_policy) -> None:
    stage.policies(make_policy(file={"matchPaths": [{"path": "/ok"}]}, action="Allow"))
    left_out = node.behaviour(Operation.OPEN, "", syscall=257, access=Access.UNTOLD)
    for _ in range(5):
        node.row(left_out)
    node.fold(left_out, 1000)
    await stage.take(node.record())
    await stage.finish()
    (alert,) = stage.alerts
    assert (alert.Operation, alert.ContainerName, alert.EventData) == ("EventsLost", "web", {"unnamed": "1005"})
    assert stage.counted() == 1005
    assert stage.processor.stats().unnamed == 1005
