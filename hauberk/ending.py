# SPDX-License-Identifier: Apache-2.0
"""How processes end: whether a bus that is elsewhere is waited for; and of `hauberk up` what it takes down, what it leaves, and what of it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hauberk import service

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from bus.contract import Bus
    from sensors.node.sensor import Node
    from sinks.delivery.engine import SinkState


def unsent(states: Iterable[SinkState]) -> bool:
    """Whether a sink still waits for its far side; says which and why."""
    waiting = [one for one in states if one.failure]
    for one in waiting:
        service.say(
            f"sink `{one.name}` has not sent everything, the rest stays on the bus for its next start: {one.failure}"
        )
    return bool(waiting)


def take_down(node: Node, over: asyncio.Event) -> None:
    """The end of a live `up`, whatever led to it: programs and rules go only when a stop was asked for."""
    keep = node.settings.keep
    node.close(take_down=over.is_set() and not keep)
    pins = node.settings.pin_dir
    if not over.is_set():
        service.say(
            f"ended by an error, not by a stop that was asked for: programs and rules stay in {pins} and what is enforced "
            "goes on; observation ends by itself within a minute; start `hauberk up` again"
        )
    elif keep:
        service.say("ended")
    else:
        service.say("ended, its programs are removed: nothing is enforced now (`sensor.keep` leaves rules in force)")


async def last_look(bus: Bus, stop: asyncio.Event) -> None:
    """Once asked to end, find out whether a bus that is elsewhere is there to be waited for."""
    await stop.wait()
    look = getattr(bus, "last_look", None)
    if look is not None:
        await look()
