# SPDX-License-Identifier: Apache-2.0
"""What every bus must do, whichever it is (see bus/contract.py)."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.contract import Record
from schemas.errors import Refused
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, POLICIES, TELEMETRY


def values(deliveries):
    return [delivery.record.value for delivery in deliveries]


async def test_a_record_arrives_as_it_was_sent(world):
    bus = await world.open()
    # Of now: a broker deletes what is older than the topic's retention whenever it looks.
    sent = Record(b"key", b"\x00value", (("content-type", b"x"), ("a", b"")), int(time.time() * 1000) - 1234)
    async with bus.subscribe([ALERTS], "g") as subscription:
        await bus.publish(ALERTS, [sent])
        (got,) = await subscription.take(10, 60)
    assert (got.topic, got.record) == (ALERTS, sent)
    assert got.partition in await bus.end(ALERTS)


async def test_a_record_without_a_time_is_stamped(world):
    bus = await world.open()
    async with bus.subscribe([ALERTS], None, "latest") as subscription:
        await bus.publish(ALERTS, [Record(b"k", b"v")])
        (got,) = await subscription.take(10, 60)
    assert got.record.timestamp_ms > 1_600_000_000_000


async def test_order_is_kept_per_key_across_publishers(world, drain):
    bus = await world.open()

    async def publish(key: bytes) -> None:
        for index in range(40):
            await bus.publish(EVENTS_RAW, [Record(key, b"%d" % index)])

    async with bus.subscribe([EVENTS_RAW], "g") as subscription:
        await asyncio.gather(*(publish(b"%d" % key) for key in range(5)))
        got = await drain(subscription, 200)
    for key in range(5):
        assert [int(d.record.value) for d in got if d.record.key == b"%d" % key] == list(range(40))
    for number in await bus.end(EVENTS_RAW):
        offsets = [d.offset for d in got if d.partition == number]
        assert offsets == sorted(set(offsets))


async def test_groups_do_not_see_each_other(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(10))
    async with bus.subscribe([ALERTS], "a") as one, bus.subscribe([ALERTS], "b") as two:
        await drain(one, 10)
        await one.commit()
        assert len(await drain(two, 10)) == 10
        assert (await bus.lag("a"), await bus.lag("b")) == ({"alerts": 0}, {"alerts": 10})


async def test_what_was_not_committed_comes_again(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(10))
    async with bus.subscribe([ALERTS], "g") as subscription:
        got = await drain(subscription, 10)
        await subscription.commit(got[:4])
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert values(await drain(subscription, 6)) == [b"4", b"5", b"6", b"7", b"8", b"9"]
        await subscription.commit()
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert await subscription.take(10, 0.05) == []


async def test_a_commit_never_goes_back(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(10))
    async with bus.subscribe([ALERTS], "g") as subscription:
        got = await drain(subscription, 10)
        await subscription.commit(got)
        await subscription.commit(got[:2])
    assert (await bus.groups())["g"] == {"alerts": 10}


async def test_a_late_record_still_wakes_a_waiting_reader(world):
    bus = await world.open()
    async with bus.subscribe([ALERTS], "g") as subscription:
        taking = asyncio.create_task(subscription.take(10, 60))
        await asyncio.sleep(0.02)
        await bus.publish(ALERTS, [Record(b"k", b"v")])
        assert values(await asyncio.wait_for(taking, 60)) == [b"v"]


async def test_take_gives_up_after_max_wait(world):
    bus = await world.open()
    async with bus.subscribe([ALERTS, EVENTS_RAW], "g") as subscription:
        started = asyncio.get_running_loop().time()
        assert await subscription.take(10, 0.05) == []
        assert asyncio.get_running_loop().time() - started >= 0.045


async def test_take_keeps_to_max_records(world, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(10))
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert values(await subscription.take(3, 60)) == [b"0", b"1", b"2"]
        assert values(await subscription.take(3, 60)) == [b"3", b"4", b"5"]
        assert sum(subscription.position.values()) == 6
        assert subscription.position.keys() == {("alerts", number) for number in await bus.end(ALERTS)}


async def test_taking_none_waits_and_keeps_the_place(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(2))
    async with bus.subscribe([ALERTS], "g") as subscription:
        while not subscription.owned:
            assert await subscription.take(0, 0.02) == []
        assert await subscription.take(0, 0.02) == []
        assert set(subscription.position.values()) == {0}
        assert len(await drain(subscription, 2)) == 2


async def test_cancelling_take_loses_nothing(world, drain, records):
    bus = await world.open()
    async with bus.subscribe([ALERTS], "g") as subscription:
        for first in range(0, 60, 3):
            taking = asyncio.create_task(subscription.take(10, 60))
            await asyncio.sleep(0)
            publishing = asyncio.create_task(bus.publish(ALERTS, records(3, first=first)))
            for _ in range(first % 7):
                await asyncio.sleep(0.0003)
            taking.cancel()
            await publishing
            try:
                got = await taking
            except asyncio.CancelledError:
                got = []
            while len(got) < 3:
                got += await drain(subscription, 1)
            assert values(got) == [b"%d" % index for index in range(first, first + 3)]


async def test_a_broadcast_reader_sees_all_and_keeps_nothing(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    for _ in range(2):
        async with bus.subscribe([ALERTS], None, "earliest") as subscription:
            assert len(await drain(subscription, 3)) == 3
            await subscription.commit()
    async with bus.subscribe([ALERTS], None, "latest") as subscription:
        assert await subscription.take(10, 0.02) == []
        await bus.publish(ALERTS, records(1, first=9))
        assert values(await drain(subscription, 1)) == [b"9"]
    assert await bus.groups() == {}


async def test_a_group_may_begin_at_the_end_but_its_offset_wins_afterwards(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(3))
    async with bus.subscribe([ALERTS], "g", "latest") as subscription:
        assert await subscription.take(10, 0.02) == []
    await bus.publish(ALERTS, records(2, first=3))
    async with bus.subscribe([ALERTS], "g", "latest") as subscription:
        assert values(await drain(subscription, 2)) == [b"3", b"4"]


async def test_latest_gives_the_newest_value_of_each_key_and_no_tombstones(world):
    bus = await world.open()
    assert await bus.latest(POLICIES) == {}
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1"), Record(b"a", b"2"), Record(b"c", b"1")])
    await bus.publish(POLICIES, [Record(b"b", None)])
    assert {key: record.value for key, record in (await bus.latest(POLICIES)).items()} == {b"a": b"2", b"c": b"1"}
    await bus.publish(POLICIES, [Record(b"b", b"3")])
    assert (await bus.latest(POLICIES))[b"b"].value == b"3"


async def test_a_reader_of_a_compacted_topic_meets_tombstones_and_ends_up_right(world, drain):
    bus = await world.open()
    async with bus.subscribe([INVENTORY], None, "earliest") as live:
        await bus.publish(INVENTORY, [Record(b"a", b"1"), Record(b"b", b"1")])
        await bus.publish(INVENTORY, [Record(b"a", None)])
        state = {}
        for _ in range(3):
            if state.get(b"a", b"") is None:
                break
            for delivery in await drain(live, 1):
                state[delivery.record.key] = delivery.record.value
    assert state == {b"a": None, b"b": b"1"}
    async with bus.subscribe([INVENTORY], None, "earliest") as late:
        state = {d.record.key: d.record.value for d in await drain(late, 2)}
    assert state == {b"a": None, b"b": b"1"}


async def test_latest_of_a_topic_that_is_not_compacted_is_refused(world):
    bus = await world.open()
    with pytest.raises(Refused, match="compacted"):
        await bus.latest(ALERTS)


async def test_one_subscription_reads_many_topics_fairly(world, records):
    bus = await world.open()
    await bus.publish(EVENTS_RAW, records(50))
    await bus.publish(ALERTS, records(1))
    async with bus.subscribe([EVENTS_RAW, ALERTS, TELEMETRY], "g") as subscription:
        names = [delivery.topic.name for _ in range(10) for delivery in await subscription.take(5, 1)]
    assert "alerts" in names


async def test_a_second_member_stands_by_and_takes_over(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(4))
    first_leaves = asyncio.Event()

    async def first() -> None:
        async with bus.subscribe([ALERTS], "g") as subscription:
            got = await drain(subscription, 4)
            await subscription.commit(got[:2])
            await first_leaves.wait()

    member = asyncio.create_task(first())
    while (await bus.groups()).get("g") != {"alerts": 2}:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    async with bus.subscribe([ALERTS], "g") as second:
        assert await second.take(10, 0.05) == []
        first_leaves.set()
        assert values(await drain(second, 2)) == [b"2", b"3"]
    await member


async def test_lag_counts_what_was_not_committed(world, drain, records):
    bus = await world.open()
    async with bus.subscribe([ALERTS, POLICIES], "g") as subscription:
        await bus.publish(ALERTS, records(5))
        await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1")])
        assert await bus.lag("g") == {"alerts": 5, "policies": 2}
        await drain(subscription, 7)
        await subscription.commit()
        assert await bus.lag("g") == {"alerts": 0, "policies": 0}
    assert await bus.lag("nobody") == {}


async def test_records_that_are_kept_are_counted(world, records):
    bus = await world.open()
    assert await bus.count(ALERTS) == await bus.count(POLICIES) == 0
    await bus.publish(ALERTS, records(5))
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"1")])
    assert await bus.count(ALERTS) == 5
    assert await bus.count(POLICIES) == 2


async def test_a_forgotten_group_begins_anew(world, drain, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(2))
    async with bus.subscribe([ALERTS], "g") as subscription:
        await drain(subscription, 2)
        await subscription.commit()
    await bus.forget("g")
    await bus.forget("g")
    assert await bus.groups() == {}
    async with bus.subscribe([ALERTS], "g") as subscription:
        assert len(await drain(subscription, 2)) == 2


async def test_end_says_where_the_next_record_goes(world, records):
    bus = await world.open()
    assert set((await bus.end(ALERTS)).values()) == {0}
    await bus.publish(ALERTS, records(3))
    async with bus.subscribe([ALERTS], None, "latest") as subscription:
        assert {number: offset for (_, number), offset in subscription.position.items()} == await bus.end(ALERTS)
    assert sum((await bus.end(ALERTS)).values()) == 3


async def test_a_key_of_many_bytes_is_refused_before_anything_is_written(world):
    bus = await world.open()
    with pytest.raises(Refused, match=r"`alerts`: expected a key of at most 4096 bytes, got 4097"):
        await bus.publish(ALERTS, [Record(b"k", b"1"), Record(b"k" * 4097, b"2")])
    assert sum((await bus.end(ALERTS)).values()) == 0


async def test_closing_twice_is_once_and_a_closed_bus_refuses(world):
    bus = await world.open()
    await bus.close()
    await bus.close()
    with pytest.raises(Refused, match="closed"):
        await bus.publish(ALERTS, [Record(b"k", b"v")])


async def test_closing_wakes_a_waiting_reader(world):
    bus = await world.open()

    async def read() -> None:
        async with bus.subscribe([ALERTS], "g") as subscription:
            await subscription.take(1, 600)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    await bus.close()
    with pytest.raises(Refused, match="closed"):
        await asyncio.wait_for(reading, 60)


@pytest.mark.parametrize("steps", range(6))
async def test_closing_ends_who_is_just_subscribing(world, steps):
    bus = await world.open()

    async def read() -> None:
        async with bus.subscribe([ALERTS], "g") as subscription:
            await subscription.take(1, 600)

    reading = asyncio.create_task(read())
    for _ in range(steps):
        await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(Refused, match="closed"):
        await asyncio.wait_for(reading, 60)


async def test_publishing_nothing_is_nothing(world):
    bus = await world.open()
    await bus.publish(ALERTS, [])
    assert set((await bus.end(ALERTS)).values()) == {0}


async def test_nothing_is_damaged_on_a_new_bus(world, records):
    bus = await world.open()
    await bus.publish(ALERTS, records(1))
    assert bus.damaged() == 0
