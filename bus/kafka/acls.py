# SPDX-License-Identifier: Apache-2.0
"""Who may do what on a Kafka cluster: the grants of each role, made from the topic table. Pure.

Least privilege: a topic that a role neither writes nor reads does not exist for it, and only the planner's account may write
plans. Kafka grants by topic and not by key: an account of nodes may write in the name of any node; give each node an account
of its own where that matters, so that a broker's log tells them apart. Neighbour: `schemas.topics` (the table).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from schemas.topics import TOPICS, Role


class ConsumerGroup(msgspec.Struct, frozen=True):
    """A consumer group, or with `prefixed` all whose names begin so."""

    name: str
    prefixed: bool = False


class Grant(msgspec.Struct, frozen=True, order=True):
    """One operation that is allowed. `resource`: topic or group. `operation`: Kafka's word, e.g. `DescribeConfigs`."""

    resource: str
    name: str
    operation: str
    prefixed: bool = False

    def __str__(self) -> str:
        """As sentences and tables have it, e.g. "Read on topic `hauberk.alerts.v1`"."""
        return f"{self.operation} on {self.resource} `{self.name}{'*' * self.prefixed}`"

    def entry(self, principal: str) -> dict[str, Any]:
        """As JSON: the fields of an access control entry."""
        pattern = "prefixed" if self.prefixed else "literal"
        resource = {"type": self.resource, "name": self.name, "pattern": pattern}
        return {
            "principal": principal, "host": "*", "permission": "allow", "operation": self.operation, "resource": resource,
        }  # fmt: skip


def grants(role: Role, prefix: str, groups: dict[Role, Sequence[ConsumerGroup]]) -> tuple[Grant, ...]:
    """What `role` needs, and nothing else. `prefix`: of topics; `groups`: those that each role is a member of."""
    return tuple(sorted(set(_grants(role, prefix, groups))))


def _grants(role: Role, prefix: str, groups: dict[Role, Sequence[ConsumerGroup]]) -> Iterator[Grant]:
    for topic in TOPICS:
        if role in topic.writers:
            yield Grant("topic", topic.named(prefix), "Write")
        if role in topic.readers and role is not Role.CLI:
            yield Grant("topic", topic.named(prefix), "Read")
    for group in groups.get(role, ()):
        yield Grant("group", group.name, "Read", group.prefixed)
    # Who looks after the topics sees all of them, those of a later version too.
    if role is Role.CLI:
        yield from (Grant("topic", prefix, one, prefixed=True) for one in ("Read", "DescribeConfigs"))
        yield Grant("group", prefix, "Describe", prefixed=True)
    if role is Role.ADMIN:
        # With Alter comes Describe, with AlterConfigs DescribeConfigs.
        for one in ("Create", "Alter", "AlterConfigs"):
            yield Grant("topic", prefix, one, prefixed=True)


def commands(granted: Sequence[Grant], principal: str, bootstrap: str) -> Iterator[str]:
    """Lines for a shell that add the grants, one for each resource."""
    head = f"kafka-acls.sh --bootstrap-server '{bootstrap}' --command-config admin.properties --add"
    named: dict[tuple[str, str, bool], list[Grant]] = {}
    for one in granted:
        named.setdefault((one.resource, one.name, one.prefixed), []).append(one)
    for (resource, name, prefixed), same in named.items():
        operations = " ".join(f"--operation {one.operation}" for one in same)
        pattern = " --resource-pattern-type prefixed" * prefixed
        yield f"{head} --allow-principal '{principal}' {operations} --{resource} '{name}'{pattern}"
