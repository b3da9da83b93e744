# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any point loses no acknowledged record and repeats at most what was not committed."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess

import pytest

from bus.contract import Record
from schemas.topics import ALERTS, EVENTS_RAW

# Publishes numbered records and prints each number once it was acknowledged; the pipe outlives the process.
PUBLISHER = """
import asyncio, os, sys
from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import BY_NAME

async def main(directory, topic, first, size):
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory, segment_bytes=65536, housekeeping=0.02))
    index = first
    while True:
        batch = [Record(b"k", b"%d " % (index + step) + b"x" * size) for step in range(1 + index % 4)]
        await bus.publish(BY_NAME[topic], batch)
        index += len(batch)
        os.write(1, b"%d\\n" % index)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""

# Takes and commits; prints `t N` for each record taken and `c N` once the commit up to N was acknowledged.
CONSUMER = """
import asyncio, os, sys
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.topics import BY_NAME

async def main(directory, topic):
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory, segment_bytes=65536, housekeeping=0.02))
    async with bus.subscribe([BY_NAME[topic]], "g") as subscription:
        while True:
            batch = await subscription.take(7, 1.0)
            for delivery in batch:
                os.write(1, b"t %d\\n" % int(delivery.record.value.split()[0]))
            if batch:
                await subscription.commit()
                os.write(1, b"c %d\\n" % int(batch[-1].record.value.split()[0]))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
# The same, but it hangs with its first batch in hand until its input ends.
HANGS = CONSUMER.replace("if batch:", "if batch:\n                sys.stdin.read()")


def kill(process: subprocess.Popen[bytes]) -> list[bytes]:
    """SIGKILL, and every whole line it wrote before."""
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    return output[: output.rfind(b"\n") + 1].splitlines()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


async def everything(world, topic) -> list[int]:
    bus = await world.open()
    found: list[int] = []
    async with bus.subscribe([topic], None, "earliest") as subscription:
        end = (await bus.end(topic))[0]
        while subscription.position[topic.name, 0] < end:
            found += [int(d.record.value.split()[0]) for d in await subscription.take(1000, 1)]
        assert subscription.skipped == 0
    await bus.close()
    return found


@pytest.mark.parametrize("topic", [EVENTS_RAW, ALERTS], ids=lambda topic: topic.name)
async def test_a_killed_publisher_loses_nothing_it_was_told_is_written(log, children, topic):
    chance = random.Random(11)
    acknowledged = 0
    for _ in range(12):
        process = children.start(PUBLISHER, str(log.directory), topic.name, str(acknowledged), "3000")
        acknowledged = max(acknowledged, int(first_line(process)))
        await asyncio.sleep(chance.random() * 0.08)
        lines = kill(process)
        acknowledged = max([acknowledged, *map(int, lines)])
        found = await everything(log, topic)
        assert set(range(acknowledged)) <= set(found)
        # What was in flight may be there too: at most one batch of four, never torn.
        assert max(found) < acknowledged + 4
        acknowledged = max(found) + 1


async def test_a_killed_consumer_repeats_at_most_what_was_not_committed(log, children):
    chance = random.Random(12)
    bus = await log.open(segment_bytes=65536, housekeeping=0.02)
    publishing = asyncio.create_task(_publish_numbers(bus))
    committed = -1
    taken: set[int] = set()
    for _ in range(12):
        process = children.start(CONSUMER, str(log.directory), EVENTS_RAW.name)
        line = await asyncio.to_thread(first_line, process)
        await asyncio.sleep(chance.random() * 0.1)
        lines = [line.strip(), *await asyncio.to_thread(kill, process)]
        mine = [int(line[2:]) for line in lines if line.startswith(b"t")]
        assert mine == list(range(mine[0], mine[0] + len(mine))), "in order, without holes, each once"
        # The first record of this life: not one that was committed in an earlier one, and none was jumped.
        assert committed < mine[0] <= (max(taken) + 1 if taken else 0)
        taken.update(mine)
        committed = max([committed, *(int(line[2:]) for line in lines if line.startswith(b"c"))])
    publishing.cancel()
    assert taken == set(range(max(taken) + 1))


async def test_a_consumer_that_hangs_is_replaced_and_takes_nothing_when_it_goes_on(log, children):
    bus = await log.open(segment_bytes=65536, housekeeping=0.02)
    await bus.publish(EVENTS_RAW, [Record(b"k", b"%d " % index + b"x" * 500) for index in range(500)])
    process = children.start(HANGS, str(log.directory), EVENTS_RAW.name, stdin=subprocess.PIPE)
    first = await asyncio.to_thread(first_line, process)
    # As if it hung for long: a lease's age is that of its file.
    os.utime(log.directory / "leases" / f"g@{EVENTS_RAW.name}", (0, 0))
    mine: list[int] = []
    async with bus.subscribe([EVENTS_RAW], "g") as second:
        async with asyncio.timeout(60):
            while not mine or mine[-1] < 499:
                batch = await second.take(100, 0.2)
                mine += [int(one.record.value.split()[0]) for one in batch]
                await second.commit(batch)
            process.stdin.close()
            process.stdin = None  # or `communicate` writes to it
            for index in range(500, 600):
                await bus.publish(EVENTS_RAW, [Record(b"k", b"%d " % index)])
                await asyncio.sleep(0.002)
            while mine[-1] < 599:
                batch = await second.take(100, 0.2)
                mine += [int(one.record.value.split()[0]) for one in batch]
                await second.commit(batch)
        lines = [first.strip(), *await asyncio.to_thread(kill, process)]
        theirs = [int(line[2:]) for line in lines if line.startswith(b"t")]
        assert mine == list(range(600)), "nothing was committed before, so it begins at the oldest; each once"
        assert theirs == list(range(7)), "no more than the batch it had in hand"
        assert await bus.lag("g") == {EVENTS_RAW.name: 0}


async def _publish_numbers(bus) -> None:
    # Without an end: the last consumer must find something however long the others took to start.
    for index in itertools.count():
        await bus.publish(EVENTS_RAW, [Record(b"k", b"%d " % index + b"x" * 500)])
        await asyncio.sleep(0.0005)


async def test_the_log_opens_after_a_kill_in_the_middle_of_everything(log, children):
    """Two publishers and a consumer over one directory, all killed at random points, many times."""
    chance = random.Random(os.getpid())
    acknowledged = {EVENTS_RAW.name: 0, ALERTS.name: 0}
    for _ in range(4):
        processes = {
            name: children.start(PUBLISHER, str(log.directory), name, str(acknowledged[name]), "2000")
            for name in acknowledged
        }
        consumer = children.start(CONSUMER, str(log.directory), ALERTS.name)
        firsts = {name: int(first_line(process)) for name, process in processes.items()}
        await asyncio.sleep(chance.random() * 0.15)
        kill(consumer)
        for name, process in processes.items():
            acknowledged[name] = max([acknowledged[name], firsts[name], *map(int, kill(process))])
        bus = await log.open()
        for topic in (EVENTS_RAW, ALERTS):
            assert (await bus.end(topic))[0] >= acknowledged[topic.name]
            acknowledged[topic.name] = (await bus.end(topic))[0]
        await bus.publish(ALERTS, [Record(b"k", b"%d" % acknowledged[ALERTS.name])])
        acknowledged[ALERTS.name] += 1
        await bus.close()
