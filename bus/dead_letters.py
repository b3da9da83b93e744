# SPDX-License-Identifier: Apache-2.0
"""Writes what is given up to the topic `dead`, with where it lay and why: the only writer of that topic.

Headers, all of them on every letter: the record's own, then `HEADERS`. `dead.partition` and `dead.offset` are empty for a
record that never lay on its topic, because the bus refused it. Neighbours: `attempts` (gives up), `pump`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from bus.attempts import Attempts, reason_of
from bus.contract import Bus, Delivery, Headers, Record
from bus.paced_log import PacedLog
from schemas.errors import Permanent
from schemas.topics import DEAD, Topic

log = logging.getLogger(__name__)

HEADERS: Final = (
    "dead.topic", "dead.partition", "dead.offset", "dead.group", "dead.stage", "dead.reason", "dead.error",
    "dead.attempts", "dead.time",
)  # fmt: skip
"""`reason`: of `schemas.errors.Reason`; `error`: type and sentence, at most 1,024 bytes; `attempts`: tries of the part it was
in when it was given up; `time`: ms since the epoch."""
SHOWN: Final = 65536
"""Bytes of key and value that are kept of a record that `dead` does not take whole: it may have been refused for its size."""


class Letter(msgspec.Struct, frozen=True, gc=False):
    """A record given up after `attempts` tries, and where it lay."""

    topic: Topic
    record: Record
    error: Exception
    attempts: int
    partition: int | None = None
    offset: int | None = None


def letter(delivery: Delivery, error: Exception, attempts: int, value: bytes | None = None) -> Letter:
    """Of a delivery. `value`: the part of its record that is given up; None: all of it."""
    record = delivery.record
    if value is not None:
        record = Record(record.key, value, record.headers)
    return Letter(delivery.topic, record, error, attempts, delivery.partition, delivery.offset)


class DeadLetters:
    """`written` and `lost` count records; lost is what `dead` itself refused, which is logged; lines are paced. `attempts` None: each
    letter is tried once, and `Temporary` is the caller's."""

    def __init__(self, bus: Bus, stage: str, group: str | None, attempts: Attempts | None) -> None:
        self._bus = bus
        self._stage = stage
        self._group = group or ""
        self._attempts = attempts
        self.written = 0
        self.lost = 0
        self._given_up, self._refused = PacedLog(log), PacedLog(log)

    async def write(self, letters: Sequence[Letter]) -> None:
        """Write `letters` and return when they are durable: only then may their offsets be committed. Raises `Stopped`."""
        if not letters:
            return
        records = [self._record(one) for one in letters]
        try:
            await self._publish(records)
            self.written += len(records)
        except Permanent:
            for record in records:
                await self._write_cut(record)
        # Whoever may write to a topic may write what nobody can read, as often as they like.
        many = f"{len(letters)} record{'s' * (len(letters) != 1)}"
        self._given_up.say(
            logging.ERROR, f"{self._stage}: {many} given up, kept on `dead`; the first because: {letters[0].error}"
        )

    async def _publish(self, records: list[Record]) -> None:
        if self._attempts is None:
            await self._bus.publish(DEAD, records)
        else:
            await self._attempts.insist(lambda: self._bus.publish(DEAD, records))

    async def _write_cut(self, record: Record) -> None:
        cut = Record(record.key[:SHOWN], (record.value or b"")[:SHOWN], record.headers[-len(HEADERS) :])
        try:
            try:
                await self._publish([record])
            except Permanent:
                await self._publish([cut])
            self.written += 1
        except Permanent as error:
            self.lost += 1
            self._refused.say(logging.ERROR, f"{self._stage}: a record is lost, `dead` refused it: {error}")

    def _record(self, one: Letter) -> Record:
        said = (
            one.topic.name,
            "" if one.partition is None else str(one.partition),
            "" if one.offset is None else str(one.offset),
            self._group,
            self._stage,
            reason_of(one.error).value,
            f"{type(one.error).__name__}: {one.error}"[:1024],
            str(one.attempts),
            str(time.time_ns() // 1_000_000),
        )
        headers: Headers = tuple(
            (name, text.encode("utf-8", "replace")) for name, text in zip(HEADERS, said, strict=True)
        )
        # A dead tombstone would delete nothing on `dead`, and None is no value there.
        return Record(one.record.key, one.record.value or b"", (*one.record.headers, *headers))
