# SPDX-License-Identifier: Apache-2.0
"""A bus to test: every test that asks for `bus` or `world` runs on each kind there is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka_topics import create_topics

from bus.contract import Bus, Delivery, Record, Subscription
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.memory import MemoryBus, MemorySettings


class World:
    """A place where a bus lives: `open` gives one, `reopen` closes it and gives one on the same data."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.later = 0.0
        """Seconds that the memory bus's clock is ahead."""
        self.bootstrap = self.prefix = ""
        """Of the Kafka broker."""
        self._open: list[Bus] = []

    async def open(self, **settings: object) -> Bus:
        bus: Bus
        if self.kind == "kafka":
            bus = await KafkaBus.open(self.kafka_settings(**settings))
        elif self.kind != "embedded":
            partitions = 3 if self.kind == "partitioned" else 1
            memory = MemorySettings(partitions=partitions, revoke_seconds=60.0)
            bus = MemoryBus(memory, clock=lambda: time.monotonic() + self.later)
        else:
            bus = await EmbeddedBus.open(self.settings(**settings))
        self._open.append(bus)
        return bus

    def kafka_settings(self, **changes: object) -> KafkaSettings:
        settings = KafkaSettings(
            bootstrap=self.bootstrap, prefix=self.prefix, session_seconds=6.0, revoke_seconds=20.0, publish_seconds=30.0,
            call_seconds=30.0, away_seconds=30.0,
        )  # fmt: skip
        return msgspec.structs.replace(settings, **changes)

    def settings(self, **changes: object) -> EmbeddedSettings:
        return msgspec.structs.replace(EmbeddedSettings(directory=str(self.directory)), **changes)

    def hung(self) -> None:
        """Members that ask for nothing have not done so for long."""
        self.later += 1000.0
        for lease in self.directory.glob("leases/*"):
            os.utime(lease, (0, 0))
        for bus in self._open:
            for reader in getattr(bus, "_readers", ()):
                if reader._consumer is None or reader._news._waiters:
                    continue
                subscription, fetch = reader._consumer._subscription, reader._fetch
                if subscription._fetch_count:
                    # A question under way counts as asking, and its end as the last time that it asked.
                    fetch.add_done_callback(lambda _, asked=subscription: _long_ago(asked))
                else:
                    _long_ago(subscription)

    async def close(self) -> None:
        for bus in self._open:
            await bus.close()


def _long_ago(subscription: Any) -> None:
    subscription._last_fetch_ended -= 1000.0


class Children:
    """Python processes of a test; the fixture ends what is left of them."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdout": subprocess.PIPE} | options
        self._all.append(subprocess.Popen([sys.executable, "-c", program, *arguments], **options))
        return self._all[-1]

    def close(self) -> None:
        for process in self._all:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait(30)


@pytest.fixture(params=["memory", "partitioned", "embedded", "kafka"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path / "bus")
    if request.param == "kafka":
        await _on_a_broker(world, request)
    yield world
    await world.close()


async def _on_a_broker(world: World, request: pytest.FixtureRequest) -> None:
    world.bootstrap = request.getfixturevalue("kafka").bootstrap
    world.prefix = request.getfixturevalue("kafka_prefix")
    await create_topics(world.bootstrap, world.prefix, 3)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[World]:
    """The embedded bus alone: what only a bus with a disk can promise."""
    world = World("embedded", tmp_path / "bus")
    yield world
    await world.close()


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[World]:
    """The memory bus with several partitions alone: what only a bus that takes partitions away can promise."""
    world = World("partitioned", tmp_path / "bus")
    yield world
    await world.close()


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


@pytest.fixture
def drain() -> Callable[[Subscription, int], Awaitable[list[Delivery]]]:
    """Take until `count` records came, or fail after a minute."""

    async def drain(subscription: Subscription, count: int) -> list[Delivery]:
        found: list[Delivery] = []
        deadline = time.monotonic() + 60
        while len(found) < count and time.monotonic() < deadline:
            found += await subscription.take(1000, 0.2)
        assert len(found) >= count, f"{len(found)} of {count} records within a minute"
        return found

    return drain


@pytest.fixture
def records() -> Callable[[int], list[Record]]:
    def records(count: int, key: bytes = b"k", first: int = 0) -> list[Record]:
        return [Record(key, str(index).encode()) for index in range(first, first + count)]

    return records
