# SPDX-License-Identifier: Apache-2.0
"""Several members of one group, on every bus: no record is lost, each is handled, and only what was not committed twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from bus.contract import Bus, Delivery, Record
from schemas.topics import EVENTS_RAW, INVENTORY

KEYS = [b"node-%d" % number for number in range(12)]


class Reader:
    """A stage in small: takes, handles, commits each `every`th batch, finishes and releases what is revoked."""

    def __init__(self, bus: Bus, handled: list[Delivery], every: int = 1) -> None:
        self._bus = bus
        self._handled = handled
        self._every = every
        self._stopping = asyncio.Event()
        self.hanging = asyncio.Event()
        self.hung = False
        self.resume = asyncio.Event()
        self.open: list[Delivery] = []
        """Handled and not committed."""
        self.owned: dict[tuple[str, int], int] = {}
        self.disowned = self.revoked = 0
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._bus.subscribe([EVENTS_RAW], "g", "earliest") as subscription:
            batches = 0
            while not self._stopping.is_set():
                batch = await subscription.take(3, 0.02)
                self.owned = dict(subscription.owned)
                self._handled += batch
                self.open += batch
                batches += bool(batch)
                if self.hanging.is_set():
                    self.hung = True
                    await self.resume.wait()
                if subscription.revoking:
                    self.revoked += len(subscription.revoking)
                    await self._commit(subscription)
                    await subscription.release()
                    self.owned = dict(subscription.owned)
                elif batch and batches % self._every == 0:
                    await self._commit(subscription)
            await self._commit(subscription)

    async def _commit(self, subscription) -> None:
        await subscription.commit(self.open)
        self.open = []
        self.disowned = subscription.disowned

    async def leave(self) -> None:
        self._stopping.set()
        await self.task

    async def die(self) -> list[Delivery]:
        """Ends without a commit; what it had handled and not committed."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        return self.open


def values(deliveries):
    return [delivery.record.value for delivery in deliveries]


async def publish(bus: Bus, first: int, count: int) -> None:
    for index in range(first, first + count):
        await bus.publish(EVENTS_RAW, [Record(KEYS[index % len(KEYS)], b"%d" % index)])


async def committed(bus: Bus) -> None:
    """Until the group has committed everything."""
    while True:
        if (await bus.lag("g")).get(EVENTS_RAW.name) == 0:
            return
        await asyncio.sleep(0.005)


def check(handled: list[Delivery], count: int, twice: set[bytes]) -> None:
    times = Counter(values(handled))
    assert set(times) == {b"%d" % index for index in range(count)}, "records were lost or made up"
    assert {value for value, often in times.items() if often > 1} <= twice
    for key in KEYS:
        fresh = dict.fromkeys(int(one.record.value) for one in handled if one.record.key == key)
        assert list(fresh) == sorted(fresh), "the first handling of each record is in order per key"


async def test_a_member_that_joins_gets_its_share_or_stands_by(world, until):
    bus = await world.open()
    handled: list[Delivery] = []
    await publish(bus, 0, 60)
    one = Reader(bus, handled)
    partitions = await bus.end(EVENTS_RAW)
    await until(lambda: len(one.owned) == len(partitions))
    two = Reader(bus, handled)
    await publish(bus, 60, 60)
    if len(partitions) > 1:
        await until(lambda: bool(two.owned) and not one.owned.keys() & two.owned.keys())
        assert one.revoked >= 1
    await asyncio.wait_for(committed(bus), 60)
    # In the middle of a rebalance nobody has what is changing hands.
    await until(lambda: len(one.owned) + len(two.owned) == len(partitions))
    await one.leave()
    await publish(bus, 120, 60)
    await asyncio.wait_for(committed(bus), 60)
    await until(lambda: len(two.owned) == len(partitions))
    await two.leave()
    check(handled, 180, set())


async def test_a_member_that_dies_leaves_only_what_it_had_not_committed(world, until):
    bus = await world.open()
    handled: list[Delivery] = []
    await publish(bus, 0, 90)
    one = Reader(bus, handled, every=1 << 30)
    await until(lambda: len(one.open) >= 3)
    two = Reader(bus, handled)
    twice = {one.record.value for one in await one.die()}
    await asyncio.wait_for(committed(bus), 60)
    await two.leave()
    assert twice
    check(handled, 90, twice)


async def test_a_slow_member_loses_its_partitions_and_its_commits_move_nothing(world, until):
    bus = await world.open()
    handled: list[Delivery] = []
    await publish(bus, 0, 60)
    one = Reader(bus, handled, every=1 << 30)
    await until(lambda: len(one.open) >= 6)
    one.hanging.set()
    await until(lambda: one.hung)
    two, partitions = Reader(bus, handled), await bus.end(EVENTS_RAW)
    world.hung()
    await until(lambda: len(two.owned) == len(partitions))
    twice = set(values(one.open))
    await asyncio.wait_for(committed(bus), 60)
    before = await bus.groups()
    one.hanging.clear()
    one.resume.set()
    await until(lambda: not one.owned.keys() & two.owned.keys())
    await publish(bus, 60, 30)
    await one.leave()
    assert one.disowned >= 6
    assert (await bus.groups())["g"][EVENTS_RAW.name] >= before["g"][EVENTS_RAW.name]
    await asyncio.wait_for(committed(bus), 60)
    await two.leave()
    check(handled, 90, twice)


async def test_what_is_not_released_in_time_is_lost(shared, until, drain):
    bus = await shared.open()
    await publish(bus, 0, 30)
    async with bus.subscribe([EVENTS_RAW], "g") as one:
        got = await drain(one, 30)
        async with bus.subscribe([EVENTS_RAW], "g") as two:
            await two.take(0, 0.01)
            assert await one.take(10, 60) == [], "it returns at once: something is revoked"
            (wanted,) = one.revoking
            assert wanted in one.owned
            assert two.owned == {}
            await one.take(10, 0.01)
            shared.later += 61.0
            await two.take(0, 0.01)
            assert set(two.owned) == {wanted}
            await one.commit(got)
            assert one.disowned == sum((one.topic.name, one.partition) == wanted for one in got)
            assert wanted not in one.owned
            assert wanted not in one.position
            again = await drain(two, one.disowned)
            assert {delivery.partition for delivery in again} == {wanted[1]}
            await two.commit(again[:1])
            await two.commit(again)
    assert await bus.lag("g") == {EVENTS_RAW.name: 0}


async def test_a_partition_that_comes_back_has_another_number(shared, drain, records):
    bus = await shared.open()
    await publish(bus, 0, 30)
    async with bus.subscribe([EVENTS_RAW], "g") as one:
        got = await drain(one, 30)
        before = one.owned
        async with bus.subscribe([EVENTS_RAW], "g") as two:
            await one.take(10, 0.01)
            (wanted,) = one.revoking
            await one.release()
            assert wanted not in one.owned
            await two.take(0, 0.01)
        assert values(await drain(one, 1)) == values(d for d in got if d.partition == wanted[1])
        assert {place for place, grant in one.owned.items() if before[place] != grant} == {wanted}


async def test_a_member_of_other_topics_takes_nothing_away(world, drain):
    bus = await world.open()
    async with bus.subscribe([EVENTS_RAW], "g") as one, bus.subscribe([INVENTORY], "g") as two:
        while not (one.owned and two.owned):
            for member in (one, two):
                await member.take(0, 0.01)
                # Where the protocol takes everything from everybody, it gives it back.
                await member.release()
        assert {name for name, _ in one.owned} == {EVENTS_RAW.name}
        assert {name for name, _ in two.owned} == {INVENTORY.name}
        assert len(one.owned) == len(await bus.end(EVENTS_RAW))
        assert not one.revoking


async def test_a_broadcast_reader_owns_everything_for_good(world):
    bus = await world.open()
    async with bus.subscribe([EVENTS_RAW], None) as one, bus.subscribe([EVENTS_RAW], None) as two:
        everything = {(EVENTS_RAW.name, number) for number in await bus.end(EVENTS_RAW)}
        assert set(one.owned) == set(two.owned) == everything
        await one.release()
        assert set(one.owned) == everything


@pytest.mark.parametrize("seed", range(4))
async def test_members_come_and_go_and_every_record_is_handled(world, until, seed):
    chance = random.Random(seed)
    bus = await world.open()
    handled: list[Delivery] = []
    twice: set[bytes] = set()
    readers = [Reader(bus, handled, every=2)]
    # A group begins with its first member.
    await until(lambda: readers[0].owned)
    count = 0
    for _ in range(25):
        await publish(bus, count, 5)
        count += 5
        step = chance.random()
        if step < 0.4 and len(readers) < 4:
            readers.append(Reader(bus, handled, every=chance.choice((1, 3))))
        elif step < 0.6 and len(readers) > 1:
            await readers.pop(chance.randrange(len(readers))).leave()
        elif step < 0.8 and len(readers) > 1:
            dead = readers.pop(chance.randrange(len(readers)))
            twice |= set(values(await dead.die()))
        await asyncio.sleep(chance.random() * 0.02)
    last = Reader(bus, handled)
    for reader in readers:
        await reader.leave()
    await asyncio.wait_for(committed(bus), 60)
    await last.leave()
    check(handled, count, twice)


async def test_a_lease_whose_file_is_gone_is_lost(log, drain, records):
    bus = await log.open()
    await bus.publish(EVENTS_RAW, records(4))
    async with bus.subscribe([EVENTS_RAW], "g") as one:
        got = await drain(one, 4)
        before = one.owned
        (log.directory / "leases" / f"g@{EVENTS_RAW.name}").unlink()
        async with bus.subscribe([EVENTS_RAW], "g") as two:
            assert len(await drain(two, 4)) == 4
            await one.commit(got)
            assert (one.disowned, one.owned) == (4, {})
            assert (await bus.groups())["g"] == {EVENTS_RAW.name: 0}
            assert await one.take(10, 0.02) == []
            await two.commit(got[:2])
        assert values(await drain(one, 2)) == [b"2", b"3"]
        assert one.owned != before
