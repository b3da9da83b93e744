# SPDX-License-Identifier: Apache-2.0
"""Publishing to Kafka: own batches, one on its way per partition, tried until its time is over and then given up for certain.

::

    publish ─► waiting, per partition ─► one batch (what came meanwhile goes together) ─► its leader ─► futures
                  │ time over or cancelled: taken out of the queue, or the connection is cut with it
                  ▼
              Unavailable: nothing of it is held here any more

aiokafka's own producer cannot do that: what it gave up with an error it sends later all the same, and a batch that a broker
refused stops its partition for ever. Here a number that a broker refused is not used up, and after any doubt the partition
gets a new producer id. Repeats by a lost answer are recognised by the broker. Neighbours: `batches`, `connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from aiokafka import errors
from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from bus.contract import Record
from bus.kafka.batches import CODECS, encoded, partition_of
from bus.kafka.connection import BrokerLink
from bus.kafka.failures import translated
from bus.record_size import measure
from schemas.errors import Backpressure, HauberkError, Refused, Unavailable
from schemas.topics import Topic

log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.05
_LAST_RETRY: Final = 0.5
_TIMELESS_SECONDS: Final = 60.0
"""A clock that a broker refused is not believed for so long."""
_DOUBTFUL: Final = (
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.InvalidProducerIdMapping,
)
_MOST_PER_PARTITION: Final = 10_000
"""Records of a batch: a broker's index and a reader's memory want an end to it."""


class _Waiting:
    """Records of one `publish` for one partition. `bytes`: before compression."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.bytes = sum(record.size for record in records)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _PartitionQueue:
    """One partition: what waits, what is under way, and who we are there. `identity` None: to be asked for."""

    def __init__(self, channel: str, partition: int) -> None:
        self.channel = channel
        self.partition = partition
        self.waiting: deque[_Waiting] = deque()
        self.under_way: list[_Waiting] = []
        self.identity: tuple[int, int] | None = None
        self.sequence = 0
        self.task: asyncio.Task[None] | None = None
        self.problem: BaseException | None = None


class BatchProducer:
    """Counts in the link's `stats`."""

    def __init__(self, link: BrokerLink) -> None:
        self._link = link
        self._stats = link.stats
        self._settings = link.settings
        self._queues: dict[tuple[str, int], _PartitionQueue] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._waiting_bytes = 0
        self._timeless_until = 0.0

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        """See `contract.Bus`."""
        settings = self._settings
        size = measure(topic, records, settings.record_bytes)
        if not records:
            return
        if self._waiting_bytes + size > settings.queue_bytes and self._waiting_bytes:
            raise Backpressure(
                f"`{topic.name}`: {self._waiting_bytes} bytes wait for the brokers, the cap is `queue_bytes` "
                f"{settings.queue_bytes}; publish less, later",
                retry_after=0.05,
            )
        channel = topic.named(settings.prefix)
        self._waiting_bytes += size
        self._stats.queue_bytes = self._waiting_bytes
        began = time.monotonic()
        try:
            async with asyncio.timeout(settings.publish_seconds) as limit:
                # In the order of the calls, also while the first one still asks what partitions there are.
                async with self._asking.setdefault(channel, asyncio.Lock()):
                    count = len(await self._link.partitions(channel, "write to"))
                    queued = self._queue(channel, records, count)
                try:
                    await asyncio.wait([one.done for _, one in queued])
                except asyncio.CancelledError:
                    problems = [line.problem for line, _ in queued if line.problem is not None]
                    ending = [task for line, one in queued if (task := self._give_up(line, one)) is not None]
                    if ending:
                        # They end at once, and with them the connection that something of this may be on.
                        await asyncio.wait(ending)
                    if limit.expired():
                        error: BaseException = problems[0] if problems else TimeoutError()
                        found = translated(error, "write to", channel)
                        if not problems or not isinstance(error, HauberkError | errors.BrokerResponseError):
                            self._link.lost(error)
                        raise found from None
                    raise
            for _, one in queued:
                one.done.result()
        except TimeoutError as error:
            self._link.lost(error)
            raise Unavailable(f"expected to write to topic `{channel}`, no broker answered in time") from error
        finally:
            self._waiting_bytes -= size
            self._stats.queue_bytes = self._waiting_bytes
            self._stats.publications += 1
            self._stats.publish_seconds += time.monotonic() - began

    def _queue(self, channel: str, records: Sequence[Record], count: int) -> list[tuple[_PartitionQueue, _Waiting]]:
        parts: dict[int, list[Record]] = {}
        for record in records:
            parts.setdefault(partition_of(record.key, count), []).append(record)
        queued = []
        for number, part in parts.items():
            line = self._queues.get((channel, number))
            if line is None:
                line = self._queues[channel, number] = _PartitionQueue(channel, number)
            for piece in _pieces(part, self._settings.batch_bytes):
                one = _Waiting(piece)
                # Retrieved here, so that one that nobody looks at any more is no warning.
                one.done.add_done_callback(lambda done: done.cancelled() or done.exception())
                line.waiting.append(one)
                queued.append((line, one))
            self._start(line)
        return queued

    def _start(self, line: _PartitionQueue) -> None:
        if line.task is None or line.task.done():
            line.task = asyncio.get_running_loop().create_task(self._run(line))

    def _give_up(self, line: _PartitionQueue, one: _Waiting) -> asyncio.Task[None] | None:
        """Nothing of `one` is sent from here on, or from the end of the task on that is given."""
        if one.done.done():
            return None
        one.done.cancel()
        if one in line.waiting:
            line.waiting.remove(one)
        elif one in line.under_way and line.task is not None:
            # It may be in a socket's buffer: `_run` cuts the connection; the rest of the batch goes again.
            line.task.cancel()
            return line.task
        return None

    async def _run(self, line: _PartitionQueue) -> None:
        while line.waiting:
            size = records = 0
            while line.waiting:
                one = line.waiting[0]
                if line.under_way and (
                    size + one.bytes > self._settings.batch_bytes or records + len(one.records) > _MOST_PER_PARTITION
                ):
                    break
                size += one.bytes
                records += len(one.records)
                line.under_way.append(line.waiting.popleft())
            try:
                await self._deliver(line)
            except asyncio.CancelledError:
                self._forget(line)
                back = [one for one in line.under_way if not one.done.done()]
                line.waiting.extendleft(reversed(back))
                line.under_way = []
                if line.waiting and not self._link.closed:
                    line.task = asyncio.get_running_loop().create_task(self._run(line))
                return
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
                _settle(line, error)
            line.under_way = []

    async def _deliver(self, line: _PartitionQueue) -> None:
        """Until a broker has taken or refused it; whoever waits has the deadline. Raises what is the matter for good."""
        wait = _FIRST_RETRY
        timeless = time.monotonic() < self._timeless_until
        data = b""
        made_for: object = None
        while True:
            try:
                client = await self._link.client()
                if line.identity is None:
                    await self._identify(line)
                identity = line.identity
                assert identity is not None
                if made_for != (identity, timeless):
                    now_ms = time.time_ns() // 1_000_000
                    records = [record for one in line.under_way for record in one.records]
                    codec = CODECS[self._settings.compression]
                    data = encoded(records, codec, identity, line.sequence, now_ms, timeless=timeless)
                    made_for = (identity, timeless)
                leader = await self._link.leader(line.channel, line.partition)
                if leader is None:
                    raise errors.LeaderNotAvailableError
                milliseconds = int(self._settings.call_seconds * 1000)
                try:
                    answer = await client.send(
                        leader, ProduceRequest(None, -1, milliseconds, [(line.channel, [(line.partition, data)])])
                    )
                except asyncio.CancelledError:
                    client.cut(leader)
                    raise
                ((_, ((_, code, *_),)),) = answer.topics
                error = errors.for_code(code)
                if error is errors.NoError or error is errors.DuplicateSequenceNumber:
                    many = sum(len(one.records) for one in line.under_way)
                    line.sequence += many
                    line.problem = None
                    self._stats.records += many
                    self._stats.batches += 1
                    self._stats.bytes += len(data)
                    _settle(line, None)
                    return
                raise error()
            except (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError) as error:
                await self._too_large(line, error)
                return
            except errors.InvalidTimestampError as error:
                if timeless:
                    raise translated(error, "write to", line.channel) from error
                timeless = True
                self._clock_is_ahead(line)
            except _DOUBTFUL as error:
                self._forget(line)
                line.problem = error
                if isinstance(error, errors.InvalidProducerEpoch):
                    await asyncio.sleep(wait)
            except (KafkaError, OSError, TimeoutError, Unavailable) as error:
                line.problem = error
                again = isinstance(error, OSError | TimeoutError) or getattr(error, "retriable", False)
                if not again and not (isinstance(error, Unavailable) and self._link.away is None):
                    raise translated(error, "write to", line.channel) from error
                with contextlib.suppress(HauberkError):
                    (await self._link.client()).force_metadata_update()
                await self._link.pause(wait)
                wait = min(_LAST_RETRY, wait * 2)

    async def _identify(self, line: _PartitionQueue) -> None:
        answer = await self._link.ask(InitProducerIdRequest(None, 60_000))
        error = errors.for_code(answer.error_code)
        if error is not errors.NoError:
            raise error()
        line.identity, line.sequence = (answer.producer_id, answer.producer_epoch), 0

    def _forget(self, line: _PartitionQueue) -> None:
        if line.identity is not None:
            self._stats.renewed += 1
        line.identity = None

    async def _too_large(self, line: _PartitionQueue, error: KafkaError) -> None:
        """Each publication alone; one that is too large alone is refused, and nothing of it was written."""
        together = line.under_way
        if len(together) == 1:
            _settle(line, translated(error, "write to", line.channel))
            return
        for one in together:
            line.under_way = [one]
            try:
                await self._deliver(line)
            except asyncio.CancelledError:
                line.under_way = together
                raise
            except Exception as other:  # noqa: BLE001 - as in `_run`
                _settle(line, other)

    def _clock_is_ahead(self, line: _PartitionQueue) -> None:
        self._stats.timeless += 1
        if time.monotonic() >= self._timeless_until:
            log.warning(
                "kafka: the brokers refuse the times of `%s` for being far from theirs; is the clock of this machine right? "
                "Records travel without one until it is",
                line.channel,
            )
        self._timeless_until = time.monotonic() + _TIMELESS_SECONDS

    async def close(self) -> None:
        """What waits has `publish_seconds` in all; then it is given up, and its publishers hear of it."""
        tasks = [line.task for line in self._queues.values() if line.task is not None and not line.task.done()]
        if tasks and self._link.away is None:
            await asyncio.wait(tasks, timeout=self._settings.publish_seconds)
        closed = Refused("expected an open bus, this one was closed before the brokers had answered")
        for line in self._queues.values():
            for one in (*line.waiting, *line.under_way):
                if not one.done.done():
                    one.done.set_exception(closed)
            line.waiting.clear()
            if line.task is not None and not line.task.done():
                line.task.cancel()
                await asyncio.wait((line.task,))


def _settle(line: _PartitionQueue, error: BaseException | None) -> None:
    for one in line.under_way:
        if not one.done.done():
            if error is None:
                one.done.set_result(None)
            else:
                one.done.set_exception(error)


def _pieces(records: list[Record], most: int) -> list[list[Record]]:
    """In order, each as large as a batch may be: a publication larger than that is all or none per piece only."""
    found: list[list[Record]] = []
    size = 0
    for record in records:
        if not found or size + record.size > most or len(found[-1]) >= _MOST_PER_PARTITION:
            found.append([])
            size = 0
        found[-1].append(record)
        size += record.size
    return found
