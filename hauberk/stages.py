# SPDX-License-Identifier: Apache-2.0
"""Stages as the service runner takes them: each is built on a bus and a section of the configuration, and ends when told.

A stage that reads the bus is told to stop only after the stage before it has ended; it then finishes what its group has not
committed yet. `up` runs them all on one bus, the other verbs one each: the stages cannot tell.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from schemas.errors import DecodeError, SettingsError
from schemas.topics import EVENTS_RAW

if TYPE_CHECKING:
    import msgspec

    from bus.contract import Bus
    from enforcers.agent import Enforcement
    from enforcers.planner import PlannerEngine
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration
    from hauberk.service import Stage
    from hauberk.supervision import Supervision
    from processors.engine import Processor
    from sensors.agent import Agent
    from sensors.backlog import Read
    from sensors.following import Following
    from sensors.inventory import Inventory
    from sensors.node import Node
    from sensors.replay import ReplaySettings
    from sinks.engine import SinkEngine

log = logging.getLogger(__name__)

DRAIN: Final = 5.0
"""Longest wait for a group to commit what the stage before it published, in seconds."""
STUCK: Final = 30.0
"""Nothing of a replay moved for so many seconds: it will not move any more."""


E = TypeVar("E")


class Part(Generic[E]):
    """An engine and the stage that runs it. A stage that is started again after a failure gets an engine made anew: nobody
    knows what the failure left in the old one. `engine`: the one that runs now, for its stats."""

    def __init__(self, make: Callable[[], E], run: Callable[[E, asyncio.Event], Awaitable[None]]) -> None:
        self.engine = make()
        self._make, self._run = make, run
        self._used = False

    async def stage(self, stop: asyncio.Event) -> None:
        """See `service.Stage`."""
        if self._used:
            self.engine = self._make()
        self._used = True
        await self._run(self.engine, stop)


async def until(stop: asyncio.Event, work: Awaitable[None], end: Callable[[], None]) -> None:
    """Run `work` until it ends by itself or `stop` is set; then call `end` and wait for it."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            end()
        await task
    finally:
        watcher.cancel()
        task.cancel()


async def caught_up(bus: Bus, *groups: str, within: float = DRAIN) -> None:
    """Wait until the groups have committed all there is, or `within` seconds are over. A group the bus does not know yet
    has not begun to read, so it is waited for too."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    while clock() < deadline:
        known = await bus.groups()
        behind = [sum((await bus.lag(group)).values()) for group in groups]
        if not any(behind) and all(group in known for group in groups):
            return
        await asyncio.sleep(0.02)


async def settled(left: Callable[[], Awaitable[int]], stuck: float = STUCK) -> None:
    """Wait until `left` says 0, or has not come any nearer to it for `stuck` seconds: who gets on is waited for, however long."""
    clock = asyncio.get_running_loop().time
    least, since = sys.maxsize, clock()
    while True:
        # Before the look: what moved while this was not given the processor counts.
        at = clock()
        now = await left()
        if not now:
            return
        if now < least:
            least, since = now, at
        elif at - since > stuck:
            return
        await asyncio.sleep(0.02)


async def _idle() -> None:
    await asyncio.Event().wait()


def reader(
    bus: Bus,
    groups: Callable[[], Sequence[str]],
    run: Callable[[], Awaitable[None]],
    end: Callable[[], None],
    whole: Callable[[], Awaitable[None]] = _idle,
) -> Stage:
    """A stage that reads the bus: once told, it goes on until its groups have caught up, or `whole` returns: then all there
    is was read, and `end` tells and commits it."""

    async def stage(stop: asyncio.Event) -> None:
        done = asyncio.Event()

        async def told() -> None:
            await stop.wait()
            ways = [asyncio.ensure_future(caught_up(bus, *groups())), asyncio.ensure_future(whole())]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
            done.set()

        waiting = asyncio.ensure_future(told())
        try:
            await until(done, run(), end)
        finally:
            waiting.cancel()

    return stage


def processor(bus: Bus, configuration: Configuration, *, last: bool = False) -> Part[Processor]:
    """Frames in; alerts, telemetry, summaries out. `last`: the sensor is in this process and asks it how far it is; when this
    is told to stop, nobody is left who could say whose rows are whose."""
    from processors.engine import Processor

    async def run(engine: Processor, stop: asyncio.Event) -> None:
        async def whole() -> None:
            # Its groups of one second would wait for a frame of the next one, which will not come. Rows whose owner is not
            # known are worth the wait as long as somebody may say it.
            ends = await bus.end(EVENTS_RAW)
            while any(  # noqa: ASYNC110 - polls offsets, which have no event
                engine.pump.position.get((EVENTS_RAW.name, partition), 0) < end for partition, end in ends.items()
            ):
                await asyncio.sleep(0.02)
            if last:
                await engine.give_up()
            while engine.parking.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        await reader(bus, lambda: (configuration.processor.group,), engine.run, engine.stop, whole)(stop)

    return Part(lambda: Processor(bus, configuration.processor, reports=not last), run)


def sinks(bus: Bus, configuration: Configuration, supervision: Supervision | None = None) -> Part[SinkEngine]:
    """Alerts, telemetry, summaries and receipts out to the world. `supervision`: of each sink by itself, as `sink.NAME`."""
    from sinks.engine import SinkEngine

    # One engine for good: collectors are registered with it, and every sink is opened anew with each run.
    only = SinkEngine(bus, configuration.sinks, None if supervision is None else supervision.keep)
    groups = [f"sink.{sink.name}" for sink in only.sinks if not sink.live]

    async def run(engine: SinkEngine, stop: asyncio.Event) -> None:
        async def hurry() -> None:
            engine.hurry()
            await _idle()

        await reader(bus, lambda: groups, engine.run, engine.stop, hurry)(stop)

    return Part(lambda: only, run)


def collect(sinks: SinkEngine, parts: Callable[[], Iterable[tuple[str, msgspec.Struct]]]) -> None:
    """Show the stages' own counts at every Prometheus endpoint, beside the sinks'. `parts`: (metric prefix, stats) of now."""
    from sinks.exposition import Stats

    sinks.collect(lambda: [Stats(part=part, values=stats) for part, stats in parts()])


def following(bus: Bus, node: str) -> Part[Following]:
    """How far the processors of other processes have read this node's frames."""
    from sensors.following import Following

    async def run(engine: Following, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), engine.stop)

    return Part(lambda: Following(bus, node), run)


def sensor(bus: Bus, node: Node, read: Read | None = None) -> Part[Agent]:
    """This kernel's rings to frames. `read`: how far they are judged: while that is behind, less is named."""

    async def run(engine: Agent, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), engine.stop)

    # Made again, it begins with the rings opened anew too.
    first = [True]

    def make() -> Agent:
        if not first:
            node.reopen()
        first.clear()
        return node.agent(bus, read=read)

    return Part(make, run)


class Inventories:
    """The node's inventory as a part. `on_cgroup` is the sensor's to call: what it raises ends the inventory's stage and not
    the sensor's, which drains the rings whoever is there to listen."""

    def __init__(self, bus: Bus, configuration: Configuration | NodeConfiguration) -> None:
        from sensors.inventory import Inventory

        self.part: Part[Inventory] = Part(lambda: Inventory(bus, configuration.inventory), self._run)
        self._raised: asyncio.Future[None] | None = None

    @property
    def engine(self) -> Inventory:
        """The one that runs now."""
        return self.part.engine

    def on_cgroup(self, ident: int, path: str | None, gone: bool) -> None:
        """See `sensors.inventory.Inventory.on_cgroup`. Never raises."""
        try:
            self.engine.on_cgroup(ident, path, gone)
        except Exception as error:
            if self._raised is None or self._raised.done():
                log.exception("the inventory could not take in a cgroup before it ran")
                return
            self._raised.set_exception(error)

    async def _run(self, engine: Inventory, stop: asyncio.Event) -> None:
        self._raised = raised = asyncio.get_running_loop().create_future()
        working = asyncio.ensure_future(engine.run())
        told = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({working, told, raised}, return_when=asyncio.FIRST_COMPLETED)
            for one in (raised, working):
                if one.done():
                    one.result()
        finally:
            for one in (working, told, raised):
                one.cancel()
            await asyncio.gather(working, told, raised, return_exceptions=True)


def planner(bus: Bus, configuration: Configuration) -> Part[PlannerEngine]:
    """Policies and inventory in; plans out."""
    from enforcers.planner import PlannerEngine

    async def run(engine: PlannerEngine, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), engine.stop)

    return Part(lambda: PlannerEngine(bus, configuration.enforcer), run)


def enforcement(bus: Bus, configuration: Configuration | NodeConfiguration, node: str) -> Part[Enforcement]:
    """Plans to map updates on this node. What is in force stays in force when the stage ends, as long as the pins do."""
    from enforcers.agent import Enforcement

    async def run(engine: Enforcement, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), engine.stop)

    return Part(lambda: Enforcement(bus, configuration.sensor.pin_dir, node, configuration.enforcement), run)


async def _nothing() -> None:
    return


def told(bus: Bus, processor: Processor, sinks: SinkEngine) -> Callable[[], Awaitable[None]]:
    """Waits until the processor has read every frame there is and the sinks that work have sent what came of them."""

    async def work() -> None:
        ends = await bus.end(EVENTS_RAW)

        async def unread() -> int:
            place = processor.pump.position
            behind = sum(max(0, end - place.get((EVENTS_RAW.name, part), 0)) for part, end in ends.items())
            return behind + processor.parking.waiting

        async def unsent() -> int:
            failing = {state.name for state in sinks.states() if state.failure}
            groups = [f"sink.{sink.name}" for sink in sinks.sinks if not sink.live and sink.name not in failing]
            known = await bus.groups()
            return sum([sum((await bus.lag(group)).values()) if group in known else 1 for group in groups])

        await settled(unread)
        sinks.hurry()
        await settled(unsent)

    return work


def replay(
    bus: Bus, settings: ReplaySettings, over: asyncio.Event, told: Callable[[], Awaitable[None]] = _nothing
) -> tuple[Agent, Stage]:
    """A recording to frames; sets `over` when it has been played and `told` has returned. At once it is played sooner than
    judged: the drain of a stop, with its deadline, is not for that."""
    import secrets

    from sensors.agent import Agent
    from sensors.replay import Replay

    try:
        source = Replay(settings, secrets.token_hex(8))
    except OSError as error:
        raise SettingsError(
            f"expected a recording at `{settings.path}`, got: {error.strerror}; name one, as examples/recordings/host.hbrk"
        ) from error
    agent = Agent(source, bus)

    async def stage(stop: asyncio.Event) -> None:
        try:
            await until(stop, agent.run(), agent.stop)
            if not stop.is_set():
                ways = [asyncio.ensure_future(told()), asyncio.ensure_future(stop.wait())]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    if ways[0].done():
                        ways[0].result()
                finally:
                    for way in ways:
                        way.cancel()
            if source.truncated:
                raise DecodeError(
                    f"expected whole blocks to the end of `{settings.path}`, got {source.truncated} bytes of a torn one; "
                    "what came before was played, record again for the rest"
                )
            if source.unreadable:
                entries = f"{source.unreadable} entr{'ies' if source.unreadable > 1 else 'y'}"
                print(
                    f"hauberk: {entries} of `{settings.path}` left out, the first because: {source.problem}",
                    file=sys.stderr,
                )
            if source.skipped:
                blocks = f"{source.skipped} damaged block{'s' * (source.skipped != 1)}"
                print(f"hauberk: {blocks} of `{settings.path}` left out", file=sys.stderr)
        finally:
            source.close()
            over.set()

    return agent, stage
