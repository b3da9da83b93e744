# SPDX-License-Identifier: Apache-2.0
"""What a sink owes and what it is owed: read this first.

A sink takes typed words and hands them to a far side: a file, a syslog server, a store, a scrape. It says what was
accepted, what to try again and what will never be taken. It must never sleep, retry or count: `delivery` does these once,
for all. Neighbours: `registry` (everything that exists), `sinks.delivery.consumer` (drives one sink), `sinks.delivery.reader` (records to words).

Every item stands on its own, so a repeat is harmless to read: delivery is at least once, `EventID` tells repeats apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from schemas.alert import Alert, Log
from schemas.enforcement import Receipt
from schemas.summary import Summary
from schemas.topics import Topic

Item: TypeAlias = Alert | Log | Summary | Receipt | bytes
"""What travels into a sink. `Alert` is a `Log`: ask for `Alert` first. `bytes`: an alert or log as one JSON object without
a newline, for sinks with `takes_json` (expanding a frame straight to JSON is many times faster than through structs)."""


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is closed: at `items`, at `size_bytes` (of the records it came from), or `age_seconds` after its first
    item, whichever is first. `send_seconds`: how long one `send` may take before it counts as unavailable."""

    items: int = 500
    size_bytes: int = 1 << 20
    age_seconds: float = 0.02
    send_seconds: float = 30.0


class RefusedItem(msgspec.Struct, frozen=True, gc=False):
    """An item the far side will never take: its index in the batch and the reason in words."""

    index: int
    why: str


class SendResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of a batch. Silence means accepted: an index in neither `refused` nor `retry` is with the far side.

    `retry`: indexes to send again, in order. A sink whose order matters puts everything behind the first of them there
    too. `retry_after`: seconds the far side asked for, None when it did not say.
    """

    refused: tuple[RefusedItem, ...] = ()
    retry: tuple[int, ...] = ()
    retry_after: float | None = None


ACCEPTED = SendResult()
"""Everything was taken."""


class Sink(Protocol):
    """One way out. All methods are called from one task, never in parallel; none may block the loop (files and databases
    go through a thread). Whoever built the sink closes it."""

    @property
    def name(self) -> str:
        """Settings tag or the name given there: consumer group `sink.<name>` and metric label."""
        ...

    @property
    def topics(self) -> tuple[Topic, ...]:
        """What it reads. Constant after construction."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """How it likes its batches."""
        ...

    @property
    def live(self) -> bool:
        """True for what only shows the present (a terminal): it keeps no offsets and starts at the newest record."""
        ...

    @property
    def takes_json(self) -> bool:
        """True when alerts and logs shall come as JSON bytes instead of structs."""
        ...

    async def check(self) -> None:
        """Can this work? Called once before `open`, holds nothing open. Raises a sentence an operator can act on:
        `Permanent` when somebody must change something, `Temporary` when the far side is merely away."""
        ...

    async def open(self) -> None:
        """Get ready to send. `Temporary` is retried by delivery with back-off; `Permanent` stops this sink, not the others.
        Called again after a `Temporary` from `send` only if the sink was closed in between."""
        ...

    async def send(self, items: Sequence[Item]) -> SendResult:
        """Hand over `items`, in order, and return once the far side has them, as far as its protocol can say.

        Waits without blocking the loop; cancelling it leaves the batch unaccepted. Raises `Temporary` (the same batch
        again) or `Permanent` (delivery halves the batch to find the culprit and dead-letters it); nothing else. A sink
        that lost its connection reconnects here, once per call. Items of a kind it did not ask for are not sent to it.
        """
        ...

    async def idle(self) -> None:
        """Nothing arrived for a while: the time to notice a lost connection or to rotate. May raise `Temporary`. Every half minute,
        and every 5 s while the sink has an attribute `unsettled` that is true."""
        ...

    async def close(self) -> None:
        """Flush and let go. Twice is once; never raises for a far side that is already gone."""
        ...
