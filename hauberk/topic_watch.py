# SPDX-License-Identifier: Apache-2.0
"""Looks whether the topics of a role forget as the topic table says, where a far side decides that: policies that are deleted by
age instead of by key are gone after a week, and nothing fails until then.

Told in the log, and by a role that nobody connects to in `/readyz` as well. Neighbours: `bus.kafka.forgetting` (asks), `health`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from schemas.errors import HauberkError, NotGranted, Refused
from schemas.topics import TOPICS, Role, Topic

if TYPE_CHECKING:
    from bus.contract import Bus

log = logging.getLogger(__name__)

AWAY_SECONDS: Final = 5.0
"""Between two tries while nobody answers, which is told elsewhere."""
WRONG_SECONDS: Final = 10.0
WELL_SECONDS: Final = 3600.0


def topics_of(role: Role) -> list[Topic]:
    """Those that it reads or writes."""
    return [topic for topic in TOPICS if role in topic.readers or role in topic.writers]


class TopicWatch:
    """`problems`: topic on the far side -> what is wrong with it, as of the latest look."""

    def __init__(self, bus: Bus, role: Role) -> None:
        self._ask = getattr(bus, "otherwise_forgotten", None)
        self._topics = topics_of(role)
        self.problems: dict[str, str] = {}

    async def run(self) -> None:
        """Until it is cancelled; at once where the bus sees to that itself."""
        while self._ask is not None:
            try:
                found = await self._ask(self._topics)
            except (Refused, NotGranted):
                # Not asked again: brokers log each question that they refuse.
                return
            except HauberkError:
                await asyncio.sleep(AWAY_SECONDS)
                continue
            for topic, why in found.items():
                if self.problems.get(topic) != why:
                    log.error("topic `%s`: %s", topic, why)
            self.problems = found
            await asyncio.sleep(WRONG_SECONDS if found else WELL_SECONDS)

    def checks(self) -> dict[str, str]:
        """For `/readyz`."""
        return {f"topic {name}": why for name, why in self.problems.items()}
