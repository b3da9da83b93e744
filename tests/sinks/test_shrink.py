# SPDX-License-Identifier: Apache-2.0
"""The store stays within its bytes: the oldest goes first, the file really shrinks, and what stays counts as before."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from itertools import count

import pytest

from sinks.store.shrink import give_back
from sinks.store.sink import StoreSettings, StoreSink
from sinks.store.sqlite import SqliteStore
from sinks.store.store import Query

MOST = 3 << 20


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store.db")


@pytest.fixture
def words(make):
    """Summaries of one bucket after the other: 200 behaviours of their own in each, and one that is in all."""

    def of(buckets, first=0):
        return [
            make.summary(
                number, None, make.entry(1, resource="/shared"),
                *[make.entry(2, resource=f"/{number}/{each}/{'x' * 400}") for each in range(200)],
                bucket=make.start + 60 * number,
            )
            for number in range(first, first + buckets)
        ]  # fmt: skip

    return of


def counts(store):
    return {row.behaviour.resource: row.count for row in store.totals(Query())}


def test_a_file_that_gives_no_pages_back_is_not_asked_for_ever(path):
    db = sqlite3.connect(path, isolation_level=None)  # as `sqlite3 new < dump` makes it: no auto_vacuum
    db.executescript("CREATE TABLE big(body); INSERT INTO big VALUES(zeroblob(1000000)); DELETE FROM big")
    assert db.execute("PRAGMA freelist_count").fetchone()[0] > 100
    assert not give_back(db)
    db.close()


def test_the_oldest_goes_and_the_file_shrinks(path, make, words):
    store = SqliteStore(path, max_bytes=MOST)
    said = words(80)
    store.apply(said, [make.alert(n, EventID=f"a{n}") for n in range(0, 80 * 60, 60)])
    before = os.stat(path).st_size + os.stat(f"{path}-wal").st_size
    assert before > 2 * MOST
    *_, last = list(store.shrink())
    assert last.rows > 0
    assert last.size <= MOST
    found = counts(store)
    store.close()
    assert os.stat(path).st_size <= MOST
    # What is left is the newest, whole and exact.
    numbers = {int(name.split("/")[1]) for name in found if name != "/shared"}
    oldest = min(numbers)
    assert numbers == set(range(oldest, 80))
    assert oldest > 0
    assert found["/shared"] == len(numbers)
    assert {many for name, many in found.items() if name != "/shared"} == {2}
    assert len(found) == 1 + 200 * len(numbers)
    assert os.stat(path).st_size > MOST // 3, "more was forgotten than had to be"
    again = SqliteStore(path, max_bytes=MOST)
    assert list(again.shrink()) == []
    alerts = again.alerts(Query(limit=1000))
    assert min(stored.alert.Timestamp for stored in alerts) >= make.start + 60 * oldest
    # Repeats of what was forgotten stay forgotten; repeats of the rest stay repeats.
    done = again.apply(said, [])
    assert (done.summaries, done.late, done.repeated) == (0, oldest, 80 - oldest)
    assert again.apply(words(1, first=80), []).summaries == 1
    again.close()


def test_what_is_counted_meanwhile_is_not_lost(path, make, words):
    store = SqliteStore(path, max_bytes=MOST)
    store.apply(words(80), [])
    number = count(80)
    for _ in store.shrink():
        # Behaviours of the oldest minutes come back while theirs are being taken away.
        at = next(number)
        entries = [make.entry(5, resource=f"/{old}/{old}/{'x' * 400}") for old in range(20)]
        store.apply([make.summary(at, None, *entries, bucket=make.start + 60 * 90)], [])
    rounds = next(number) - 80
    assert rounds > 3
    for old in range(20):
        assert counts(store)[f"/{old}/{old}/{'x' * 400}"] >= 5 * rounds
    store.close()


def test_one_bucket_alone_is_never_forgotten(path, words):
    store = SqliteStore(path, max_bytes=16384)
    store.apply(words(1), [])
    *_, last = list(store.shrink())
    assert (last.rows, last.size > 16384) == (0, True)
    assert len(counts(store)) == 201
    store.close()


def test_alerts_alone_are_cut_too(path, make):
    store = SqliteStore(path, max_bytes=1 << 20)
    store.apply([], [make.alert(n, EventID=f"a{n}", Data="x" * 900) for n in range(2000)])
    *_, last = list(store.shrink())
    assert last.size <= 1 << 20
    kept = [stored.alert.PID for stored in store.alerts(Query(limit=5000))]
    assert kept == list(range(1999, 1999 - len(kept), -1))
    assert 300 < len(kept) < 2000
    store.close()


def test_no_cap(path, words):
    store = SqliteStore(path, max_bytes=0)
    store.apply(words(20), [])
    assert list(store.shrink()) == []
    store.close()


def test_forgetting_by_age_shrinks_the_file_too(path, make, words):
    store = SqliteStore(path)
    store.apply(words(40), [])
    store.tidy(make.start + 3600)
    before = os.stat(path).st_size
    store.tidy(make.start + 200 * 86400)
    store.close()
    assert os.stat(path).st_size < before / 4


async def test_the_sink_does_it_by_itself_and_says_so(path, words, caplog):
    sink = StoreSink(StoreSettings(path=path, max_bytes=1 << 24))
    sink.size_check_seconds = 0.0
    await sink.check()
    await sink.open()
    caplog.set_level(logging.WARNING)
    for first in range(0, 200, 20):
        await sink.send(words(20, first=first))
    async with asyncio.timeout(30):
        # What was sent meanwhile may need another round, which comes with the next look.
        while sink.shrinking or not 0 < sink.stats.file_bytes <= 1 << 24:
            await asyncio.sleep(0.005)
            await sink.idle()
    assert sink.stats.cut_rows > 0
    assert "is over `max_bytes`" in caplog.text
    assert "the oldest go" in caplog.text
    await sink.close()
    assert os.stat(path).st_size <= 1 << 24
