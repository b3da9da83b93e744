# SPDX-License-Identifier: Apache-2.0
"""The ring reader against a model of the kernel's producer: wrap-around, busy and discarded records, release."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernel.ring import PAGE, Ring, anonymous
from schemas.errors import KernelError
from schemas.kernel import OCCURRENCE, STRIDE

SIZE = 4096
BUSY, DISCARD = 1 << 31, 1 << 30


class Producer:
    """What kernel/bpf/ringbuf.c does, in Python: reserve, commit, discard, refuse when full."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.consumer, self.memory = anonymous(size)
        self.ring = Ring(self.consumer, self.memory, size, "model")
        self.position = 0

    def _write(self, at: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            place = (at + index) % self.size
            self.memory[PAGE + place] = byte
            self.memory[PAGE + self.size + place] = byte

    def reserve(self, data: bytes) -> int | None:
        """Start of a busy record, None when there is no room."""
        total = 8 + (len(data) + 7) // 8 * 8
        (consumed,) = struct.unpack_from("=Q", self.consumer)
        if self.position + total - consumed > self.size - 1:
            return None
        at = self.position
        self._write(at, struct.pack("=II", len(data) | BUSY, 0) + data)
        self.position += total
        struct.pack_into("=Q", self.memory, 0, self.position)
        return at

    def finish(self, at: int, length: int, *, keep: bool) -> None:
        """Commit or discard."""
        self._write(at, struct.pack("=I", length if keep else length | DISCARD))

    def put(self, data: bytes) -> bool:
        """Reserve and commit."""
        at = self.reserve(data)
        if at is not None:
            self.finish(at, len(data), keep=True)
        return at is not None


class RingModel(RuleBasedStateMachine):
    """Any order of reserve, commit, discard, take and release hands out each committed record once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.producer = Producer()
        self.ring = self.producer.ring
        # (record number, start, state) in ring order; "busy" blocks everything after it.
        self.line: deque[list[object]] = deque()
        self.unreleased: list[list[object]] = []
        self.count = 0

    def _row(self) -> bytes:
        self.count += 1
        return struct.pack("=Q", self.count) + bytes(OCCURRENCE.size - 8)

    @rule()
    def reserve(self) -> None:
        row = self._row()
        at = self.producer.reserve(row)
        if at is not None:
            self.line.append([self.count, at, "busy"])

    @rule(keep=st.booleans(), pick=st.integers(0, 1000))
    def finish(self, keep: bool, pick: int) -> None:
        busy = [entry for entry in self.line if entry[2] == "busy"]
        if busy:
            entry = busy[pick % len(busy)]
            self.producer.finish(int(entry[1]), OCCURRENCE.size, keep=keep)  # type: ignore[call-overload]
            entry[2] = "kept" if keep else "discarded"

    @rule(limit=st.integers(1, 40))
    def take(self, limit: int) -> None:
        chunk = self.ring.take_table(limit * STRIDE)
        expected, taken = [], 0
        for _ in range(limit):
            if not self.line or self.line[0][2] == "busy":
                break
            entry = self.line.popleft()
            self.unreleased.append(entry)
            taken += 1
            if entry[2] == "kept":
                expected.append(entry[0])
        assert self.ring.emptied == (taken < min(limit, self.ring.size // STRIDE))
        assert list(memoryview(chunk).cast("Q")[1::8]) == expected

    @rule(limit=st.integers(1, 40))
    def take_as_records(self, limit: int) -> None:
        records = self.ring.take_records(limit * STRIDE)
        expected = []
        for _ in range(limit):
            if not self.line or self.line[0][2] == "busy":
                break
            entry = self.line.popleft()
            self.unreleased.append(entry)
            if entry[2] == "kept":
                expected.append(entry[0])
        assert [struct.unpack_from("=Q", record)[0] for record in records] == expected
        assert all(len(record) == OCCURRENCE.size for record in records)

    @rule()
    def release(self) -> None:
        self.ring.release()
        self.unreleased.clear()

    @invariant()
    def accounts(self) -> None:
        assert self.ring.waiting == len(self.line) * STRIDE
        assert self.ring.held == (len(self.line) + len(self.unreleased)) * STRIDE


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(bodies=st.lists(st.binary(min_size=0, max_size=700), min_size=1, max_size=60))
@settings(deadline=None)
def test_records_of_any_size_survive_any_number_of_wraps(bodies: list[bytes]) -> None:
    producer = Producer()
    seen: list[bytes] = []
    for body in bodies:
        if not producer.put(body):
            seen += producer.ring.take_records(SIZE)
            producer.ring.release()
            assert producer.put(body)
    seen += producer.ring.take_records(SIZE)
    assert seen == bodies


def test_space_comes_back_only_after_release() -> None:
    producer = Producer()
    while producer.put(bytes(OCCURRENCE.size)):
        pass
    assert len(producer.ring.take_table(SIZE)) == 63 * STRIDE
    assert not producer.put(bytes(OCCURRENCE.size))
    producer.ring.release()
    assert producer.put(bytes(OCCURRENCE.size))


def test_a_row_of_another_size_is_refused_with_a_sentence() -> None:
    producer = Producer()
    producer.put(bytes(48) + bytes(8))
    producer.put(bytes(64))
    with pytest.raises(KernelError, match=r"expected records of 56 bytes .* load the sensor again"):
        producer.ring.take_table(SIZE)


def test_release_never_moves_backwards() -> None:
    producer = Producer()
    producer.put(bytes(56))
    producer.ring.take_table(SIZE)
    producer.ring.release()
    producer.ring.release(0)
    assert producer.ring.held == 0


@pytest.mark.parametrize("size", [0, 3, 4095])
def test_a_ring_that_is_no_power_of_two_is_refused(size: int) -> None:
    consumer, memory = anonymous(SIZE)
    with pytest.raises(ValueError, match="power of two"):
        Ring(consumer, memory, size)
