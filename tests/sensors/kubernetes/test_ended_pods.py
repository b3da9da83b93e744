# SPDX-License-Identifier: Apache-2.0
"""A pod that is over stays told for a while, by one watch or by another that takes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bus.memory import MemoryBus
from schemas.cluster import PodFact, decode
from schemas.topics import CLUSTER
from sensors.kubernetes.ended_pods import EndedPods
from sensors.kubernetes.facts_watch import FactsWatch
from sensors.kubernetes.published import Published

HOUR = 3600.0


class Watch:
    """A watch of pods on `bus` whose clock is `now`."""

    def __init__(self, bus: MemoryBus, now: float, most: int = 100, hours: float = 24.0) -> None:
        self.now = now
        self.published = Published(bus, CLUSTER)
        self.ended = EndedPods(self.published, hours * HOUR, most)
        self.watch = FactsWatch(self.published, self.ended, lambda: self.now)
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
