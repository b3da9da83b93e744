# SPDX-License-Identifier: Apache-2.0
"""The size of what is published, refused before anything of it is written. Neighbours: every bus asks it first."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Final

from bus.contract import Record
from schemas.errors import Refused
from schemas.topics import Topic

KEY_BYTES: Final = 4096
"""Of a key, at most: four names of Kubernetes, each as long as may be, are a quarter of it."""


def measure(topic: Topic, records: Sequence[Record], most: int) -> int:
    """Bytes of `records`. `Refused` for one over `most` bytes, with a key over `KEY_BYTES`, or not made of bytes: one such fails a whole commit."""
    total = 0
    for record in records:
        if type(record.key) is not bytes or type(record.value) not in (bytes, NoneType):
            raise Refused(
                f"`{topic.name}`: expected key and value as bytes, got {type(record.key).__name__} and "
                f"{type(record.value).__name__}; encode them first"
            )
        if len(record.key) > KEY_BYTES:
            raise Refused(
                f"`{topic.name}`: expected a key of at most {KEY_BYTES} bytes, got {len(record.key)}; shorten it"
            )
        size = record.size
        if size > most:
            raise Refused(
                f"`{topic.name}`: expected a record of at most `record_bytes` {most}, got {size}; send it in parts"
            )
        total += size
    return total
