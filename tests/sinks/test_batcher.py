# SPDX-License-Identifier: Apache-2.0
"""Batches close by count, bytes and age; cutting a frame loses nothing and commits it once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.contract import Delivery, Record
from schemas.topics import ALERTS
from sinks.delivery.batcher import Batcher, Parcel
from sinks.sink import BatchLimits

LIMITS = BatchLimits(items=10, size_bytes=1000, age_seconds=1.0)


def parcel(offset, items, size=10):
    return Parcel(Delivery(ALERTS, 0, offset, Record(b"", b"")), [b"%d" % n for n in range(items)], size)


def test_ready_by_count_bytes_and_age():
    batcher = Batcher(LIMITS)
    assert not batcher.ready(100.0)
    assert batcher.wait(100.0) == 1.0
    batcher.add(parcel(0, 3), 100.0)
    assert not batcher.ready(100.5)
    assert batcher.wait(100.5) == 0.5
    assert batcher.ready(101.0)
    batcher.add(parcel(1, 7), 100.0)
    assert batcher.ready(100.0)
    assert len(batcher.take()) == 2
    batcher.add(parcel(2, 1, 1000), 100.0)
    assert batcher.ready(100.0)


def test_a_large_record_is_cut_and_only_its_last_slice_is_the_end():
    batcher = Batcher(LIMITS)
    batcher.add(parcel(0, 25, 250), 0.0)
    batches = [batcher.take() for _ in range(3)]
    assert [[len(part.items) for part in batch] for batch in batches] == [[10], [10], [5]]
    assert [batch[0].last for batch in batches] == [False, False, True]
    assert batcher.take() == []


@given(st.lists(st.tuples(st.integers(0, 35), st.integers(0, 1500)), max_size=30), st.data())
def test_everything_comes_out_once_in_order_within_the_limits(parcels, data):
    batcher = Batcher(LIMITS)
    put = got = 0
    taken = []
    while put < len(parcels) or len(batcher):
        if put < len(parcels) and (not len(batcher) or data.draw(st.booleans())):
            batcher.add(parcel(put, *parcels[put]), 0.0)
            put += 1
            continue
        batch = batcher.take()
        assert batch
        count = sum(len(part.items) for part in batch)
        assert count <= 10
        assert sum(part.size for part in batch) <= 1000 or len(batch) == 1
        taken += batch
        got += count
    assert got == sum(items for items, _ in parcels)
    assert [part.delivery.offset for part in taken if part.last] == list(range(len(parcels)))
    for offset, (items, _) in enumerate(parcels):
        found = [item for part in taken if part.delivery.offset == offset for item in part.items]
        assert found == [b"%d" % n for n in range(items)]
    assert (batcher.items, batcher.size_bytes) == (0, 0)
