# SPDX-License-Identifier: Apache-2.0
"""`get workloads` shows and selects by what the cluster says of a pod, as judge and planner do."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from hauberk.verbs.get import workloads
from schemas.cluster import PodFact
from schemas.cluster import encode as encode_fact
from schemas.identity import Identity, Kind, Owner, encode
from schemas.topics import CLUSTER, INVENTORY

TOLD = Identity(kind=Kind.CONTAINER, node="n1", uid="c1", namespace="shop", pod="web-1", pod_uid="u1", container_name="web",
                labels={"app": "old"})  # fmt: skip
POD = PodFact(
    uid="u1", namespace="shop", name="web-1", node="n1", labels={"app": "web"}, owner=Owner("Deployment", "web", "shop")
)


async def listed(selector: str = "", **facts: bytes) -> list[Any]:
    bus = MemoryBus()
    await bus.publish(INVENTORY, [Record(TOLD.key, encode(TOLD))])
    await bus.publish(CLUSTER, [Record(key.encode(), value) for key, value in facts.items()])
    given = argparse.Namespace(selector=selector, output="json", namespace=None, names=[])
    found = await workloads(bus, given)
    await bus.close()
    return list(found.values)


async def test_labels_and_owner_are_the_clusters() -> None:
    (one,) = await listed("app=web", **{"pod/u1": encode_fact(POD)})
    assert one.owner == Owner("Deployment", "web", "shop")
    assert await listed("app=old", **{"pod/u1": encode_fact(POD)}) == []


async def test_without_a_cluster_it_is_what_the_node_told() -> None:
    assert await listed() == [TOLD]


async def test_a_fact_that_cannot_be_read_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert await listed(**{"pod/u1": b"\xc1"}) == [TOLD]
    assert "1 facts of the cluster left out" in capsys.readouterr().err
