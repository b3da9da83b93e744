# SPDX-License-Identifier: Apache-2.0
"""Wires what sensor and processor of one process tell each other: frames in memory, the word left of them, what may be an alert."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from schemas.errors import HauberkError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.contract import Bus
    from bus.handover import HandoverBus
    from hauberk.sections import Configuration
    from processors.quiet import Place
    from schemas.frame import FrameHeader
    from sensors.node.sensor import Node
    from sensors.source import Batch


def handing_over(bus: Bus, settings: Configuration) -> Bus:
    """`bus`, with raw frames in memory where it is this machine's own and that is not switched off."""
    from bus.embedded.bus import EmbeddedBus
    from bus.handover import HandoverBus

    most = getattr(settings.bus, "hand_over_bytes", 0)
    return HandoverBus(bus, most) if isinstance(bus, EmbeddedBus) and most else bus


def _handing(bus: Bus) -> HandoverBus | None:
    # Imported on use: `node` shares the wiring of `up` and hands nothing over.
    from bus.handover import HandoverBus

    return bus if isinstance(bus, HandoverBus) else None


def word_of(bus: Bus, node: Node) -> Callable[[Batch], None] | None:
    """What the sensor calls with each published batch; None where nothing is handed over."""
    handing = _handing(bus)
    if handing is None:
        return None
    from sensors.node.in_hand import InHand

    def write(events: int) -> None:
        # Rings that are being opened anew: the next batch writes it.
        with contextlib.suppress(KernelError):
            node.source.in_hand(events)

    word = InHand(lambda: handing.end_handed, write)
    handing.outstanding = lambda end, committed: word.settled(committed)

    def published(batch: Batch) -> None:
        word.handed(batch)
        if handing.watched:
            # A recording is to have each event.
            node.source.wanted.count_none()

    return published


def needs_of(bus: Bus, node: Node, name: str) -> Callable[[FrameHeader, list[int], list[int] | None], None]:
    """What the processor calls with what it needs of the sensor of node `name`. What cannot be marked is told all the same, a moment later."""
    handing = _handing(bus)

    def needs(header: FrameHeader, rows: list[int], counted: list[int] | None) -> None:
        if header.node != name:
            return
        with contextlib.suppress(KernelError):
            if counted is None or handing is None or handing.watched:
                node.source.wanted.count_none()
            else:
                node.source.wanted.count_only(counted)
            if rows:
                node.source.wanted.call_for(rows)

    return needs


def needless_of(bus: Bus, node: Node, name: str) -> Callable[[list[Place] | None], None] | None:
    """What the processor calls with directories of node `name` whose names nobody needs; None where others may read them too."""
    handing = _handing(bus)
    if handing is None:
        return None

    def needless(places: list[Place] | None) -> None:
        # Rings that are being opened anew: that takes every mark back.
        with contextlib.suppress(KernelError):
            if places is None:
                node.source.wanted.name_by_file()
            elif not handing.watched:
                # Frames of another node may be on the same log: its cgroup ids are others here.
                node.source.wanted.name_by_directory(
                    [(cgroup, directory) for of, cgroup, directory in places if of == name]
                )

    return needless


def logged(bus: Bus) -> Callable[[], bool] | None:
    """Whether telemetry is wanted; None: always."""
    handing = _handing(bus)
    return None if handing is None else handing.logged


async def put_aside(bus: Bus) -> str:
    """At the end, what nobody here has judged goes to the log for the next start; why it did not, "" when it did."""
    if (handing := _handing(bus)) is not None:
        try:
            await handing.spill()
        except HauberkError as error:
            return str(error)
    return ""
