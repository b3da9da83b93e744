# SPDX-License-Identifier: Apache-2.0
"""Hot: a BPF ring buffer read by memory map, a chunk at a time, with no work per event.

The map's fd is mapped twice: a read-write page with the consumer's position, and read-only a page with the producer's
position followed by the data, which the kernel maps two times in a row so that a record that wraps is contiguous
(kernel/bpf/ringbuf.c). Only a window of the data is mapped at a time: the kernel inserts all pages of such a mapping at once,
and a ring of 16 MiB mapped twice would be 32 MiB of this process's RSS. A record is 8 bytes of header (u32 length with bit 31 busy and bit 30 discarded, u32 page offset)
and its data padded to 8. Taking and giving back are two steps: `take` copies and moves this reader's own cursor,
`release` hands the space back to the kernel. A reader that dies in between finds its records again.
Must never wait, log or look at a record's meaning. Neighbours: `maps`, `sensors.node.rings`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from types import TracebackType
from typing import Final, Self

from kernel import bpf
from kernel.maps import Map
from schemas.errors import KernelError
from schemas.kernel import OCCURRENCE, RING_HEADER

RINGBUF: Final = 27
"""BPF_MAP_TYPE_RINGBUF."""
BUSY: Final = 0x80
DISCARDED: Final = 0x40
_LENGTH: Final = struct.Struct("=I").unpack_from
_LENGTH_BITS: Final = (1 << 30) - 1
# Byte of the u32 header that carries the two flags.
_TOP: Final = 3 if struct.pack("=I", 1)[0] else 0
_LOW: Final = 3 - _TOP

PAGE: Final = mmap.PAGESIZE
TAKE_BYTES: Final = 1 << 19
"""No take hands out more, whatever its limit."""
STEP: Final = 1 << 17
WINDOW: Final = STEP + TAKE_BYTES
"""Bytes of data mapped at once, moved in steps: what RSS pays per ring. From any place in the first step of a window a take's worth is
mapped. Mapping it anew costs about 10 us."""
_RECORD_MOST: Final = 1 << 16


class Ring:
    """One consumer of one ring. `size`: bytes of its data area. `emptied`: the last `take_table` left no committed record behind, whether
    or not all it took was handed out. Not for two threads, and only one consumer per ring."""

    def __init__(
        self, consumer: mmap.mmap, producer: mmap.mmap, size: int, target: str = "ring", fd: int | None = None
    ) -> None:
        """`producer`: the position's page, followed by both images of the data when there is no `fd` to map them from."""
        if size <= 0 or size & (size - 1) or (fd is None and len(producer) < PAGE + 2 * size):
            raise ValueError(f"expected a ring of a power of two bytes mapped twice, got {size} in {len(producer)}")
        self.size = size
        self.target = target
        self.discarded = 0
        self.emptied = True
        self._fd = fd
        # Data from `_base` on lies at `_memory[_shift:]`; without an fd all of it, for ever.
        self._memory, self._shift = producer, PAGE
        self._base, self._end = (0, 2 * size) if fd is None else (0, 0)
        self._maps = (consumer, producer)
        self._consumer = memoryview(consumer)[:8].cast("Q")
        self._producer = memoryview(producer)[:8].cast("Q")
        self._cursor = self._consumer[0]
        self._fence = threading.Lock()

    @classmethod
    def open(cls, path: str) -> Self:
        """The ring pinned at `path`. KernelError when there is none, or when it is another kind of map."""
        with Map.open(path) as found:
            return cls.of(found.fd, path)

    @classmethod
    def of(cls, fd: int, target: str = "ring") -> Self:
        """The ring behind `fd`, which stays the caller's and may be closed."""
        info = bpf.map_info(fd, target)
        if info.type != RINGBUF:
            raise KernelError(
                f"expected a ring buffer (map type {RINGBUF}) at `{target}`, got map type {info.type}; load the sensor again",
                operation="mmap",
                target=target,
            )
        size = info.max_entries
        try:
            consumer = mmap.mmap(fd, PAGE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            producer = mmap.mmap(fd, PAGE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=PAGE)
            return cls(consumer, producer, size, target, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as error:
            raise bpf.refused("mmap", target, error.errno or 0) from error

    @property
    def fd(self) -> int:
        """Readable for epoll when a producer calls its reader; -1 for a ring that no kernel feeds."""
        return -1 if self._fd is None else self._fd

    @property
    def waiting(self) -> int:
        """Bytes the producers have filled and this reader has not taken, busy records included."""
        return self._producer[0] - self._cursor

    @property
    def empty(self) -> bool:
        """Nothing waits. Whoever has just said that he sleeps asks this: what came before he said so is seen here."""
        self._order()
        return self._producer[0] == self._cursor

    @property
    def held(self) -> int:
        """Bytes the kernel cannot reuse yet: waiting, or taken and not released."""
        return self._producer[0] - self._consumer[0]

    @property
    def position(self) -> int:
        """Where this reader stands: what `release` takes. Bytes since the ring was made."""
        return self._cursor

    def take_table(self, limit: int, length: int = OCCURRENCE.size) -> bytes:
        """Committed records of one size as they lie, headers included, oldest first; at most `limit` and `TAKE_BYTES`
        bytes, b"" if none.

        Stops at the first busy record. Discarded rows are left out and counted in `discarded`. KernelError when a record
        of another size lies in between: the ring belongs to another build.
        """
        stride = length + RING_HEADER
        # The producer's position is read strictly before the headers, the headers strictly before the data.
        most = min(limit, TAKE_BYTES, self.size) // stride
        count = min((self._producer[0] - self._cursor) // stride, most)
        self.emptied = count < most
        if count <= 0:
            return b""
        self._order()
        memory, start = self._view(self._cursor & (self.size - 1))
        flags = memory[start + _TOP : start + count * stride : stride]
        if flags.count(0) != count:
            busy = _first_busy(flags)
            if busy >= 0:
                self.emptied = True
                count, flags = busy, flags[:busy]
            if not count:
                return b""
        self._order()
        chunk = memory[start : start + count * stride]
        if chunk[_LOW::stride].count(length & 0xFF) != count:
            raise KernelError(
                f"expected records of {length} bytes in ring `{self.target}` at {self._cursor}, got another size; unload and load the sensor again",
                operation="take",
                target=self.target,
            )
        self._cursor += count * stride
        if flags.count(0) != count:
            kept = [chunk[i * stride : (i + 1) * stride] for i, flag in enumerate(flags) if not flag & DISCARDED]
            self.discarded += count - len(kept)
            chunk = b"".join(kept)
        return chunk

    def take_records(self, limit: int) -> list[bytes]:
        """Committed records of any size, without headers; stops at the first busy one or after `limit` bytes (at most
        `TAKE_BYTES`): call again until nothing comes."""
        records: list[bytes] = []
        memory, start = self._view(self._cursor & (self.size - 1))
        # From the cursor on, so that a record never leaves the window or the second image.
        at, end = start, start + min(self._producer[0] - self._cursor, limit, TAKE_BYTES - _RECORD_MOST)
        self._order()
        while at < end:
            (header,) = _LENGTH(memory, at)
            if header >> 31:
                break
            size = header & _LENGTH_BITS
            if header >> 30:
                self.discarded += 1
            else:
                self._order()
                records.append(memory[at + RING_HEADER : at + RING_HEADER + size])
            at += RING_HEADER + (size + 7) // 8 * 8
        self._cursor += at - start
        return records

    def release(self, position: int | None = None) -> None:
        """Hand the space up to `position` (None: all that was taken) back to the kernel. Never moves backwards."""
        target = self._cursor if position is None else position
        if target > self._consumer[0]:
            # After the copies: the producers write over this space from the store on.
            self._order()
            self._consumer[0] = target

    def close(self) -> None:
        """Unmap; the ring and what lies in it stay while it is pinned."""
        self._consumer.release()
        self._producer.release()
        for mapping in (*self._maps, self._memory):
            mapping.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _view(self, start: int) -> tuple[mmap.mmap, int]:
        # The mapping that holds `TAKE_BYTES` from data offset `start` on (or all there is), and where in it.
        if start < self._base or start + min(TAKE_BYTES, 2 * self.size - start) > self._end:
            assert self._fd is not None
            base = start - start % STEP
            length = min(WINDOW, 2 * self.size - base)
            if self._memory is not self._maps[1]:
                self._memory.close()
            # Data begins two pages into the file: after the consumer's and the producer's position.
            self._memory = mmap.mmap(
                self._fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=2 * PAGE + base
            )
            self._shift, self._base, self._end = 0, base, base + length
        return self._memory, self._shift + start - self._base

    def _order(self) -> None:
        # x86 keeps loads in order by itself; elsewhere an uncontended lock is the fence that pure Python has (50 ns).
        with self._fence:
            pass


def _first_busy(flags: bytes) -> int:
    # -1 when there is none. Busy with bit 30 set as well cannot happen: discarding clears busy.
    return flags.find(BUSY)


def anonymous(size: int) -> tuple[mmap.mmap, mmap.mmap]:
    """Consumer and producer memory of a ring that no kernel feeds: for replayed and property-tested rings. The data area
    is plain memory, so whoever writes must write both images."""
    return mmap.mmap(-1, PAGE), mmap.mmap(-1, PAGE + 2 * size)
