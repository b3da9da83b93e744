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
from collections.abc import Awaitable, Callable
from typing import Final

from schemas.errors import HauberkError

DRAIN_SECONDS: Final = 15.0
"""Longest wait for stages to finish what is in hand; systemd's default TimeoutStopSec is 90."""

Stage = Callable[[asyncio.Event], Awaitable[None]]


def notify(state: str) -> None:
    """Tell systemd (`READY=1`, `STOPPING=1`, `STATUS=...`); nothing without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


async def run(stages: dict[str, Stage], stop: asyncio.Event | None = None) -> None:
    """Run every stage until a signal, `stop`, or the first failure; then drain. Raises that failure."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = 0

    def told() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            print("hauberk: told twice to stop; not waiting for what is in hand", file=sys.stderr, flush=True)
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.add_signal_handler(number, told)
    tasks = {asyncio.ensure_future(stage(stop)): name for name, stage in stages.items()}
    watcher = asyncio.ensure_future(stop.wait())
    try:
        pending = set(tasks)
        while pending and not stop.is_set():
            done, _ = await asyncio.wait({*pending, watcher}, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
            if any(task in tasks and task.exception() is not None for task in done if not task.cancelled()):
                stop.set()
        notify("STOPPING=1")
        stop.set()
        if pending:
            _, late = await asyncio.wait(pending, timeout=DRAIN_SECONDS)
            for task in late:
                print(
                    f"hauberk: `{tasks[task]}` did not finish within {DRAIN_SECONDS:g} s and is cut off",
                    file=sys.stderr,
                )
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=2)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, HauberkError):
                    raise error
                raise RuntimeError(f"stage `{tasks[task]}` failed: {type(error).__name__}: {error}") from error
    finally:
        watcher.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)
