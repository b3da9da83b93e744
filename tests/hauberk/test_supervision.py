# SPDX-License-Identifier: Apache-2.0
"""A stage that fails is started again, told and counted; the others do not notice."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from bus.backoff import Backoff
from bus.contract import Record
from bus.memory import MemoryBus
from hauberk import service, supervision
from hauberk.supervision import Failure, Supervision
from schemas.alert import decode_alert
from schemas.errors import KernelError, Unavailable
from schemas.topics import ALERTS


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RESTART", Backoff(first_seconds=0.01, max_seconds=0.04))


def failing(times: int, error: BaseException, then: asyncio.Event | None = None) -> tuple[service.Stage, list[float]]:
    """A stage that fails so many times and then runs; when it was started."""
    started: list[float] = []

    async def stage(stop: asyncio.Event) -> None:
        started.append(asyncio.get_running_loop().time())
        if len(started) <= times:
            raise error
        if then is not None:
            then.set()
        await stop.wait()

    return stage, started


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("gone"), KernelError("refused"), RecursionError("too deep"), OverflowError("too large"),
        MemoryError(), OSError(24, "Too many open files"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), asyncio.CancelledError(),
    ],
)  # fmt: skip
async def test_a_failed_stage_is_started_again_and_the_others_run_on(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    stop, well = asyncio.Event(), asyncio.Event()
    stage, started = failing(3, error, well)
    other, others = failing(0, error)
    kept = Supervision()
    task = asyncio.create_task(service.run([("bad", stage), ("good", other)], stop, signals=False, supervision=kept))
    async with asyncio.timeout(60):
        await well.wait()
    assert (kept.stats["bad"].failures, kept.stats["bad"].up) == (3, 1)
    assert (kept.stats["good"].failures, kept.stats["good"].up) == (0, 1)
    assert kept.down == []
    stop.set()
    await task
    assert len(started) == 4
    assert len(others) == 1
    said = capfd.readouterr().err
    assert said.count("stage `bad` failed") == 3
    assert supervision.exit_code(kept) == 0
    assert "stage `bad` failed 3 times and had come back" in capfd.readouterr().err


async def test_it_backs_off_and_never_longer_than_the_longest() -> None:
    stop = asyncio.Event()
    failures: list[Failure] = []

    async def tell(failure: Failure) -> None:
        failures.append(failure)

    stage, _ = failing(6, Unavailable("gone"))
    kept = Supervision(tell)
    task = asyncio.create_task(service.run([("bad", stage)], stop, signals=False, supervision=kept))
    await until(lambda: len(failures) == 6)
    stop.set()
    await task
    assert [one.pause for one in failures] == [0.01, 0.02, 0.04, 0.04, 0.04, 0.04]
    assert [one.number for one in failures] == [1, 2, 3, 4, 5, 6]


async def test_a_stage_that_is_down_at_the_end_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervision, "RESTART", Backoff(first_seconds=3600.0, max_seconds=3600.0))
    stop = asyncio.Event()
    stage, _ = failing(1, Unavailable("gone"))
    kept = Supervision()
    task = asyncio.create_task(service.run([("bad", stage)], stop, signals=False, supervision=kept))
    await until(lambda: kept.down)
    stop.set()
    async with asyncio.timeout(60):
        await task
    assert supervision.exit_code(kept) == 1
    assert "stage `bad` failed 1 time and was down at the end; last: gone" in capfd.readouterr().err


async def test_a_failure_while_draining_is_the_exit_code_too() -> None:
    async def breaks(stop: asyncio.Event) -> None:
        await stop.wait()
        raise ValueError("in the drain")

    stop = asyncio.Event()
    stop.set()
    kept = Supervision()
    await service.run([("breaks", breaks)], stop, signals=False, supervision=kept)
    assert kept.down == ["breaks"]
    assert supervision.exit_code(kept) == 1


async def test_it_is_an_alert_that_every_reader_understands() -> None:
    bus, stop, well = MemoryBus(), asyncio.Event(), asyncio.Event()
    stage, _ = failing(1, RecursionError("too deep"), well)
    kept = Supervision(supervision.reporter(bus, "n1"))
    task = asyncio.create_task(service.run([("enforcement", stage)], stop, signals=False, supervision=kept))
    async with asyncio.timeout(60):
        await well.wait()
    await kept.settle()
    stop.set()
    await task
    (record,) = bus.records(ALERTS)
    alert = decode_alert(record.value or b"")
    assert (alert.Type, alert.Operation, alert.Resource) == ("SystemEvent", "StageFailed", "enforcement")
    assert alert.HostName == "n1"
    assert alert.EventData is not None
    assert "RecursionError: too deep" in alert.EventData["why"]


async def test_a_bus_that_takes_nothing_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervision, "TELLING", 0.02)
    bus, stop, well = MemoryBus(), asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> list[Record]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(bus, "publish", never)
    stage, _ = failing(2, Unavailable("gone"), well)
    kept = Supervision(supervision.reporter(bus, "n1"))
    task = asyncio.create_task(service.run([("bad", stage)], stop, signals=False, supervision=kept))
    async with asyncio.timeout(60):
        await well.wait()
        await kept.settle()
    stop.set()
    await task
    assert capfd.readouterr().err.count("could not be published: TimeoutError") == 2


async def test_a_cut_off_stage_ends_what_it_runs() -> None:
    ended = asyncio.Event()

    async def hangs(stop: asyncio.Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    stop, hurry = asyncio.Event(), asyncio.Event()
    stop.set()
    hurry.set()
    async with asyncio.timeout(service.DRAIN_SECONDS):
        await service.run([("hangs", hangs)], stop, signals=False, hurry=hurry, supervision=Supervision())
    assert ended.is_set()
