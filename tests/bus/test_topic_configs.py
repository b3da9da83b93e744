# SPDX-License-Identifier: Apache-2.0
"""What a topic should be on a broker, and what may be done when it is something else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bus.kafka.topic_configs import (
    Difference,
    Remedy,
    TopicSettings,
    TopicState,
    WantedTopic,
    differences,
    forgets,
    wanted,
)
from schemas.topics import (
    ALERTS,
    ENFORCEMENT_STATUS,
    EVENTS_RAW,
    INVENTORY,
    POLICIES,
    SUMMARIES,
    TOPICS,
    Topic,
)


def one(topic: Topic, brokers: int = 3, **settings: Any) -> WantedTopic:
    made = TopicSettings(**settings)
    return next(each for each in wanted("hauberk.", made, brokers) if each.topic is topic)


def found(want: WantedTopic, **changes: Any) -> TopicState:
    """`want` as a broker tells it, with what it never was asked for beside it."""
    configs = {"compression.type": "producer"} | want.configs | changes.pop("configs", {})
    return TopicState(**{"partitions": want.partitions, "replication": want.replication, "configs": configs} | changes)


def test_the_table_is_what_is_wanted() -> None:
    assert [each.topic for each in wanted("hauberk.", TopicSettings(), 3)] == list(TOPICS)
    raw = one(EVENTS_RAW)
    assert (raw.name, raw.partitions, raw.replication) == ("hauberk.events.raw.v1", 6, 3)
    assert raw.configs["retention.ms"] == str(6 * 3_600_000)
    assert raw.configs["segment.ms"] == str(3_600_000), "or six hours would be a week"
    assert raw.configs["max.message.bytes"] == str(4 << 20)
    assert raw.configs["min.insync.replicas"] == "2"
    assert "delete.retention.ms" not in raw.configs
    policies = one(POLICIES)
    assert policies.configs["cleanup.policy"] == "compact"
    assert policies.configs["retention.ms"] == "-1"
    assert policies.configs["delete.retention.ms"] == str(24 * 3_600_000)


def test_settings_move_numbers() -> None:
    small = one(
        EVENTS_RAW, brokers=1, partitions_of={"events.raw": 48}, retention_hours_of={"events.raw": 0.5},
        retention_bytes_of={"events.raw": 1 << 30}, record_bytes_of={"events.raw": 1 << 20},
    )  # fmt: skip
    assert (small.partitions, small.replication) == (48, 1)
    assert small.configs | {
        "retention.ms": "1800000", "retention.bytes": str(1 << 30), "max.message.bytes": str(1 << 20), "segment.ms": "600000",
        "min.insync.replicas": "1",
    } == small.configs  # fmt: skip
    assert one(EVENTS_RAW, brokers=1, replication=5).replication == 5, "the broker says that it has too few"
    assert one(EVENTS_RAW, brokers=2).configs["min.insync.replicas"] == "1"
    assert wanted("soc-7.", TopicSettings(), 1)[0].name == "soc-7.events.raw.v1"


def test_a_topic_that_nobody_has_is_refused_in_the_settings() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"expected names of topics in `partitions_of` .*got `events`"):
        msgspec.convert({"partitions_of": {"events": 4}}, TopicSettings)


@pytest.mark.parametrize("topic", TOPICS, ids=[topic.name for topic in TOPICS])
def test_nothing_differs_from_itself(topic: Topic) -> None:
    want = one(topic)
    assert differences(want, found(want)) == []
    assert forgets(topic, want.configs) == ""


def test_a_missing_topic_is_made() -> None:
    assert differences(one(ALERTS), None) == [
        Difference("hauberk.alerts.v1", "topic", "6 partitions, 3 copies", "missing", Remedy.CREATE)
    ]


def test_configs_are_altered() -> None:
    want = one(ALERTS)
    differing = differences(want, found(want, configs={"retention.ms": "1000", "cleanup.policy": "compact"}))
    assert [(each.what, each.wanted, each.found, each.remedy) for each in differing] == [
        ("cleanup.policy", "delete", "compact", Remedy.ALTER), ("retention.ms", str(168 * 3_600_000), "1000", Remedy.ALTER),
    ]  # fmt: skip


@pytest.mark.parametrize("topic", TOPICS, ids=[topic.name for topic in TOPICS])
def test_whose_clock_a_time_is_of_is_said_of_each(topic: Topic) -> None:
    """By the log's, whether a node is there; by their own, frames, alerts and policies, whatever brokers do by default."""
    want = one(topic)
    liveness = topic in (INVENTORY, ENFORCEMENT_STATUS)
    kinds = ("LogAppendTime", "CreateTime") if liveness else ("CreateTime", "LogAppendTime")
    assert want.configs["message.timestamp.type"] == kinds[0]
    [differing] = differences(want, found(want, configs={"message.timestamp.type": kinds[1]}))
    assert (differing.what, differing.remedy) == ("message.timestamp.type", Remedy.ALTER)
    assert ("its own clock" in differing.why) is liveness


def test_words_that_mean_the_same_are_no_difference() -> None:
    want = one(SUMMARIES)
    same = {"cleanup.policy": "delete,compact", "min.cleanable.dirty.ratio": "0.10"}
    assert differences(want, found(want, configs=same)) == []


@pytest.mark.parametrize(
    ("topic", "partitions", "remedy", "said"),
    [
        (EVENTS_RAW, 3, Remedy.REFUSED, "nodes would move to other partitions"),
        (EVENTS_RAW, 12, Remedy.REFUSED, "Kafka takes no partitions away"),
        (SUMMARIES, 3, Remedy.REFUSED, "keys would lie in two partitions"),
        (ALERTS, 3, Remedy.ALTER, ""),
        (ALERTS, 12, Remedy.REFUSED, "Kafka takes no partitions away"),
    ],
)
def test_partitions_change_only_where_no_order_is_lost(
    topic: Topic, partitions: int, remedy: Remedy, said: str
) -> None:
    want = one(topic)
    [differing] = differences(want, found(want, partitions=partitions))
    assert (differing.what, differing.remedy) == ("partitions", remedy)
    assert said in differing.why
    if remedy is Remedy.REFUSED:
        assert f'bus.topics.partitions_of."{topic.name}" to {partitions}' in differing.why


def test_copies_are_moved_by_hand() -> None:
    want = one(ALERTS)
    [differing] = differences(want, found(want, replication=1))
    assert differing.remedy is Remedy.BY_HAND
    assert "kafka-reassign-partitions.sh" in differing.why


def test_a_topic_that_forgets_what_it_must_keep_is_told() -> None:
    assert forgets(POLICIES, {"cleanup.policy": "delete"}) == (
        "expected cleanup.policy `compact`, got `delete`: its keys are deleted by age; `hauberk topic alter` sets it"
    )
    assert "its records replace each other" in forgets(ALERTS, {"cleanup.policy": "compact"})
    assert forgets(POLICIES, {}) == "", "who may not ask is told by who asked"
