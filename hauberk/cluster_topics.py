# SPDX-License-Identifier: Apache-2.0
"""`hauberk topic create|check|alter`: the topics of a Kafka cluster held against the topic table.

`create` makes what is missing, `alter` sets what may be set without harm, `create --alter` does both, `check` only looks; all then
show what still differs, as the brokers tell it afterwards. Neighbours: `bus.kafka.topic_configs` (the comparison), `bus.kafka.administration`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from bus.kafka.topic_configs import Difference, Remedy, differences, wanted
from hauberk.output import plain, show

if TYPE_CHECKING:
    import argparse

    from bus.kafka.administration import Administration
    from bus.kafka.settings import KafkaSettings
    from bus.kafka.topic_configs import WantedTopic

SEEN_SECONDS: Final = 15.0
"""A change goes through the metadata log to every broker: 0.1 s as a rule. Until then the one that is asked may not know of it."""


async def run(settings: KafkaSettings, what: Collection[str], given: argparse.Namespace) -> tuple[int, str]:
    """(exit code, what to print): 0 when the topics are as they should be, 1 when something differs."""
    from bus.kafka.administration import Administration

    administration = Administration(settings)
    try:
        topics = wanted(settings.prefix, settings.topics, await administration.brokers())
        before = await _compared(administration, topics)
        done = await _carry_out(administration, topics, before, what)
        after = await _settled(administration, topics, done) if done else before
    finally:
        await administration.close()
    return int(bool(after)), _shown(topics, after, done, given)


async def drift(settings: KafkaSettings) -> list[Difference]:
    """What differs from the topic table now."""
    from bus.kafka.administration import Administration

    administration = Administration(settings)
    try:
        return await _compared(administration, wanted(settings.prefix, settings.topics, await administration.brokers()))
    finally:
        await administration.close()


async def _compared(administration: Administration, topics: Sequence[WantedTopic]) -> list[Difference]:
    states = await administration.states([one.name for one in topics])
    return [found for one in topics for found in differences(one, states[one.name])]


async def _carry_out(
    administration: Administration, topics: Sequence[WantedTopic], before: Sequence[Difference], what: Collection[str]
) -> list[Difference]:
    """What was asked of the brokers."""
    missing = [one for one in before if one.remedy is Remedy.CREATE and "create" in what]
    if missing:
        names = {one.topic for one in missing}
        await administration.create([one for one in topics if one.name in names])
    due = [one for one in before if one.remedy is Remedy.ALTER and "alter" in what]
    configs: dict[str, dict[str, str]] = {}
    for one in due:
        if one.what == "partitions":
            await administration.grow(one.topic, int(one.wanted))
        else:
            configs.setdefault(one.topic, {})[one.what] = one.wanted
    if configs:
        await administration.alter(configs)
    return missing + due


async def _settled(
    administration: Administration, topics: Sequence[WantedTopic], done: Sequence[Difference]
) -> list[Difference]:
    """What differs once the brokers tell of what was done, or after `SEEN_SECONDS`."""
    asked = {(one.topic, one.what) for one in done}
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        after = await _compared(administration, topics)
        if not asked & {(one.topic, one.what) for one in after} or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.1)


def _shown(
    topics: Sequence[WantedTopic], after: Sequence[Difference], done: Sequence[Difference], given: argparse.Namespace
) -> str:
    """What was done, and what still differs; "" on a terminal when there is neither."""
    left = {(one.topic, one.what) for one in after}
    rows = [
        (one.topic, one.what, one.wanted, one.found, "done", "") for one in done if (one.topic, one.what) not in left
    ]
    rows += [(one.topic, one.what, one.wanted, one.found, _next(one), one.why) for one in after]
    if not rows and given.output in ("table", "wide"):
        return f"{len(topics)} topics are as they should be"
    names = ("topic", "what", "wanted", "found", "state", "why")
    value = [dict(zip(names, row, strict=True)) for row in rows]
    shown = show(plain(value), ("TOPIC", "WHAT", "WANTED", "FOUND", "STATE"), rows, given.output, wide=("WHY",),
                 names=[f"topic/{name}" for name in dict.fromkeys(row[0] for row in rows)], headings=not given.no_headers)  # fmt: skip
    whys = dict.fromkeys(f"{one.topic}: {one.what}: {one.why}" for one in after if one.why)
    return "\n".join((shown, *(whys if given.output == "table" else ())))


def _next(one: Difference) -> str:
    """What a person can do about it."""
    return {
        Remedy.CREATE: "missing: `topic create`", Remedy.ALTER: "differs: `topic alter`", Remedy.BY_HAND: "differs: by hand",
        Remedy.REFUSED: "refused",
    }[one.remedy]  # fmt: skip
