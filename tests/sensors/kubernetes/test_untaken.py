# SPDX-License-Identifier: Apache-2.0
"""A policy object that the bus will never take is told in its fact, and so in its status; the one before it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from cluster.policy_object import PolicyFindings
from schemas.cluster import PolicyFact, decode
from schemas.topics import CLUSTER, POLICIES
from sensors.kubernetes.policy_watch import HEADERS, PolicyWatch
from sensors.kubernetes.published import Published

KEY = b"KubeArmorPolicy/shop/grows"


def written(size: int, generation: int) -> list[tuple[bool, msgspec.Raw]]:
    meta = {"name": "grows", "namespace": "shop", "uid": "u1", "generation": generation}
    return [(True, msgspec.Raw(json.dumps({"metadata": meta, "spec": {"message": "m" * size}}).encode()))]


async def test_a_policy_larger_than_the_bus_takes_has_an_error_and_the_one_before_stays(tmp_path: Path) -> None:
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"), record_bytes=4000))
    facts, policies = Published(bus, CLUSTER), Published(bus, POLICIES, HEADERS)
    watch = PolicyWatch(policies, facts, lambda document: PolicyFindings())
    ((_, apply), *_) = watch.applies

    async def told(size: int, generation: int) -> PolicyFact:
        apply(False, written(size, generation))
        await policies.flush()
        await facts.flush()
        found: Any = decode((await bus.latest(CLUSTER))[b"policy/" + KEY].value or b"")
        return found

    first = await told(10, 1)
    before = (await bus.latest(POLICIES))[KEY].value
    second = await told(9000, 2)
    assert "the bus does not take it" in second.errors[0]
    assert "`record_bytes` 4000" in second.errors[0]
    assert (second.document, second.generation, watch.refused) == (first.document, 2, 1)
    assert (await bus.latest(POLICIES))[KEY].value == before
    third = await told(11, 3)
    assert (third.errors, watch.refused) == ((), 0)
    assert (await bus.latest(POLICIES))[KEY].value != before
    await bus.close()
