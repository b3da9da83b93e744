# SPDX-License-Identifier: Apache-2.0
"""Annotations that are not understood are told as one Event where many have the same, and never again while they are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from waiting import until

from bus.contract import Record
from bus.memory import MemoryBus
from schemas import cluster
from schemas.cluster import Fact, NamespaceFact, NodeFact, PodFact
from schemas.errors import Unavailable
from schemas.topics import CLUSTER
from sinks.kubernetes import annotation_events
from sinks.kubernetes.annotation_events import MOST, AnnotationEvents
from sinks.kubernetes.event import EventSubject, event, of

WRONG = {"kubearmor-policy": "audit"}


def pod(name: str, annotations: dict[str, str] = WRONG, namespace: str = "shop", ended: float = 0.0) -> PodFact:
    return PodFact(uid=f"u-{name}", namespace=namespace, name=name, annotations=annotations, ended=ended)


class Told:
    """What was said; `taken` False: the server does not take it."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.said: list[tuple[str, str, str]] = []
        self.taken = True
        self._marks = 0

    async def say(self, subject: EventSubject, reason: str, message: str, once: str) -> bool:
        assert reason == "AnnotationNotUnderstood"
        assert once in message
        self.said.append((subject.kind, subject.name, message))
        return self.taken

    async def put(self, *facts: Fact) -> None:
        await self.bus.publish(CLUSTER, [Record(one.key, cluster.encode(one)) for one in facts])

    async def gone(self, *facts: Fact) -> None:
        await self.bus.publish(CLUSTER, [Record(one.key, None) for one in facts])

    async def passed(self) -> None:
        """Everything that was put was looked at: a last fact is told of."""
        self._marks += 1
        mark = f"mark{self._marks}"
        await self.put(NamespaceFact(name=mark, annotations=WRONG))
        await until(lambda: any(name == mark for _, name, _ in self.said))
        self.said = [one for one in self.said if not one[1].startswith("mark")]


@pytest.fixture
async def told(monkeypatch: Any) -> AsyncIterator[Told]:
    monkeypatch.setattr(annotation_events, "_TOGETHER", (0.005, 0.05))
    monkeypatch.setattr(annotation_events, "_AGAIN", 0.01)
    made = Told()
    running = asyncio.create_task(AnnotationEvents(made.bus, made.say).run())
    yield made
    running.cancel()
    await asyncio.wait((running,))


async def test_many_that_have_the_same_are_one_event_and_a_list_again_is_none(told: Told) -> None:
    pods = [pod(f"web-{number}") for number in range(5)]
    await told.put(*pods, NamespaceFact(name="shop", annotations={"kubearmor-visibility": "proces"}),
                   NodeFact(name="n1", annotations={"kubearmor-policy": "on"}), pod("fine", {"kubearmor-policy": "audited"}))  # fmt: skip
    await told.passed()
    sentence = "expected enabled, audited or disabled in `kubearmor-policy`, got "
    stays = "; it changes nothing, what is in force without it stays"
    assert sorted(told.said) == [
        ("Namespace", "shop", f"expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'{stays}"),
        ("Node", "n1", f"{sentence}'on'{stays}"),
        ("Pod", "web-0", f"{sentence}'audit'{stays}; 4 more pods here have the same"),
    ]  # fmt: skip
    told.said.clear()
    # The same facts again, one more of them, and one that is mended: nothing that was not said.
    await told.put(*pods, pod("web-9"), pod("web-3", {}))
    await told.passed()
    assert told.said == []


async def test_the_first_by_name_is_told_whatever_its_uid(told: Told) -> None:
    await told.put(*(msgspec.structs.replace(pod(name), uid=uid) for name, uid in (("b", "1"), ("a", "2"), ("c", "0"))))
    await told.passed()
    assert [name for _, name, _ in told.said] == ["a"]


async def test_the_next_one_is_told_when_that_pod_goes_and_nothing_when_all_are_mended(told: Told) -> None:
    await told.put(pod("a"), pod("b"), pod("c"))
    await told.passed()
    await told.gone(pod("a"))
    await told.passed()
    await told.put(pod("b", ended=5.0))
    await told.passed()
    await told.put(pod("c", {}))
    await told.passed()
    assert [name for _, name, _ in told.said] == ["a", "b", "c"]
    # Written again later it is news.
    await told.put(pod("c"))
    await told.passed()
    assert [name for _, name, _ in told.said] == ["a", "b", "c", "c"]


async def test_a_bus_that_was_away_repeats_nothing(told: Told) -> None:
    await told.put(pod("a"))
    await told.passed()
    told.bus.fail(Unavailable("the bus is away"), call="take", times=1)
    await told.passed()
    assert [name for _, name, _ in told.said] == ["a"]


async def test_another_word_in_each_pod_is_bounded(told: Told) -> None:
    await told.put(*(pod(f"p{number:03}", {"kubearmor-policy": f"w{number:03}"}) for number in range(MOST + 30)))
    await told.put(pod("x", namespace="bank"))
    await told.passed()
    assert [len([one for one in told.said if one[1].startswith(first)]) for first in "px"] == [MOST, 1]


async def test_what_the_server_did_not_take_is_said_again(told: Told) -> None:
    told.taken = False
    await told.put(pod("a"))
    await until(lambda: len(told.said) > 1)
    told.taken = True
    await told.passed()
    many = len(told.said)
    await told.passed()
    assert len(told.said) == many


def test_an_event_lies_where_its_object_is_looked_for() -> None:
    def made(fact: Any) -> tuple[str, dict[str, str]]:
        found = event(of(fact), "R", "m", "now", "me", "m")
        return found["metadata"]["namespace"], found["involvedObject"]

    assert made(pod("a")) == (
        "shop", {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "shop", "uid": "u-a"},
    )  # fmt: skip
    assert made(NamespaceFact(name="shop"))[0] == "shop"
    assert made(NodeFact(name="n1")) == (
        "default", {"apiVersion": "v1", "kind": "Node", "name": "n1", "namespace": "", "uid": "n1"},
    )  # fmt: skip
    names = {event(of(pod("a")), "R", "m", "now", "me", about)["metadata"]["name"] for about in ("", "x", "y")}
    assert len(names) == 3
    assert msgspec.json.encode(event(of(pod("a")), "R", "m" * 5000, "now", "me"))
