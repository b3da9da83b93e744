# SPDX-License-Identifier: Apache-2.0
"""The size of what is published, refused before anything of it is written. Neighbours: every bus asks it first."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType

from bus.contract import Record
from schemas.errors import Refused
from schemas.topics import Topic


def measure(topic: Topic, records: Sequence[Record], most: int) -> int:
    """Bytes of `records`. `Refused` for one over `most` bytes or made of anything but bytes: one such fails a whole commit."""
    total = 0
    for record in records:
        if type(record.key) is not bytes or type(record.value) not in (bytes, NoneType):
            raise Refused(
                f"`{topic.name}`: expected key and value as bytes, got {type(record.key).__name__} and "
                f"{type(record.value).__name__}; encode them first"
            )
        size = record.size
        if size > most:
            raise Refused(
                f"`{topic.name}`: expected a record of at most `record_bytes` {most}, got {size}; send it in parts"
            )
        total += size
    return total
