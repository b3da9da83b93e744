# SPDX-License-Identifier: Apache-2.0
"""Stages as the service runner takes them: each is built on a bus and a section of the configuration, and ends when asked.

The end is one idea: read to a mark, settle, stop. A stage that reads the bus is asked only after the stage before it has
ended; what is on its topics then is the mark, and its pump reads to it, finishes what is in hand, commits and returns
(`bus.pump`). `up` runs them all on one bus, the other verbs one each: the stages cannot tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from schemas.errors import DecodeError, SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus
    from cluster.server import Server
    from enforcers.agent import Enforcement
    from enforcers.planner import PlannerEngine
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration
    from hauberk.service import Stage
    from hauberk.supervision import Supervision
    from processors.engine import Complete, Processor
    from processors.pipeline import Due
    from processors.quiet import Needless
    from schemas.identity import Identity
    from sensors.containers.inventory import NodeInventory
    from sensors.containers.start_socket import StartSocket
    from sensors.kubernetes.watch import ClusterWatch
    from sensors.node.agent import Agent
    from sensors.node.backlog import Read
    from sensors.node.following import Following
    from sensors.node.sensor import Node
    from sensors.recordings.replay import ReplaySettings
    from sensors.source import Batch
    from sinks.delivery.engine import SinkEngine


log = logging.getLogger(__name__)


READ_SECONDS: Final = 5.0
"""Longest time after a stop in which a stage reads to its mark: a backlog of hours stays on the bus for the next start, and
`service.DRAIN_SECONDS` is left for what is in hand. The end of a replay has no such limit."""


class Stops(Protocol):
    """An engine that ends where it stands."""

    async def run(self) -> None:
        """Until `stop`."""
        ...

    def stop(self) -> None:
        """Ask for the end. Returns at once."""
        ...


E = TypeVar("E")


class StagePart(Generic[E]):
    """An engine and the stage that runs it. A stage that is started again after a failure gets an engine made anew: nobody
    knows what the failure left in the old one. `engine`: the one that runs now, for its stats. `halt`: has an engine that
    reads to a mark end where it stands; called READ_SECONDS after a stop."""

    def __init__(
        self,
        make: Callable[[], E],
        run: Callable[[E, asyncio.Event], Awaitable[None]],
        halt: Callable[[E], None] | None = None,
    ) -> None:
        self.engine = make()
        self._make, self._run, self._halt = make, run, halt
        self._used = False
        self._asked, self._ended = asyncio.Event(), asyncio.Event()

    async def stage(self, stop: asyncio.Event) -> None:
        """See `service.Stage`."""
        if self._used:
            self.engine = self._make()
        self._used = True
        self._ended.clear()
        asked = asyncio.ensure_future(self._ask(stop))
        try:
            await self._run(self.engine, self._asked)
        finally:
            asked.cancel()
            self._ended.set()

    async def finish(self) -> None:
        """Ask the stage for its end, before the service does, and wait for it, however long it gets on."""
        self._asked.set()
        await self._ended.wait()

    async def _ask(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._asked.set()
        if self._halt is not None:
            await asyncio.sleep(READ_SECONDS)
            self._halt(self.engine)


async def until(stop: asyncio.Event, work: Awaitable[None], end: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it ends by itself or `stop` is set; then ask for its `end` and wait for it."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await end()
        await task
    finally:
        watcher.cancel()
        task.cancel()


async def run(engine: Stops, stop: asyncio.Event) -> None:
    """Run `engine` until it ends by itself or `stop` is set, where it stands then."""

    async def end() -> None:
        engine.stop()

    await until(stop, engine.run(), end)


async def unless(stop: asyncio.Event, work: Awaitable[None]) -> None:
    """Await `work`; when `stop` is set it is cancelled, and what it does about that is waited for: others close what it uses then."""
    ways = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if ways[0].done():
            await ways[0]
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


def processor(
    bus: Bus,
    configuration: Configuration,
    *,
    last: bool = False,
    complete: Complete | None = None,
    due: Due | None = None,
    logged: Callable[[], bool] | None = None,
    needless: Needless | None = None,
) -> StagePart[Processor]:
    """Frames in; alerts, telemetry, summaries out. `last`: the sensor is in this process and asks it how far it is, and no
    inventory producer outlives this stage, so rows whose owner is not known at its end are not waited for. `complete`, `due`, `logged`, `needless`: see `Processor`."""
    from processors.engine import Processor

    async def work(engine: Processor, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), lambda: engine.finish(last=last))

    return StagePart(
        lambda: Processor(
            bus, configuration.processor, reports=not last, complete=complete, due=due, logged=logged, needless=needless
        ),
        work,
        Processor.stop,
    )


def sinks(bus: Bus, configuration: Configuration, supervision: Supervision | None = None) -> StagePart[SinkEngine]:
    """Alerts, telemetry, summaries and receipts out to the world. `supervision`: of each sink by itself, as `sink.NAME`."""
    from sinks.delivery.engine import SinkEngine

    # One engine for good: collectors are registered with it, and every sink is opened anew with each run.
    only = SinkEngine(bus, configuration.sinks, None if supervision is None else supervision.keep)

    async def work(engine: SinkEngine, stop: asyncio.Event) -> None:
        await until(stop, engine.run(), engine.finish)

    return StagePart(lambda: only, work, SinkEngine.stop)


def following(bus: Bus, node: Node) -> StagePart[Following]:
    """What the processors of other processes say: how far they have read this node's frames, and which events they wait for."""
    from sensors.node.following import Following
    from sensors.node.sensor import node_name

    # Asked each time: the rings may have been opened anew.
    return StagePart(
        lambda: Following(bus, node_name(node.settings), call_for=lambda idents: node.source.wanted.call_for(idents)),
        run,
    )


def sensor(
    bus: Bus,
    node: Node,
    read: Read | None = None,
    published: Callable[[Batch], None] | None = None,
    *,
    elsewhere: bool = False,
) -> StagePart[Agent]:
    """This kernel's rings to frames. `read`: how far they are judged: while that is behind, less is named. `published`,
    `elsewhere`: see `Agent`."""

    # Made again, it begins with the rings opened anew too.
    first = [True]

    def make() -> Agent:
        if not first:
            node.reopen()
        first.clear()
        return node.agent(bus, published, read, elsewhere=elsewhere)

    return StagePart(make, run)


class Inventories:
    """The node's inventory as a part. `on_cgroup` is the sensor's to call: what it raises ends the inventory's stage and not
    the sensor's, which drains the rings whoever is there to listen."""

    def __init__(self, bus: Bus, configuration: Configuration | NodeConfiguration) -> None:
        from sensors.containers.inventory import NodeInventory

        self.part: StagePart[NodeInventory] = StagePart(lambda: NodeInventory(bus, configuration.inventory), self._run)
        self._raised: asyncio.Future[None] | None = None

    @property
    def engine(self) -> NodeInventory:
        """The one that runs now."""
        return self.part.engine

    def on_cgroup(self, ident: int, path: str | None, gone: bool) -> None:
        """See `sensors.containers.inventory.NodeInventory.on_cgroup`. Never raises."""
        try:
            self.engine.on_cgroup(ident, path, gone)
        except Exception as error:
            if self._raised is None or self._raised.done():
                log.exception("the inventory could not take in a cgroup before it ran")
                return
            self._raised.set_exception(error)

    async def _run(self, engine: NodeInventory, stop: asyncio.Event) -> None:
        self._raised = raised = asyncio.get_running_loop().create_future()
        working = asyncio.ensure_future(engine.run())
        asked = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({working, asked, raised}, return_when=asyncio.FIRST_COMPLETED)
            for one in (raised, working):
                if one.done():
                    one.result()
        finally:
            for one in (working, asked, raised):
                one.cancel()
            await asyncio.gather(working, asked, raised, return_exceptions=True)


PLANNERS: Final = "planners"
"""Group of the planners: one plans, the others stand by."""


class PlannerPart(StagePart["PlannerEngine"]):
    """Of several planners on one bus one is active. Each term has an engine made anew, which reads everything again: what the one
    before knew is old. `election`: who is it."""

    def __init__(self, bus: Bus, make: Callable[[], PlannerEngine]) -> None:
        from bus.election import Election
        from schemas.topics import POLICIES

        self.election = Election(bus, POLICIES, PLANNERS)
        super().__init__(make, self._elected)

    async def _elected(self, _: PlannerEngine, stop: asyncio.Event) -> None:
        async def term(over: asyncio.Event) -> None:
            self.engine = engine = self._make()
            engine.stats.active = 1
            try:
                await run(engine, over)
            finally:
                engine.stats.active = 0

        await self.election.run(stop, term)


def planner(bus: Bus, configuration: Configuration) -> PlannerPart:
    """Policies and inventory in; plans out."""
    from enforcers.planner import PlannerEngine

    return PlannerPart(bus, lambda: PlannerEngine(bus, configuration.planner))


class ClusterPart(StagePart["ClusterWatch"]):
    """The watch of a cluster; `teller`: what the cluster is told, by the replica that works. None where that is off."""

    def __init__(self, bus: Bus, server: Server, configuration: Configuration) -> None:
        from hauberk.policy_findings import findings
        from sensors.kubernetes.watch import ClusterWatch
        from sinks.kubernetes.teller import Teller

        status = configuration.cluster_status
        telling = status.enabled and configuration.cluster.policies
        self.teller = Teller(bus, server, status) if telling else None
        beside = [] if self.teller is None else [self.teller.run]

        async def work(engine: ClusterWatch, stop: asyncio.Event) -> None:
            await unless(stop, engine.run())

        super().__init__(lambda: ClusterWatch(bus, server, configuration.cluster, findings, beside), work)


def enforcement(
    bus: Bus, configuration: Configuration | NodeConfiguration, node: str, find: Callable[[int], Identity | None]
) -> StagePart[Enforcement]:
    """Plans to map updates on this node. What is in force stays in force when the stage ends, as long as the pins do."""
    from enforcers.agent import Enforcement

    return StagePart(lambda: Enforcement(bus, configuration.sensor.pin_dir, node, configuration.enforcement, find), run)


def starts(path: str, inventory: Inventories, enforcing: StagePart[Enforcement]) -> list[StagePart[StartSocket]]:
    """Where OCI hooks of containers wait for their rules; nothing where `inventory.start_socket` is empty."""
    if not path:
        return []
    from sensors.containers.start_socket import StartSocket

    async def work(engine: StartSocket, stop: asyncio.Event) -> None:
        await unless(stop, engine.run())

    def make() -> StartSocket:
        # Asked each time: either may have been made anew.
        return StartSocket(
            path,
            lambda state: inventory.engine.starts.begin(state),
            lambda cgroup: enforcing.engine.holding.until(cgroup),
        )

    return [StagePart(make, work)]


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"expected a recording at `{path}`, got: {error.strerror}; name one, as examples/recordings/host.hbrk"
        ) from error


def require_recording(path: str) -> None:
    """Refuse what is no recording before anything is written. SettingsError, DecodeError."""
    from sensors.recordings.recording import RecordingReader

    with _readable(path):
        RecordingReader(path).close()


def replay(
    bus: Bus, settings: ReplaySettings, over: asyncio.Event, *readers: Callable[[], Awaitable[None]]
) -> tuple[Agent, Stage]:
    """A recording to frames; sets `over` when it has been played and the `readers` behind it have finished, one after the
    other. It is played sooner than judged: the drain of a stop, with its deadline, is not for that."""
    import secrets

    from sensors.node.agent import Agent
    from sensors.recordings.replay import Replay

    with _readable(settings.path):
        source = Replay(settings, secrets.token_hex(8))
    agent = Agent(source, bus)

    async def stage(stop: asyncio.Event) -> None:
        try:
            await run(agent, stop)
            for finish in readers:
                await unless(stop, finish())
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
