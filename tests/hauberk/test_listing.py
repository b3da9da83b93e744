# SPDX-License-Identifier: Apache-2.0
"""What `get`, `describe`, `logs` and `topic tail` list is all there is when they begin, in order of time, on a bus of several
partitions whose first answer may come late; and when it is not all, they say so."""

from __future__ import annotations

import argparse
import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from bus import end_as_of_now
from bus.contract import Delivery, Record, Start, Subscription
from bus.end_as_of_now import PATIENCE_SECONDS, EndAsOfNow
from bus.memory import MemoryBus, MemorySettings
from hauberk.verbs import get, logs, topic
from schemas.alert import Alert
from schemas.errors import Unavailable
from schemas.topics import ALERTS, POLICIES, Topic
from schemas.wording import updated_time

POLICY = {
    "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": "p"},
    "spec": {"nodeSelector": {"matchLabels": {}}, "file": {"matchPaths": [{"path": "/x"}]}, "action": "Audit"},
}  # fmt: skip


def alert(second: int, workload: str, **fields: Any) -> Record:
    fields = {"EventID": str(second), "PolicyName": "p", "Type": "MatchedHostPolicy"} | fields
    made: Any = Alert(Timestamp=second, UpdatedTime=updated_time(second * 10**9 + second), HostName=workload, **fields)
    return Record(workload.encode(), msgspec.json.encode(made))


class LateBus(MemoryBus):
    """The first `take` of each reader brings nothing, as where a broker takes its time; `beyond`: records that never come."""

    def __init__(self, beyond: int = 0) -> None:
        super().__init__(MemorySettings(partitions=3))
        self._beyond = beyond

    async def end(self, topic: Topic) -> dict[int, int]:
        return {number: end + self._beyond for number, end in (await super().end(topic)).items()}

    @asynccontextmanager
    async def subscribe(
        self,
        topics: Sequence[Topic],
        group: str | None,
        start: Start = "committed",
        keys: Collection[bytes] | None = None,
    ) -> AsyncIterator[Subscription]:
        async with super().subscribe(topics, group, start, keys) as inner:
            take, before = inner.take, ["nothing yet"]

            async def late(most: int, seconds: float) -> list[Delivery]:
                if before:
                    before.clear()
                    return []
                return await take(most, seconds)

            inner.take = late  # type: ignore[method-assign]
            yield inner


async def filled(bus: MemoryBus) -> MemoryBus:
    """Alerts of ten seconds on all partitions, and the newest of each partition is not the newest of all."""
    await bus.publish(POLICIES, [Record(b"KubeArmorHostPolicy//p", json.dumps(POLICY).encode())])
    await bus.publish(ALERTS, [alert(second, f"node-{second % 5}") for second in range(100, 110)])
    assert all((await MemoryBus.end(bus, ALERTS)).values()), "records on every partition"
    return bus


def asked(what: str = "alerts", **more: Any) -> argparse.Namespace:
    given = {"what": what, "names": [], "namespace": None, "selector": "", "output": "table", "limit": 100}
    return argparse.Namespace(**given | more)


async def test_the_newest_alerts_are_those_of_all_partitions() -> None:
    bus = await filled(MemoryBus(MemorySettings(partitions=3)))
    found = await get.alerts(bus, asked(limit=4))
    assert [one.EventID for one in found.values] == ["106", "107", "108", "109"]
    assert [one.EventID for one in (await get.alerts(bus, asked())).values] == [str(at) for at in range(100, 110)]
    assert found.names == [f"alert/{at}" for at in range(106, 110)]


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_none_is_no_limit(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        get.parser().parse_args(["alerts", "--limit", limit])
    assert raised.value.code == 2
    assert f"expected a number from 1 on, got `{limit}`" in capsys.readouterr().err


async def test_alerts_of_one_second_are_in_order_too() -> None:
    bus = MemoryBus(MemorySettings(partitions=3))
    times = [updated_time(100 * 10**9 + micro * 1000) for micro in (5, 3, 1, 4, 2)]
    made: list[Any] = [Alert(Timestamp=100, UpdatedTime=at, EventID=at[-2], PolicyName="p") for at in times]
    await bus.publish(ALERTS, [Record(bytes([at]), msgspec.json.encode(one)) for at, one in enumerate(made)])
    assert [one.EventID for one in (await get.alerts(bus, asked(limit=3))).values] == ["3", "4", "5"]


async def test_an_answer_that_comes_late_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    bus = await filled(LateBus())
    assert len((await get.alerts(bus, asked())).values) == 10
    [policy] = (await get.policies(bus, asked("policies"))).values
    assert policy["status"]["hits"] == 10
    given = logs.parser().parse_args(["--from", "earliest", "--no-follow", "--json"])
    assert await logs._follow(bus, given, logs.matcher(given)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    given = topic.parser().parse_args(["tail", "alerts", "--from", "earliest", "--until-quiet", "0.1"])
    assert await topic._tail(bus, given) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


@pytest.mark.parametrize("verb", ["alerts", "policies", "logs", "tail"])
async def test_what_is_not_all_is_told(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_as_of_now, "PATIENCE_SECONDS", 0.2)
    bus = await filled(LateBus(beyond=2))
    given = logs.parser().parse_args(["--from", "earliest", "--no-follow", "--json"])
    tail = topic.parser().parse_args(["tail", "alerts", "--from", "earliest", "--until-quiet", "0.1"])
    if verb == "logs":
        listing: Coroutine[Any, Any, Any] = logs._follow(bus, given, logs.matcher(given))
    else:
        listing = topic._tail(bus, tail) if verb == "tail" else get._once(bus, asked(verb))
    with pytest.raises(
        Unavailable, match=r"expected the records of `alerts` up to offset .*: that is not all there is"
    ):
        await asyncio.wait_for(listing, 60)


def test_patience_counts_from_the_newest_record() -> None:
    now = [0.0]
    end = EndAsOfNow({("alerts", 0): 5, ("alerts", 1): 3}, clock=lambda: now[0])
    assert not end.reached({})
    now[0] += PATIENCE_SECONDS - 1
    assert not end.reached({("alerts", 1): 1})
    now[0] += PATIENCE_SECONDS - 1
    assert not end.reached({("alerts", 1): 1})
    now[0] += 1
    with pytest.raises(
        Unavailable, match=r"up to offset 5 of partition 0 and of 1 other partitions, got those up to 0"
    ):
        end.reached({("alerts", 1): 1})
    assert end.reached({("alerts", 0): 7, ("alerts", 1): 3})
    assert EndAsOfNow({("alerts", 0): 0}).reached({}), "nothing there"


async def test_alerts_that_are_not_shown_are_not_kept() -> None:
    bus = MemoryBus(MemorySettings(partitions=3))
    for first in range(0, 2000, 100):
        await bus.publish(ALERTS, [alert(first + at, f"node-{at}", Resource="/" + "x" * 10_000) for at in range(100)])
    tracemalloc.start()
    try:
        assert len((await get.alerts(bus, asked(limit=10))).values) == 10
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, f"{peak} bytes for ten alerts of 10 kB"
