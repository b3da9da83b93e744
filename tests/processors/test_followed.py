# SPDX-License-Identifier: Apache-2.0
"""What a processor follows: deletions that it could not hear of."""

from __future__ import annotations

import msgspec
import pytest

from bus.contract import Record
from bus.follow import Changes
from bus.memory import MemoryBus
from processors.engine import Processor
from schemas import identity as identities
from schemas.cluster import PodFact, encode
from schemas.topics import CLUSTER, INVENTORY, POLICIES


@pytest.mark.parametrize("damaged", [0, 1])
async def test_what_was_deleted_while_nobody_could_follow_is_gone(web, monkeypatch, damaged):
    """Tombstones go after a day. A damaged file hides what is there, so nothing is concluded of it."""
    bus = MemoryBus()
    monkeypatch.setattr(bus, "damaged", lambda: damaged)
    web = msgspec.structs.replace(web, pod_uid="u1")
    pod = PodFact(uid="u1", name="web-1", namespace=web.namespace, node=web.node, labels={"of": "the cluster"})
    processor = Processor(bus)
    await processor.facts._apply(Changes([(CLUSTER, Record(pod.key, encode(pod))), (INVENTORY, Record(web.key, identities.encode(web)))], True, {
        CLUSTER.name: set(), INVENTORY.name: set(), POLICIES.name: set()}))  # fmt: skip
    [known] = processor.inventory._by_key.values()
    assert known.labels == {"of": "the cluster"}
    await processor.facts._apply(
        Changes([], True, {CLUSTER.name: {pod.key}, INVENTORY.name: {web.key}, POLICIES.name: set()})
    )
    assert len(processor.inventory) == damaged
    assert len(processor.inventory._facts) == damaged
