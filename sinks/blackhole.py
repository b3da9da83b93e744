# SPDX-License-Identifier: Apache-2.0
"""Takes everything and keeps nothing: the far end for benchmarks and for trying out filters.

What it does: accepts each batch at once. Delivery guarantee: none, on purpose. Limit: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from schemas.topics import Topic
from sinks.settings import Common, Content, topics_of
from sinks.sink import ACCEPTED, BatchLimits, Item, SendResult


class BlackholeSettings(
    Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="blackhole", tag_field="type"
):
    """Accept and discard."""

    content: Annotated[Content, msgspec.Meta(description="What to read.", examples=["both"])] = "both"


class BlackholeSink:
    """See `sink.Sink`. `count`: items taken."""

    live = False
    takes_json = True
    limits = BatchLimits(items=5000)

    def __init__(self, settings: BlackholeSettings) -> None:
        self.name = settings.name or "blackhole"
        self.topics: tuple[Topic, ...] = topics_of(settings.content)
        self.count = 0

    async def check(self) -> None:
        return None

    async def open(self) -> None:
        return None

    async def send(self, items: Sequence[Item]) -> SendResult:
        self.count += len(items)
        return ACCEPTED

    async def idle(self) -> None:
        return None

    async def close(self) -> None:
        return None
