# SPDX-License-Identifier: Apache-2.0
"""What is said of learnt policies that select more than what they were learnt from, by what is on the bus now. Neighbours:
`hauberk.discovery`, `policy.learn.unseen`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from hauberk.client import readable, with_bus
from hauberk.output import printable
from schemas.errors import DecodeError, SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus
    from policy.learn.learner import LearntPolicy
    from schemas.cluster import Fact
    from schemas.identity import Identity

CONSEQUENCE: Final = (
    "what the policy does not allow would be denied there; give them other labels, or wait until they were seen"
)

Readable = Callable[[Iterable[Any], Callable[[Any], Any], str], list[Any]]
"""Like `hauberk.client.readable`."""


def unseen_of(
    given: argparse.Namespace, learnt: list[LearntPolicy], seen: Iterable[Identity]
) -> dict[str, tuple[str, ...]]:
    """By label of a policy's workload whom it selects that nothing was seen of; each is told. Without a bus, which `discover` says, none."""
    try:
        facts, there = with_bus(given, _there)
    except SettingsError:
        return {}
    found = selected(learnt, seen, facts, there)
    for label, others in found.items():
        print(
            f"hauberk discover: the policy of {printable(label)} selects {printable(', '.join(others))} too, of which nothing was seen in this time and selection: "
            f"{CONSEQUENCE}",
            file=sys.stderr,
        )
    return found


def selected(
    learnt: Iterable[LearntPolicy], seen: Iterable[Identity], facts: Iterable[Fact], there: Iterable[Identity]
) -> dict[str, tuple[str, ...]]:
    """By label of a policy's workload whom it selects that is not among `seen`."""
    from policy.learn.unseen import selected_unseen
    from schemas.cluster import PodFact

    selectors = ((one.workload, one.body["spec"].get("selector", {}).get("matchLabels", {})) for one in learnt)
    return selected_unseen(selectors, seen, there, (one for one in facts if isinstance(one, PodFact)))


async def _there(bus: Bus) -> tuple[list[Fact], list[Identity]]:
    from schemas.topics import CLUSTER, INVENTORY

    def values(records: dict[bytes, Any]) -> list[tuple[bytes, bytes]]:
        return [(key, record.value) for key, record in records.items() if record.value]

    cluster = values(await bus.latest(CLUSTER))
    inventory = values(await bus.latest(INVENTORY))
    return joined(cluster, (value for _, value in inventory), readable)


def joined(
    cluster: Iterable[tuple[bytes, bytes]], inventory: Iterable[bytes], read: Readable
) -> tuple[list[Fact], list[Identity]]:
    """What the cluster and the nodes say, from the records of both topics."""
    from policy.cluster_facts import ClusterFacts
    from schemas.cluster import decode
    from schemas.identity import decode as decode_identity

    cluster = list(cluster)
    known = ClusterFacts()
    facts = read((value for _, value in cluster), decode, "facts of the cluster")
    for fact in cluster:
        try:
            known.fact(*fact)
        except DecodeError:
            # Told with the others that cannot be read.
            continue
    told = read(inventory, decode_identity, "identities")
    return facts, [one for each in told if (one := known.identity(each.key, each)) is not None]
