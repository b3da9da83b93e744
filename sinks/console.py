# SPDX-License-Identifier: Apache-2.0
"""Live alerts (and logs) on standard output.

What it does: karmor's text form, one compact line, or JSON lines. Delivery guarantee: shows the present; it keeps no
offsets, so what happened while nobody looked is not shown later (the file sink and the store hold it). Limit: as fast as
the terminal reads; a terminal that does not read slows only this sink.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from schemas.alert import Log
from schemas.errors import Unavailable
from schemas.topics import Topic
from sinks.formats import line_text
from sinks.settings import Common, Content, topics_of
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult


class ConsoleSettings(Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="console", tag_field="type"):
    """Write to standard output."""

    content: Annotated[Content, msgspec.Meta(description="What to show.", examples=["alerts"])] = "alerts"
    form: Annotated[
        Literal["line", "text", "json"],
        msgspec.Meta(
            description="`line`: compact; `text`: as `karmor logs`; `json`: one object a line.", examples=["line"]
        ),
    ] = "line"
    colour: Annotated[
        Literal["auto", "always", "never"],
        msgspec.Meta(description="`auto`: on a terminal, unless NO_COLOR is set.", examples=["auto"]),
    ] = "auto"


class ConsoleSink:
    """See `sink.Sink`. `fd`: where to write, standard output unless a test says otherwise."""

    live = True
    takes_json = False
    limits = BatchLimits(items=200, age_seconds=0.0, send_seconds=3600.0)

    def __init__(self, settings: ConsoleSettings, fd: int | None = None) -> None:
        self.name = settings.name or "console"
        self.topics: tuple[Topic, ...] = topics_of(settings.content)
        self._form = settings.form
        self._fd = sys.stdout.fileno() if fd is None else fd
        self._colour = settings.colour == "always" or (
            settings.colour == "auto" and os.isatty(self._fd) and not os.environ.get("NO_COLOR")
        )

    async def check(self) -> None:
        try:
            os.fstat(self._fd)
        except OSError as error:
            raise Unavailable(
                f"expected standard output to be open, got {error.strerror}; redirect it to a file or a terminal"
            ) from error

    async def open(self) -> None:
        return None

    async def send(self, items: Sequence[Item]) -> SendResult:
        data = "".join(self._show(item) for item in items if isinstance(item, Log)).encode("utf-8", "backslashreplace")
        try:
            # In a thread: a terminal stopped with ctrl-S must not stop the loop.
            await asyncio.to_thread(_write_all, self._fd, data)
        except OSError as error:
            raise Unavailable(
                f"console: expected to write to standard output, got {error.strerror}; its reader is gone"
            ) from error
        return ACCEPTED

    async def idle(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def _show(self, item: Log) -> str:
        if self._form == "json":
            return msgspec.json.encode(item).decode() + "\n"
        if self._form == "text":
            return line_text.block(item)
        return line_text.line(item, colour=self._colour)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
