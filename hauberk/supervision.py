# SPDX-License-Identifier: Apache-2.0
"""Keeps stages up: one that fails is started again after a back-off, told, counted, and takes no other with it.

What a failure is told by: a line on standard error, an alert (`StageFailed`), metrics (`hauberk_stage_failures_total`,
`hauberk_stage_up`), systemd's status, and the exit code when the stage is down at the end. Nothing here touches programs or
rules: they come down on a stop that was asked for, and on nothing else. Neighbours: `service` (drives it), `up` and `single_stage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from bus.backoff import Backoff
from hauberk.service import Stage, notify, say
from schemas.errors import HauberkError
from schemas.stats import Gauge, Label

if TYPE_CHECKING:
    from bus.contract import Bus, Record

log = logging.getLogger(__name__)

RESTART: Final = Backoff(first_seconds=0.5, max_seconds=30.0)
"""Before a failed stage is started again; without jitter, because stages of one process fail one by one."""
STEADY: Final = 60.0
"""A stage that ran for so many seconds has recovered: the next failure is a first one again."""
TELLING: Final = 5.0
"""Longest wait for the bus to take the alert: the bus may be what failed."""


class StageStats(msgspec.Struct, kw_only=True):
    """One stage under supervision. `up`: 1 while it runs; `failures` since start; `last`: why it failed last."""

    stage: Label
    up: Gauge = 0
    failures: int = 0
    last: str = ""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A stage failed at `unix_ns`, for the `number`th time. `pause`: seconds until it is started again, None: it is not."""

    stage: str
    why: str
    number: int
    pause: float | None
    unix_ns: int


class Supervision:
    """For `service.run`. `tell(failure)` is awaited beside the stages, for `TELLING` seconds at most."""

    def __init__(self, tell: Callable[[Failure], Awaitable[None]] | None = None) -> None:
        self._tell = tell
        self._telling: set[asyncio.Task[None]] = set()
        self._down: set[str] = set()
        self.stats: dict[str, StageStats] = {}
        self.fatal: HauberkError | None = None
        """Why the process as a whole must not go on, set by the stage that found it out and asked for the end."""

    @property
    def down(self) -> list[str]:
        """Stages whose last run ended by a failure."""
        return sorted(self._down)

    @property
    def failed(self) -> list[str]:
        """Stages that failed at all."""
        return [name for name, one in self.stats.items() if one.failures]

    async def keep(self, name: str, stage: Stage, end: asyncio.Event) -> None:
        """Run `stage` until it returns or `end` is set; start it again when it fails. Never raises but when cancelled."""
        loop = asyncio.get_running_loop()
        stats = self.stats.setdefault(name, StageStats(stage=name))
        in_a_row = 0
        while True:
            started = loop.time()
            stats.up = 1
            self._down.discard(name)
            running = asyncio.create_task(stage(end), name=name)
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait({running}, timeout=2)
                raise
            stats.up = 0
            if not running.cancelled() and running.exception() is None:
                return
            self._down.add(name)
            if loop.time() - started >= STEADY:
                in_a_row = 0
            stats.failures += 1
            stats.last = _why(running)
            again = None if end.is_set() else RESTART.delay(in_a_row)
            self._report(
                Failure(stage=name, why=stats.last, number=stats.failures, pause=again, unix_ns=time.time_ns())
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again or 0):
                    await end.wait()
            if end.is_set():
                return
            in_a_row += 1

    def _report(self, failure: Failure) -> None:
        again = "" if failure.pause is None else f"; it is started again in {failure.pause:g} s, the others go on"
        say(f"stage `{failure.stage}` failed ({failure.number}): {failure.why}{again}")
        notify(f"STATUS=stage {failure.stage} failed: {failure.why}")
        if self._tell is not None:
            task = asyncio.create_task(self._publish(failure), name="stage-failed")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _publish(self, failure: Failure) -> None:
        assert self._tell is not None
        try:
            async with asyncio.timeout(TELLING):
                await self._tell(failure)
        except Exception as error:  # noqa: BLE001 - what keeps it from being told must keep nobody from running
            say(f"the failure of stage `{failure.stage}` could not be published: {type(error).__name__}: {error}")

    async def settle(self) -> None:
        """Wait for what is being told."""
        if self._telling:
            await asyncio.wait(set(self._telling))


def _why(ended: asyncio.Task[None]) -> str:
    error = None if ended.cancelled() else ended.exception()
    if error is None:
        return "it was cancelled by itself; this is a bug in Hauberk"
    if isinstance(error, HauberkError):
        return str(error)
    log.error("a bug in Hauberk in a stage", exc_info=error)
    return f"{type(error).__name__}: {error}; this is a bug in Hauberk, please report it with the lines above"


def reporter(bus: Bus, node: str) -> Callable[[Failure], Awaitable[None]]:
    """Publishes a failure as an alert of `node`."""
    from schemas.topics import ALERTS

    async def tell(failure: Failure) -> None:
        await bus.publish(ALERTS, [alert_of(failure, node)])

    return tell


def alert_of(failure: Failure, node: str) -> Record:
    """The `SystemEvent` alert that says it."""
    # Imported here: a node that never fails does not carry what alerts need.
    from processors.alert_record import record_of
    from schemas.alert import Alert, made_by
    from schemas.wording import updated_time

    again = "not started again" if failure.pause is None else f"started again in {failure.pause:g} s"
    alert = Alert(
        Timestamp=failure.unix_ns // 1_000_000_000,
        UpdatedTime=updated_time(failure.unix_ns),
        HostName=node,
        Type="SystemEvent",
        Operation="StageFailed",
        Severity="8",
        Resource=failure.stage,
        Data=f"stage={failure.stage} failures={failure.number}",
        EventData={"stage": failure.stage, "failures": str(failure.number), "why": failure.why},
        Result="Passed",
        Message=f"stage `{failure.stage}` of Hauberk failed and is {again}; programs and rules stay: {failure.why}",
        KubeArmorVersion=made_by(),
        EventID=f"{node}:stage:{failure.stage}:{failure.unix_ns}",
    )
    return record_of(alert, node)


def shown(supervision: Supervision) -> Callable[[], Iterable[tuple[str, msgspec.Struct]]]:
    """For `Exposure.collect`: one struct per stage."""
    return lambda: [("stage", one) for one in supervision.stats.values()]


def exit_code(supervision: Supervision) -> int:
    """1 when a stage was down at the end, and says so; a stage that came back is only said."""
    down = supervision.down
    for name in supervision.failed:
        one = supervision.stats[name]
        state = "was down at the end" if name in down else "had come back"
        say(f"stage `{name}` failed {one.failures} time{'s' * (one.failures != 1)} and {state}; last: {one.last}")
    return 1 if down else 0
