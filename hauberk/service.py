# SPDX-License-Identifier: Apache-2.0
"""Runs stages until told to stop: signals, clean drain with a deadline, systemd's notify protocol (sd_notify(3)).

A stage is an async callable that ends when its stop event is set, and may be called again after it failed. Under a
`Supervision` a failed stage is started again with back-off while the others run on; without one (a replay) the first failure
stops the others. A further signal while draining hurries the same end: nothing that is to be undone is left out.
Neighbour: `supervision` (back-off, counts, what is told).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol

from schemas.errors import HauberkError

DRAIN_SECONDS: Final = 15.0
"""Longest wait for stages to finish what is in hand; systemd's default TimeoutStopSec is 90."""
HURRIED_SECONDS: Final = 0.5
"""The same for each stage once told again to stop: long enough to commit, short enough for who sends SIGKILL next."""

Stage = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


class Keeper(Protocol):
    """What `run` needs of a `hauberk.supervision.Supervision`."""

    async def keep(self, name: str, stage: Stage, end: asyncio.Event) -> None:
        """Run `stage` until it returns or `end` is set; start it again when it fails."""


def notify(state: str) -> None:
    """Tell systemd (`READY=1`, `STOPPING=1`, `STATUS=...`); nothing without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def say(text: str, verb: str = "") -> None:
    """One line on standard error, for `verb` or the whole. A terminal or pipe that is gone is no reason to end, least of all to end half way."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hauberk{f' {verb}' if verb else ''}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def listening(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Set `stop` at the first SIGINT, SIGTERM or SIGHUP, and what is yielded at the second. The process goes on to its own
    end, however often it is told. SIGHUP is left alone where it is ignored, as by nohup(1)."""
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()
    told_before = False

    def told() -> None:
        nonlocal told_before
        if told_before:
            if not hurry.is_set():
                say("second signal: unfinished work is abandoned, the rest of the shutdown is not skipped")
            hurry.set()
        elif not stop.is_set():
            say("stopping: work in progress is finished first; a second signal skips that")
        told_before = True
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
    for number in numbers:
        with contextlib.suppress(ValueError):
            loop.add_signal_handler(number, told)
    try:
        yield hurry
    finally:
        for number in numbers:
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)
                if told_before:
                    # The process is about to end by itself; one signal more must not make that look like a failure.
                    signal.signal(number, signal.SIG_IGN)


async def run(
    stages: Sequence[tuple[str, Stage]],
    stop: asyncio.Event | None = None,
    *,
    hurry: asyncio.Event | None = None,
    signals: bool = True,
    supervision: Keeper | None = None,
) -> None:
    """Run every stage until a signal or `stop`; then drain. Without `supervision` also until the first failure, which is
    raised; with it, what failed is in its counts.

    `signals`: false when the caller is `listening` already, from before its stages were there until after they are closed.

    Stages are told to stop one after the other, in the order given: a stage upstream has said its last word before the
    next one is asked to finish.
    """
    whole, hurry = stop or asyncio.Event(), hurry or asyncio.Event()
    with contextlib.ExitStack() as heard:
        if signals:
            hurry = heard.enter_context(listening(whole))
        ends = {name: asyncio.Event() for name, _ in stages}
        tasks = {
            name: asyncio.create_task(
                stage(ends[name]) if supervision is None else supervision.keep(name, stage, ends[name]), name=name
            )
            for name, stage in stages
        }
        watcher = asyncio.create_task(whole.wait())
        try:
            pending: set[asyncio.Task[Any]] = set(tasks.values())
            while pending and not whole.is_set():
                done, _ = await asyncio.wait({*pending, watcher}, return_when=asyncio.FIRST_COMPLETED)
                pending -= done
                if any(task is not watcher and not task.cancelled() and task.exception() is not None for task in done):
                    break
            notify("STOPPING=1")
            await _drain(tasks, ends, hurry)
            for name, task in tasks.items():
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    if isinstance(error, HauberkError):
                        raise error
                    raise RuntimeError(f"stage `{name}` failed: {type(error).__name__}: {error}") from error
        finally:
            watcher.cancel()
            for task in tasks.values():
                task.cancel()


async def _drain(
    tasks: dict[str, asyncio.Task[None]], ends: dict[str, asyncio.Event], hurry: asyncio.Event
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DRAIN_SECONDS
    hurried = asyncio.create_task(hurry.wait())
    try:
        for name, task in tasks.items():
            ends[name].set()
            if not task.done() and not hurry.is_set():
                await asyncio.wait(
                    {task, hurried}, timeout=max(0.5, deadline - loop.time()), return_when=asyncio.FIRST_COMPLETED
                )
            if not task.done() and hurry.is_set():
                await asyncio.wait({task}, timeout=HURRIED_SECONDS)
            if not task.done():
                within = "after the second signal" if hurry.is_set() else f"within {DRAIN_SECONDS:g} s"
                say(f"`{name}` did not finish {within} and is cancelled")
                task.cancel()
                await asyncio.wait({task}, timeout=2)
    finally:
        hurried.cancel()
