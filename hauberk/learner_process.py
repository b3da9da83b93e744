# SPDX-License-Identifier: Apache-2.0
"""Learns for the page in a process of its own: bounded memory that goes back when it ends, lowest priority, no capability but
those to read files, killed with its page.

A million stored behaviours take seconds of CPU that no loop of a sink should stop for. What the process needs of the bus (policies, for
what shadows spoke against; facts of a cluster, for names of peers; both, with what nodes tell of containers, for whom a policy selects) is asked here, where the bus is open, and handed over.
Neighbours: `hauberk.learner_worker` (the process), `sinks.web.learning` (when it runs).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from schemas.errors import HauberkError, Temporary
from schemas.topics import CLUSTER, INVENTORY, POLICIES
from sinks.web.learnt import FRAME_MOST, LENGTH, LearnFailure, Remark, Told, told

if TYPE_CHECKING:
    from bus.contract import Bus, Record
    from kernel.machine import Machine
    from policy.ruleset import PostureSettings

DAYS: Final = 30
"""How far back, as `hauberk discover` does it."""
_WORDS_MOST: Final = 2000


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is given on its standard input, as msgpack. `parent`: the process that starts it; `policies`: documents as JSON;
    `facts`: records of `cluster.v1`; `inventory`: values of `inventory.v1`."""

    parent: int
    store: str
    since: int
    memory_bytes: int
    postures: bytes
    policies: tuple[bytes, ...]
    facts: tuple[tuple[bytes, bytes], ...]
    inventory: tuple[bytes, ...]


def bounded(learn_bytes: int, here: Machine) -> int:
    """What learning may take of `learn_bytes`: half of what the machine or the container has at most. Who meets a container's limit before its own
    may be killed with everybody in it (memory.oom.group, which kubelets set)."""
    return min(learn_bytes, here.memory // 2)


class LearnerProcess:
    """A `Learner` for the page."""

    def __init__(self, store: str, bus: Bus, postures: PostureSettings, memory_bytes: int) -> None:
        self._store = store
        self._bus = bus
        self._postures = msgspec.json.encode(postures)
        self._memory_bytes = memory_bytes

    def changed(self) -> object:
        """Sizes and times of the store's files."""
        found = []
        for path in (self._store, f"{self._store}-wal"):
            try:
                about = os.stat(path)
            except OSError:
                continue
            found.append((path, about.st_ino, about.st_size, about.st_mtime_ns))
        return tuple(found)

    async def learn(self) -> AsyncIterator[Told]:
        """The words of one run."""
        policies: tuple[bytes, ...] = ()
        facts: tuple[tuple[bytes, bytes], ...] = ()
        inventory: tuple[bytes, ...] = ()
        try:
            policies = tuple(value for _, value in _there(await self._bus.latest(POLICIES)))
        except HauberkError as error:
            yield Remark(text=f"what shadow policies spoke against is not known, and is learnt: {error}")
        try:
            facts = tuple(_there(await self._bus.latest(CLUSTER)))
        except HauberkError as error:
            yield Remark(
                text=f"peers are told by their addresses, and pods that a policy selects and nothing was seen of are not: {error}"
            )
        try:
            inventory = tuple(value for _, value in _there(await self._bus.latest(INVENTORY)))
        except HauberkError as error:
            yield Remark(text=f"containers that a policy selects and nothing was seen of are not told: {error}")
        task = msgspec.msgpack.encode(Task(
            parent=os.getpid(), store=self._store, since=int(time.time()) - DAYS * 86400, memory_bytes=self._memory_bytes, postures=self._postures,
            policies=policies, facts=facts, inventory=inventory,
        ))  # fmt: skip
        # Megabytes, in a large cluster: not held while it learns.
        del policies, facts, inventory
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "hauberk.learner_worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise Temporary(f"expected to start the learner, got: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        saying = asyncio.create_task(_tail(process.stderr))
        feeding = asyncio.create_task(_feed(process.stdin, task))
        del task
        try:
            while True:
                try:
                    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                    if length > FRAME_MOST:
                        raise Temporary(f"learner: expected frames of at most {FRAME_MOST} bytes, got {length}")
                    word = told(await process.stdout.readexactly(length))
                except asyncio.IncompleteReadError:
                    break
                yield word
            ended = await process.wait()
            if ended:
                said = await saying
                yield LearnFailure(
                    why=f"expected the learner to end well, it ended with {_ending(ended)}{': ' + said if said else ''}"
                )
        finally:
            for task_ in (saying, feeding):
                task_.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _there(latest: dict[bytes, Record]) -> Iterator[tuple[bytes, bytes]]:
    return ((key, record.value) for key, record in latest.items() if record.value is not None)


async def _tail(pipe: asyncio.StreamReader) -> str:
    """The last line of what it said. All of it is read, or it would stop at a full pipe."""
    said = b""
    while more := await pipe.read(1 << 16):
        said = (said + more)[-_WORDS_MOST:]
    return said.decode("utf-8", "replace").strip().rpartition("\n")[2]


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        pipe.write(data)
        await pipe.drain()
    pipe.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name + (", out of memory?" if code == -signal.SIGKILL else "")
    except ValueError:
        return f"signal {-code}"
