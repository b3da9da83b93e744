# SPDX-License-Identifier: Apache-2.0
"""The grants of each role. That they are enough, and each of them needed, is proven against a broker in `tests/kafka`."""

from __future__ import annotations

import shlex

import pytest

from bus.kafka.acls import ConsumerGroup, Grant, commands, grants
from schemas.topics import ENFORCEMENT_DESIRED, TOPICS, Role

GROUPS = {Role.PROCESSOR: (ConsumerGroup("processors"),), Role.SINK: (ConsumerGroup("sink.", prefixed=True),)}


def of(role: Role, prefix: str = "hauberk.") -> tuple[Grant, ...]:
    return grants(role, prefix, GROUPS)


def test_a_sink_reads_and_leaves_what_it_cannot_deliver() -> None:
    assert [str(one) for one in of(Role.SINK)] == [
        "Read on group `sink.*`",
        "Read on topic `hauberk.alerts.v1`",
        "Write on topic `hauberk.alerts.v1`",
        "Read on topic `hauberk.cluster.v1`",
        "Write on topic `hauberk.dead.v1`",
        "Read on topic `hauberk.enforcement.status.v1`",
        "Read on topic `hauberk.inventory.v1`",
        "Read on topic `hauberk.policies.v1`",
        "Read on topic `hauberk.summaries.v1`",
        "Read on topic `hauberk.telemetry.v1`",
    ]


@pytest.mark.parametrize("role", Role)
def test_a_list_is_the_table(role: Role) -> None:
    listed = of(role, "soc-7.")
    assert len(set(listed)) == len(listed)
    assert all(one.name.startswith("soc-7.") for one in listed if one.resource == "topic")
    for topic in TOPICS:
        name = topic.named("soc-7.")
        has = {one.operation for one in listed if one.name == name or (one.prefixed and name.startswith(one.name))}
        assert ("Write" in has) is (role in topic.writers)
        assert ("Read" in has) is (role in topic.readers)


def test_only_the_planner_writes_plans() -> None:
    name = ENFORCEMENT_DESIRED.channel
    assert [role for role in Role if Grant("topic", name, "Write") in of(role)] == [Role.PLANNER]


def test_only_who_makes_topics_alters_them() -> None:
    for role in Role:
        altering = {one.operation for one in of(role)} & {"Create", "Alter", "AlterConfigs", "Delete"}
        assert bool(altering) is (role is Role.ADMIN)


def test_an_entry_and_a_command_say_the_same() -> None:
    one = Grant("group", "sink.", "Read", prefixed=True)
    assert one.entry("User:s") == {
        "principal": "User:s", "host": "*", "permission": "allow", "operation": "Read",
        "resource": {"type": "group", "name": "sink.", "pattern": "prefixed"},
    }  # fmt: skip
    lines = list(
        commands([one, Grant("topic", "a", "Read"), Grant("topic", "a", "Write")], "User:CN=s,O=x y", "b:9092")
    )
    assert [shlex.split(line)[1:] for line in lines] == [
        ["--bootstrap-server", "b:9092", "--command-config", "admin.properties", "--add", "--allow-principal", "User:CN=s,O=x y",
         "--operation", "Read", "--group", "sink.", "--resource-pattern-type", "prefixed"],
        ["--bootstrap-server", "b:9092", "--command-config", "admin.properties", "--add", "--allow-principal", "User:CN=s,O=x y",
         "--operation", "Read", "--operation", "Write", "--topic", "a"],
    ]  # fmt: skip
