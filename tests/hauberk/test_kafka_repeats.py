# SPDX-License-Identifier: Apache-2.0
"""Frames that come twice over a real broker: alerts repeat under the id of the first, and counts in the store do not grow."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka_roles import Roles, eventually, metric, once, played, roles_on

from bus.backoff import Backoff
from bus.contract import Bus, Record
from bus.kafka.bus import KafkaBus
from bus.spool import SpooledBus
from bus.spool_settings import SpoolSettings
from schemas.alert import decode_alert
from schemas.errors import Unavailable
from schemas.summary import Summary, decode
from schemas.topics import ALERTS, EVENTS_RAW, INVENTORY, SUMMARIES, Topic
from sinks.store.queries import SqliteReader
from sinks.store.store import Query

pytestmark = pytest.mark.timeout(400)

Counts = dict[tuple[str, str, str], int]
"""(operation, resource, status) -> events."""


class Once:
    """What one processor makes of the frames of a node that come once: `ids` of alerts, `counts`, and `events` in all."""

    def __init__(self, ids: list[str], told: Sequence[Summary]) -> None:
        self.ids = ids
        self.counts: Counts = Counter()
        for summary in told:
            for entry in summary.entries:
                self.counts[entry.behaviour.operation.name, entry.behaviour.resource, entry.status] += entry.count
        self.events = sum(self.counts.values())


async def _once(node: str) -> Once:
    bus = await once(node)
    ids = [decode_alert(one.value or b"").EventID for one in bus.records(ALERTS)]
    found = Once(ids, [decode(one.value or b"") for one in bus.records(SUMMARIES)])
    assert len(ids) > 100
    assert found.events > 500
    return found


@pytest.fixture
async def cluster(hauberk: Any, kafka: Any, kafka_prefix: str) -> AsyncIterator[Roles]:
    async with roles_on(kafka, kafka_prefix, hauberk) as made:
        yield made


async def _summaries(cluster: Roles) -> list[Summary]:
    """Every record on the topic, those of one key too."""
    found = []
    async with cluster.bus.subscribe((SUMMARIES,), "test", "earliest") as reader:
        while (await cluster.bus.lag("test")).get(SUMMARIES.name, 1):
            batch = await reader.take(1000, 0.5)
            found += [decode(one.record.value) for one in batch if one.record.value is not None]
            await reader.commit(batch)
    await cluster.bus.forget("test")
    return found


async def _stored(cluster: Roles, place: Path) -> tuple[Counts, list[str]]:
    """(counts, ids of alerts) in a store that a sink of its own made of all that is there."""
    sinks = json.dumps([{"type": "store", "name": "counts", "path": str(place)}])
    place.parent.mkdir()
    sink = cluster.start("sink", "counts", HAUBERK__SINKS=sinks, HAUBERK__PAGE__ENABLED="false")
    await asyncio.to_thread(sink.ready)

    async def read() -> bool:
        lag = await cluster.bus.lag("sink.counts")
        return {ALERTS.name, SUMMARIES.name} <= lag.keys() and not any(lag.values())

    async with asyncio.timeout(120):
        while not await read():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert sink.end(signal.SIGTERM) == 0, sink.said()
    reader = SqliteReader(str(place))
    try:
        counts: Counts = Counter()
        for row in reader.totals(Query()):
            counts[row.behaviour.operation.name, row.behaviour.resource, row.status] += row.count
        return counts, [one.alert.EventID for one in reader.alerts(Query(limit=100_000))]
    finally:
        reader.close()


@pytest.mark.fault(
    "processor killed (-9) that had told of frames and not committed them",
    "the next one tells again: each alert has the id of the first, in a header too; summaries name the same frames, and the store counts them once",
)
async def test_what_a_killed_processor_told_is_recognised(cluster: Roles, tmp_path: Path) -> None:
    once = await _once("n0")
    await cluster.judge()
    identities, records = played("n0")
    await cluster.put(INVENTORY, identities)
    first = cluster.start("processor", HAUBERK__PROCESSOR__PUMP__COMMIT_SECONDS="3600")
    await asyncio.to_thread(first.ready)
    # Its first commit; the next one is an hour away.
    await cluster.put(EVENTS_RAW, records[:1])
    await cluster.judged()
    before = {decode_alert(one.record.value or b"").EventID for one in await cluster.alerts()}
    await cluster.put(EVENTS_RAW, records[1:])

    async def told() -> bool:
        counted = sum(entry.count for summary in await _summaries(cluster) for entry in summary.entries)
        return counted == once.events and len(await cluster.alerts()) == len(once.ids)

    async with asyncio.timeout(120):
        while not await told():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(60)
    assert (await cluster.bus.lag("processors"))[EVENTS_RAW.name] == len(records) - 1, "nothing more was committed"

    second = cluster.start("processor")
    await asyncio.to_thread(second.ready)
    await cluster.judged()
    assert second.end(signal.SIGTERM) == 0, second.said()
    alerts = [one.record for one in await cluster.alerts()]
    assert Counter(decode_alert(one.value or b"").EventID for one in alerts) == {
        ident: 1 if ident in before else 2 for ident in once.ids
    }
    assert all(dict(one.headers)["ce_id"].decode() == decode_alert(one.value or b"").EventID for one in alerts)
    assert len({one.value for one in alerts}) == len(once.ids), "a repeat is the same alert"
    frames = Counter(
        (one.identity.uid, one.bucket, one.first_frame, one.last_frame) for one in await _summaries(cluster)
    )
    assert {many for (*_, last), many in frames.items() if last} == {2}, "a summary of the same frames comes again"
    counts, stored = await _stored(cluster, tmp_path / "counts" / "summary.db")
    assert counts == once.counts
    assert sorted(stored) == sorted(once.ids)


class Unanswered:
    """`inner`, whose answer to every fourth publication of frames is lost: they are written, and nobody hears of it."""

    def __init__(self, inner: Bus) -> None:
        self._inner = inner
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def publish(self, topic: Topic, records: Sequence[Record]) -> None:
        await self._inner.publish(topic, records)
        self._calls += topic is EVENTS_RAW
        if topic is EVENTS_RAW and self._calls % 4 == 1:
            raise Unavailable("expected an answer of the brokers, got none")


@pytest.mark.fault(
    "answers of the brokers lost, so that a node's spool sends frames again",
    "they lie on the topic twice; the processor reads each once: no alert is told twice, no count grows",
)
async def test_what_a_spool_sends_again_is_read_once(cluster: Roles, tmp_path: Path) -> None:
    once = await _once("n0")
    await cluster.judge()
    identities, records = played("n0")
    await cluster.put(INVENTORY, identities)
    processor = cluster.start("processor")
    await asyncio.to_thread(processor.ready)
    quick = SpoolSettings(
        directory=str(tmp_path / "spool"), publish_timeout=60.0, retry=Backoff(first_seconds=0.01, max_seconds=0.05)
    )
    node: Any = Unanswered(await KafkaBus.open(cluster.settings))
    spooled = await SpooledBus.open(node, quick)
    try:
        for record in records:
            await spooled.publish(EVENTS_RAW, [record])
        async with asyncio.timeout(60):
            while spooled.stats.waiting:  # noqa: ASYNC110 - a count
                await asyncio.sleep(0.01)
        assert spooled.stats.spooled
    finally:
        await spooled.close()
    lie = sum((await cluster.bus.end(EVENTS_RAW)).values())
    assert lie > len(records), "some frames lie there twice"
    await cluster.judged()
    await eventually(lambda: metric(processor, "hauberk_processor_repeats_total") == lie - len(records))
    assert processor.end(signal.SIGTERM) == 0, processor.said()
    alerts = [decode_alert(one.record.value or b"") for one in await cluster.alerts()]
    assert Counter(one.EventID for one in alerts) == dict.fromkeys(once.ids, 1)
    counts, stored = await _stored(cluster, tmp_path / "counts" / "summary.db")
    assert counts == once.counts
    assert sorted(stored) == sorted(once.ids)
