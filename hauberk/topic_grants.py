# SPDX-License-Identifier: Apache-2.0
"""`hauberk topic acls`: what an account of each role must be granted on a Kafka cluster, in the forms that are asked for.

Nothing is asked of the cluster. Neighbour: `bus.kafka.acls` (the list itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bus.kafka.acls import ConsumerGroup, commands, grants
from hauberk.output import as_json, as_yaml, show
from schemas.topics import Role

if TYPE_CHECKING:
    import argparse

    from bus.kafka.settings import KafkaSettings


def groups(settings: KafkaSettings, processors: str) -> dict[Role, Sequence[ConsumerGroup]]:
    """The consumer groups of each role as they are called on the cluster; `processors`: the setting `processor.group`."""
    return {
        Role.PROCESSOR: (ConsumerGroup(settings.prefix + processors),),
        Role.PLANNER: (ConsumerGroup(settings.prefix + "planners"),),
        Role.CLUSTER: (ConsumerGroup(settings.prefix + "cluster"),),
        Role.SINK: (ConsumerGroup(settings.prefix + "sink.", prefixed=True),),
    }


def shown(settings: KafkaSettings, processors: str, given: argparse.Namespace) -> str:
    """The lists of the roles asked for, all when none was."""
    chosen = [Role(name) for name in given.role or Role]
    accounts = {role: given.principal or f"User:{settings.prefix.rstrip('.-_')}-{role}" for role in chosen}
    lists = {role: grants(role, settings.prefix, groups(settings, processors)) for role in chosen}
    if given.output == "commands":
        return "\n".join(line for role in chosen for line in commands(lists[role], accounts[role], settings.bootstrap))
    entries = [{"role": role.value} | one.entry(accounts[role]) for role in chosen for one in lists[role]]
    if given.output in ("json", "yaml"):
        return as_json(entries) if given.output == "json" else as_yaml(entries)
    rows = [
        (role, one.resource, one.name + "*" * one.prefixed, one.operation, accounts[role])
        for role in chosen
        for one in lists[role]
    ]
    return show(entries, ("ROLE", "RESOURCE", "NAME", "OPERATION"), rows, given.output, wide=("PRINCIPAL",),
                names=[f"{role}/{one}" for role in chosen for one in lists[role]], headings=not given.no_headers)  # fmt: skip
