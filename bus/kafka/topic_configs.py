# SPDX-License-Identifier: Apache-2.0
"""What each topic should be on a Kafka cluster, and how one that is there differs. Pure.

The topic table says it, settings move single numbers. What cannot be changed without harm is a difference that is told and
never carried out: with another number of partitions a node's frames would go to another partition than those before, and
the newest value of a key would stand beside an older one that compaction can no longer remove.
Neighbours: `schemas.topics` (the table), the client that asks and alters.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from schemas.topics import BY_NAME, TOPICS, Cleanup, Topic

Meta = msgspec.Meta

COPIES: Final = 3
"""Replicas of each partition, where there are as many brokers."""
HOUR_MS: Final = 3_600_000
TIME_TYPE: Final = "message.timestamp.type"
_OWN_CLOCKS: Final = "whether a node is there is told by its own clock until this is set"


class TopicSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the topics are made: what differs from the topic table. Names are those of `hauberk topic list`."""

    replication: Annotated[
        int,
        Meta(
            ge=0,
            le=32767,
            description="Copies of each partition; 0 is three, or one per broker where there are fewer.",
            examples=[3],
        ),
    ] = 0
    partitions_of: Annotated[
        dict[str, Annotated[int, Meta(ge=1, le=100_000)]],
        Meta(
            description="Partitions, by topic name. To be chosen before the topics are made: keys would move.",
            examples=[{"events.raw": 48}],
        ),
    ] = {}
    retention_hours_of: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=876_000)]],
        Meta(description="Hours kept, by topic name; 0 is for ever.", examples=[{"alerts": 720}]),
    ] = {}
    retention_bytes_of: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=1 << 50)]],
        Meta(
            description="Bytes kept of each partition, by topic name; 0, as for those not named, is no limit.",
            examples=[{"events.raw": 10737418240}],
        ),
    ] = {}
    record_bytes_of: Annotated[
        dict[str, Annotated[int, Meta(ge=65536, le=1 << 30)]],
        Meta(description="Largest record, by topic name.", examples=[{"enforcement.desired": 16777216}]),
    ] = {}

    def __post_init__(self) -> None:
        for field in ("partitions_of", "retention_hours_of", "retention_bytes_of", "record_bytes_of"):
            for name in getattr(self, field):
                if name not in BY_NAME:
                    raise ValueError(f"expected names of topics in `{field}` ({', '.join(BY_NAME)}), got `{name}`")


class WantedTopic(msgspec.Struct, frozen=True):
    """What a topic should be. `configs`: Kafka's names and values, as texts."""

    topic: Topic
    name: str
    partitions: int
    replication: int
    configs: dict[str, str]


class TopicState(msgspec.Struct, frozen=True):
    """What a topic is. `replication`: of the partition with the fewest copies. `configs`: all of them, defaults too."""

    partitions: int
    replication: int
    configs: dict[str, str]


class Remedy(StrEnum):
    """What can be done about a difference."""

    CREATE = "create"
    ALTER = "alter"
    BY_HAND = "by hand"
    REFUSED = "refused"


class Difference(msgspec.Struct, frozen=True):
    """One thing in which a topic is not as it should be. `what`: `topic`, `partitions`, `replication` or a config."""

    topic: str
    what: str
    wanted: str
    found: str
    remedy: Remedy
    why: str = ""


def wanted(prefix: str, settings: TopicSettings, brokers: int) -> list[WantedTopic]:
    """Every topic as it should be in a cluster of so many brokers."""
    return [_wanted(topic, prefix, settings, brokers) for topic in TOPICS]


def _wanted(topic: Topic, prefix: str, settings: TopicSettings, brokers: int) -> WantedTopic:
    copies = settings.replication or min(COPIES, max(1, brokers))
    hours = settings.retention_hours_of.get(topic.name, topic.retention_hours)
    kept = int(hours * HOUR_MS) if hours else -1
    configs = {
        "cleanup.policy": topic.cleanup.value,
        "retention.ms": str(kept),
        "retention.bytes": str(settings.retention_bytes_of.get(topic.name) or -1),
        "max.message.bytes": str(settings.record_bytes_of.get(topic.name, topic.record_bytes)),
        # With three copies one broker may be gone and what was acknowledged lies on two.
        "min.insync.replicas": str(max(1, copies - 1)),
        # Only a segment that is closed is compacted or forgotten; the default closes one after a week.
        "segment.ms": str(_segment(kept)),
        # Said of each, so that a default of the brokers decides of none.
        TIME_TYPE: "LogAppendTime" if topic.log_time else "CreateTime",
    }
    if topic.compacted:
        configs |= {"min.cleanable.dirty.ratio": "0.1", "delete.retention.ms": str(24 * HOUR_MS)}
    partitions = settings.partitions_of.get(topic.name, topic.partitions)
    return WantedTopic(topic, topic.named(prefix), partitions, copies, configs)


def _segment(kept_ms: int) -> int:
    return HOUR_MS if kept_ms < 0 else min(max(kept_ms // 6, HOUR_MS // 6), 24 * HOUR_MS)


def differences(want: WantedTopic, found: TopicState | None) -> list[Difference]:
    """In what `found` differs from `want`; of what `want` does not name nothing is said."""
    if found is None:
        shape = f"{want.partitions} partitions, {want.replication} copies"
        return [Difference(want.name, "topic", shape, "missing", Remedy.CREATE)]
    listed = []
    if found.partitions != want.partitions:
        remedy, why = _of_partitions(want, found.partitions)
        listed.append(Difference(want.name, "partitions", str(want.partitions), str(found.partitions), remedy, why))
    if found.replication != want.replication:
        why = "copies are moved between brokers by kafka-reassign-partitions.sh"
        copies = (str(want.replication), str(found.replication))
        listed.append(Difference(want.name, "replication", *copies, Remedy.BY_HAND, why))
    for name, value in want.configs.items():
        has = found.configs.get(name, "")
        if not _same(name, value, has):
            why = _OWN_CLOCKS if name == TIME_TYPE and want.topic.log_time else ""
            listed.append(Difference(want.name, name, value, has, Remedy.ALTER, why))
    return listed


def _of_partitions(want: WantedTopic, found: int) -> tuple[Remedy, str]:
    back = f'set bus.topics.partitions_of."{want.topic.name}" to {found}, or make the topics anew under another prefix'
    if found > want.partitions:
        return Remedy.REFUSED, f"Kafka takes no partitions away; {back}"
    if want.topic.by_node or want.topic.compacted:
        what = "nodes would move to other partitions" if want.topic.by_node else "keys would lie in two partitions"
        return Remedy.REFUSED, f"{what}, and the order of their records would be lost; {back}"
    return Remedy.ALTER, ""


def _same(name: str, wanted: str, found: str) -> bool:
    if name == "cleanup.policy":
        return set(wanted.split(",")) == {one.strip() for one in found.split(",")}
    if name == "min.cleanable.dirty.ratio":
        try:
            return float(wanted) == float(found)
        except ValueError:
            return False
    return wanted == found


def forgets(topic: Topic, configs: Mapping[str, str]) -> str:
    """What is wrong with how a topic forgets, as the configs of the broker have it, in one sentence; "" when it does as it should.

    The one difference that loses what was acknowledged: policies and plans that are deleted by age instead of by key."""
    policy = configs.get("cleanup.policy", "")
    if not policy or _same("cleanup.policy", topic.cleanup.value, policy):
        return ""
    harm = "its keys are deleted by age" if topic.cleanup is not Cleanup.DELETE else "its records replace each other"
    return f"expected cleanup.policy `{topic.cleanup.value}`, got `{policy}`: {harm}; `hauberk topic alter` sets it"
