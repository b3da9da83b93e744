# SPDX-License-Identifier: Apache-2.0
"""Runs stages until told to stop: signals, clean drain with a deadline, systemd's notify protocol (sd_notify(3)).

A stage is an async callable that ends when its stop event is set. The first failure stops the others; a second signal
while draining ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from schemas.errors import HauberkError

DRAIN_SECONDS: Final = 15.0
"""Longest wait for stages to finish what is in hand; systemd's default TimeoutStopSec is 90."""

Stage = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


def notify(state: str) -> None:
    """Tell systemd (`READY=1`, `STOPPING=1`, `STATUS=...`); nothing without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


@contextlib.contextmanager
def listening(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at the first SIGINT or SIGTERM; end the process at the second."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        if stop.is_set() and told_before:
            print("hauberk: told twice to stop; not waiting for what is in hand", file=sys.stderr, flush=True)
            os._exit(130)
        if not told_before and not stop.is_set():
            print(
                "hauberk: stopping: what is in hand is finished first; once more ends at once",
                file=sys.stderr,
                flush=True,
            )
        told_before.append(True)
        stop.set()

    told_before: list[bool] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)


async def run(stages: Sequence[tuple[str, Stage]], stop: asyncio.Event | None = None, *, signals: bool = True) -> None:
    """Run every stage until a signal, `stop`, or the first failure; then drain. Raises that failure.

    `signals`: false when the caller is `listening` already, from before its stages were there until after they are closed.

    Stages are told to stop one after the other, in the order given: a stage upstream has said its last word before the
    next one is asked to finish.
    """
    whole = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    heard = contextlib.ExitStack()
    if signals:
        heard.enter_context(listening(whole))
    ends = {name: asyncio.Event() for name, _ in stages}
    tasks: dict[str, asyncio.Task[None]] = {
        name: asyncio.create_task(stage(ends[name]), name=name) for name, stage in stages
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
        deadline = loop.time() + DRAIN_SECONDS
        for name, task in tasks.items():
            ends[name].set()
            if not task.done():
                await asyncio.wait({task}, timeout=max(0.5, deadline - loop.time()))
            if not task.done():
                print(
                    f"hauberk: `{name}` did not finish within {DRAIN_SECONDS:g} s and is cut off",
                    file=sys.stderr,
                    flush=True,
                )
                task.cancel()
                await asyncio.wait({task}, timeout=2)
        for name, task in tasks.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, HauberkError):
                    raise error
                raise RuntimeError(f"stage `{name}` failed: {type(error).__name__}: {error}") from error
    finally:
        watcher.cancel()
        for task in tasks.values():
            task.cancel()
        heard.close()
