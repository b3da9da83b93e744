# SPDX-License-Identifier: Apache-2.0
"""A pod, a service or a node that is over stays told for a while, by one watch or by another that takes over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from bus.memory import MemoryBus
from schemas.cluster import NodeFact, PodFact, ServiceFact, decode
from schemas.topics import CLUSTER
from sensors.kubernetes.ended_facts import EndedFacts
from sensors.kubernetes.facts_watch import FactsWatch
from sensors.kubernetes.published import Published

HOUR = 3600.0


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Watch:
    """A watch of pods on `bus` whose clock is `now`."""

    def __init__(self, bus: MemoryBus, now: float, most: int = 100, hours: float = 24.0) -> None:
        self.now = now
        self.published = Published(bus, CLUSTER)
        self.ended = EndedFacts(self.published, hours * HOUR, most)
        self.watch = FactsWatch(self.published, self.ended, lambda: self.now)
        self.applies = {resource.name: apply for resource, apply in self.watch.applies}
        self.apply: Callable[[bool, Any], None] = self.watch.applies[-1][1]

    async def load(self) -> Watch:
        await self.published.load()
        self.ended.load()
        return self

    def pods(self, *names: str, whole: bool = True, there: bool = True, phase: str = "Running") -> None:
        self.apply(whole, [(there, msgspec.Raw(msgspec.json.encode({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": "1970-01-01T00:00:10Z"},
            "status": {"phase": phase, "podIP": "10.0.0.1"},
        }))) for name in names])  # fmt: skip

    def services(self, *made: tuple[str, str, int], whole: bool = True, there: bool = True) -> None:
        """Name, address, when it was made."""
        self.applies["services"](whole, [(there, msgspec.Raw(msgspec.json.encode({
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": stamp(at), "labels": {"made": str(at)}},
            "spec": {"clusterIPs": [address], "ports": [{"port": 80}]},
        }))) for name, address, at in made])  # fmt: skip

    def nodes(self, *made: tuple[str, str, int], whole: bool = True, there: bool = True) -> None:
        self.applies["nodes"](whole, [(there, msgspec.Raw(msgspec.json.encode({
            "metadata": {"name": name, "creationTimestamp": stamp(at)},
            "status": {"addresses": [{"type": "InternalIP", "address": address}] if address else []},
        }))) for name, address, at in made])  # fmt: skip

    async def others(self) -> list[tuple[str, tuple[str, ...], float, float]]:
        """Name, addresses, begin, end of services and nodes that are on the bus."""
        await self.published.flush()
        found = [decode(self.published.value(key) or b"") for key in sorted(self.published.keys())]
        return [
            (one.name, one.addresses, one.started, one.ended) for one in found if isinstance(one, ServiceFact | NodeFact)
        ]  # fmt: skip

    async def told(self) -> dict[str, PodFact]:
        await self.published.flush()
        found = {key.decode(): decode(self.published.value(key) or b"") for key in self.published.keys(b"pod/")}
        return {key: fact for key, fact in found.items() if isinstance(fact, PodFact)}


@pytest.mark.parametrize("whole", [True, False], ids=["absent", "deleted"])
async def test_it_stays_told_with_its_end_and_goes_after_its_time(whole: bool) -> None:
    one = await Watch(MemoryBus(), 1000.0).load()
    one.pods("a", "b")
    one.now = 2000.0
    if whole:
        one.pods("b")
    else:
        one.pods("a", whole=False, there=False)
    told = await one.told()
    assert (told["pod/a"].ended, told["pod/a"].addresses, told["pod/b"].ended) == (2000.0, ("10.0.0.1",), 0.0)
    one.now = 3000.0
    one.pods("b")
    assert (await one.told())["pod/a"].ended == 2000.0, "a second list must not move its end"
    one.now = 2000.0 + 24 * HOUR
    one.watch.sweep()
    assert set(await one.told()) == {"pod/b"}


async def test_a_watch_that_takes_over_goes_on_from_what_is_on_the_bus() -> None:
    bus = MemoryBus()
    first = await Watch(bus, 1000.0).load()
    first.pods("a", "b")
    first.pods("b", "c", phase="Succeeded")
    await first.told()
    second = await Watch(bus, 5000.0).load()
    second.pods("b", "c", phase="Succeeded")
    told = await second.told()
    assert {key: fact.ended for key, fact in told.items()} == {"pod/a": 1000.0, "pod/b": 1000.0, "pod/c": 1000.0}
    second.now = 1000.0 + 24 * HOUR
    second.watch.sweep()
    assert set(await second.told()) == {"pod/b", "pod/c"}, "the cluster has them still"
    second.pods()
    second.now += 24 * HOUR
    second.watch.sweep()
    assert set(await second.told()) == set()


async def test_only_so_many_stay_and_that_is_counted() -> None:
    one = await Watch(MemoryBus(), 1000.0, most=2).load()
    one.pods("a", "b", "c", "d")
    for name in ("a", "b", "c"):
        one.now += 1
        one.pods(name, whole=False, there=False)
    one.watch.sweep()
    assert set(await one.told()) == {"pod/b", "pod/c", "pod/d"}
    assert one.ended.dropped == 1


async def test_none_stays_where_nobody_asked_for_it() -> None:
    one = await Watch(MemoryBus(), 1000.0, hours=0).load()
    one.pods("a")
    one.pods()
    assert await one.told() == {}


KINDS = ["services", "nodes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False], ids=["absent", "deleted"])
async def test_a_service_and_a_node_stay_told_with_their_end_too(kind: str, whole: bool) -> None:
    bus = MemoryBus()
    one = await Watch(bus, 1000.0).load()
    tell = getattr(one, kind)
    tell(("a", "10.0.0.1", 10), ("b", "10.0.0.2", 10))
    one.now = 2000.0
    if whole:
        tell(("b", "10.0.0.2", 10))
    else:
        tell(("a", "10.0.0.1", 10), whole=False, there=False)
    over = ("a", ("10.0.0.1",), 10.0, 2000.0)
    there = ("b", ("10.0.0.2",), 10.0, 0.0)
    assert await one.others() == [over, there]
    one.now = 3000.0
    tell(("b", "10.0.0.2", 10))
    assert await one.others() == [over, there], "a second list neither moves its end nor removes it"
    second = await Watch(bus, 4000.0).load()
    getattr(second, kind)(("b", "10.0.0.2", 10))
    assert await second.others() == [over, there], "another replica goes on from what is on the bus"
    assert len(second.ended) == 1
    second.now = 2000.0 + 24 * HOUR
    second.watch.sweep()
    assert await second.others() == [there]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_was_made_anew_is_another_and_both_are_told(kind: str) -> None:
    """Also where nobody saw it go: a list that has it again, made later."""
    one = await Watch(MemoryBus(), 1000.0).load()
    tell = getattr(one, kind)
    tell(("a", "10.0.0.1", 10))
    one.now = 2000.0
    tell(("a", "10.0.0.9", 1500))
    assert await one.others() == [("a", ("10.0.0.9",), 1500.0, 0.0), ("a", ("10.0.0.1",), 10.0, 1500.0)]
    one.now = 3000.0
    tell(("a", "10.0.0.9", 1500), whole=False, there=False)
    tell(("a", "10.0.0.9", 3000), whole=False)
    assert sorted(await one.others()) == [
        ("a", ("10.0.0.1",), 10.0, 1500.0), ("a", ("10.0.0.9",), 1500.0, 3000.0), ("a", ("10.0.0.9",), 3000.0, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_an_address_that_one_has_no_more_was_its_own(kind: str) -> None:
    one = await Watch(MemoryBus(), 1000.0).load()
    tell = getattr(one, kind)
    tell(("a", "10.0.0.1", 10))
    one.now = 2000.0
    tell(("a", "10.0.0.2", 10), whole=False)
    assert await one.others() == [("a", ("10.0.0.2",), 10.0, 0.0), ("a", ("10.0.0.1",), 10.0, 2000.0)]
    tell(("a", "10.0.0.2", 10), whole=False)
    assert len(await one.others()) == 2


async def test_services_nodes_and_pods_that_are_over_are_bounded_together() -> None:
    one = await Watch(MemoryBus(), 1000.0, most=2).load()
    one.pods("p")
    one.services(("a", "10.0.0.1", 10), ("headless", "None", 10))
    one.nodes(("n", "10.0.0.2", 10))
    for end in (one.services, one.nodes, one.pods):
        one.now += 1
        end()
    assert len(one.ended) == 3, "not the headless service: it had no address"
    one.watch.sweep()
    assert [name for name, *_ in await one.others()] == ["n"]
    assert set(await one.told()) == {"pod/p"}
    assert one.ended.dropped == 1
    for number in range(50):
        one.now += 1
        one.services(("flaps", f"10.0.1.{number}", 10))
        one.watch.sweep()
    assert len(await one.others()) == 3, "two ended, and the one that is"


async def test_no_service_stays_where_nobody_asked_for_it() -> None:
    one = await Watch(MemoryBus(), 1000.0, hours=0).load()
    one.services(("a", "10.0.0.1", 10))
    one.services(("a", "10.0.0.2", 20))
    one.services()
    assert await one.others() == []
