# SPDX-License-Identifier: Apache-2.0
"""Behind: fewer new names, step by step; caught up: all of them again."""

from __future__ import annotations

import pytest

from schemas.frame import Frame, FrameHeader
from sensors.node.backlog import EARLY, LATE, STEP_SECONDS, STEPS, Backlog, steps_of


class Scene:
    """A processor that reads when told, a clock that moves when told, and what the kernel was told."""

    def __init__(self) -> None:
        self.now, self.read, self.number = 100.0, -1, 0
        self.steps: list[int] = []
        self.backlog = Backlog(lambda header: self.read, self.steps.append, lambda: self.now)

    def publish(self) -> None:
        header = FrameHeader(node="n", boot="b", run="r", number=self.number, clock_offset_ns=0, events=0)
        self.backlog.published([Frame(header=header, occurrences=b"", definitions=b"")])
        self.number += 1

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.backlog.look()


def test_a_start_takes_back_what_an_agent_before_left() -> None:
    assert Scene().steps == [0]


def test_who_is_read_in_time_is_never_spared() -> None:
    scene = Scene()
    for _ in range(100):
        scene.publish()
        scene.later(LATE / 2)
        scene.read = scene.number - 1
    assert scene.steps == [0]


def test_an_idle_node_is_not_behind() -> None:
    scene = Scene()
    scene.publish()
    scene.read = 0
    scene.later(3600)
    assert (scene.backlog.seconds, scene.steps) == (0.0, [0])


def test_behind_halves_step_by_step_down_to_a_floor() -> None:
    scene = Scene()
    scene.publish()
    scene.later(LATE)
    scene.later(STEP_SECONDS / 2)
    assert scene.steps == [0, 1]
    for _ in range(20):
        scene.later(STEP_SECONDS)
    assert scene.steps == list(range(STEPS + 1))


def test_a_backlog_that_shrinks_is_left_to_shrink_and_then_given_back() -> None:
    scene = Scene()
    for _ in range(10):
        scene.publish()
        scene.later(STEP_SECONDS)
    step = scene.backlog.step
    for _ in range(8):
        # Twice as fast as they come.
        scene.read += 1
        scene.later(0.1)
    assert scene.backlog.step <= step + 1
    scene.read = scene.number - 1
    for _ in range(20):
        scene.later(STEP_SECONDS)
    assert (scene.steps[-1], scene.backlog.seconds <= EARLY) == (0, True)


@pytest.mark.parametrize("budget", [256, 300, 511, 512, 4096, 16384, 1 << 24])
def test_whoever_is_behind_leaves_each_container_a_name_a_second(budget: int) -> None:
    steps = steps_of(budget)
    assert 3 < steps <= STEPS
    # As budget.c counts, for calls that failed.
    assert (budget >> (steps - 3)) // 64 >= 1
    assert steps == STEPS or (budget >> (steps + 1 - 3)) // 64 == 0
