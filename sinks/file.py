# SPDX-License-Identifier: Apache-2.0
"""Alerts and logs as JSON lines in a file that rotates.

What it does: one KubeArmor-shaped object a line, file mode 0600, rotated by size and age, `keep` old files. Delivery
guarantee: at least once; an alert is accepted after fdatasync, a log after write(2) (see `fsync`). A crash leaves at most
one partial line, which is cut off at the next open (its record was never committed, so it comes again). Limit: one writer
per file; a line longer than the rotation size still goes in whole.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from bus.disk import capped
from schemas.topics import Topic
from sinks.line_file import LineFile
from sinks.settings import Common, Content, topics_of
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult


class FileSettings(Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="file", tag_field="type"):
    """Write JSON lines."""

    path: Annotated[str, msgspec.Meta(description="The file; its directory must exist.", examples=["alerts.jsonl"])]
    content: Annotated[Content, msgspec.Meta(description="What to write.", examples=["alerts"])] = "alerts"
    rotate_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=4096, le=1 << 50, description="Rotate when the file would grow past this, bytes.", examples=[1 << 26]
        ),
    ] = 64 << 20
    rotate_seconds: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=315_360_000, description="Rotate when the file is older, seconds; 0 never.", examples=[86400]
        ),
    ] = 0
    keep: Annotated[
        int, msgspec.Meta(ge=0, le=1000, description="Old files kept: `path.1` is the newest.", examples=[5])
    ] = 5
    fsync: Annotated[
        Literal["auto", "batch", "rotate", "never"],
        msgspec.Meta(
            description="When to force lines to disk: each batch, at rotation, never; `auto`: alerts each batch, logs at rotation.",
            examples=["auto"],
        ),
    ] = "auto"


class FileSink:
    """See `sink.Sink`."""

    live = False
    takes_json = True
    # No waiting for company: while one batch is synced, the next comes together on the bus by itself.
    limits = BatchLimits(items=20_000, size_bytes=4 << 20, age_seconds=0.0)

    def __init__(self, settings: FileSettings) -> None:
        self.name = settings.name or "file"
        self.topics: tuple[Topic, ...] = topics_of(settings.content)
        path = os.path.abspath(settings.path)
        # With its old ones a quarter of the disk at most.
        self.lines = LineFile(
            path,
            rotate_bytes=max(4096, capped(settings.rotate_bytes, os.path.dirname(path), 4 * (settings.keep + 1))),
            rotate_seconds=settings.rotate_seconds,
            keep=settings.keep,
            sync_each=settings.fsync == "batch" or (settings.fsync == "auto" and settings.content == "alerts"),
            sync_rotate=settings.fsync != "never",
        )

    async def check(self) -> None:
        await asyncio.to_thread(self.lines.check)

    async def open(self) -> None:
        await asyncio.to_thread(self.lines.open)

    async def send(self, items: Sequence[Item]) -> SendResult:
        await asyncio.to_thread(self._write, items)
        return ACCEPTED

    async def idle(self) -> None:
        if self.lines.ages:
            await asyncio.to_thread(self.lines.rotate_if_old)

    async def close(self) -> None:
        await asyncio.to_thread(self.lines.close)

    def _write(self, items: Sequence[Item]) -> None:
        lines = [item for item in items if isinstance(item, bytes)]
        if lines:
            lines.append(b"")
            self.lines.append(b"\n".join(lines))
