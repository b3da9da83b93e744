# SPDX-License-Identifier: Apache-2.0
"""A BPF map as Python sees it: bytes under bytes, in batches where the kernel offers them.

Batches are feature-tested on first use (5.6 and later, per map type) and replaced by single calls: 0.3-0.7 us an entry
against 3. Must never keep entries of its own; the kernel's map is the only copy. Neighbours: `bpf` (the calls),
`loader` (who made and pinned the maps), `schemas.kernel` (what the bytes mean).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from kernel import bpf

_ELEMENT: Final = struct.Struct("=IIQQQ")
_BATCH: Final = struct.Struct("=QQQQIIQQ")
BATCH: Final = 1024
"""Entries per batch call: the kernel copies through one allocation, and past this size the gain is gone (measured)."""

_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, 524})
"""What kernels answer to a batch they do not know; 524 is the kernel's internal ENOTSUPP, which leaks out here."""


def possible_cpus() -> int:
    """CPUs the kernel may ever bring up: the number of values in a per-CPU map."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return 1 + max(int(part.rsplit("-", 1)[-1]) for part in file.read().strip().split(","))


class Map:
    """One map by fd. Keys and values are bytes of exactly the map's sizes; a per-CPU value is all CPUs' values in a row,
    each padded to 8. Not for two threads at once. `with Map.open(path) as m` or `close()` gives the fd back."""

    def __init__(self, fd: int, target: str = "") -> None:
        self.fd = fd
        self.info = bpf.map_info(fd, target)
        self.target = target or self.info.name
        self.percpu = self.info.type in bpf.PERCPU_TYPES
        stride = self.info.value_size
        self.value_bytes = (stride + 7) // 8 * 8 * possible_cpus() if self.percpu else stride
        self._key = ctypes.create_string_buffer(max(self.info.key_size, 1))
        self._value = ctypes.create_string_buffer(max(self.value_bytes, 1))
        self._batches = True

    @classmethod
    def open(cls, path: str) -> Self:
        """The map pinned at `path`. KernelError when there is none."""
        return cls(bpf.pinned(path), path)

    def close(self) -> None:
        """Give the fd back; twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, None when there is none."""
        result = self._call(bpf.MAP_LOOKUP, key, None)
        if result == -errno.ENOENT:
            return None
        self._check(bpf.MAP_LOOKUP, result)
        return self._value.raw[: self.value_bytes]

    def put(self, key: bytes, value: bytes, flags: int = bpf.ANY) -> None:
        """Set `key`. `flags`: bpf.ANY, NOEXIST (KernelError EEXIST), EXIST (KernelError ENOENT)."""
        self._check(bpf.MAP_UPDATE, self._call(bpf.MAP_UPDATE, key, value, flags))

    def delete(self, key: bytes) -> bool:
        """Remove `key`; False when it was not there."""
        result = self._call(bpf.MAP_DELETE, key, None)
        if result == -errno.ENOENT:
            return False
        self._check(bpf.MAP_DELETE, result)
        return True

    def keys(self) -> Iterator[bytes]:
        """Every key, by next-key walk. Keys that come or go meanwhile may be seen, missed or repeated."""
        size = self.info.key_size
        following = ctypes.create_string_buffer(size)
        attributes = _ELEMENT.pack(self.fd, 0, 0, ctypes.addressof(following), 0)
        result = bpf.call(bpf.MAP_NEXT_KEY, attributes)
        # At most twice the capacity: a walk over a hash that others empty meanwhile starts again from its first key.
        for _ in range(self.info.max_entries * 2 + 1):
            if result == -errno.ENOENT:
                return
            self._check(bpf.MAP_NEXT_KEY, result)
            key = following.raw
            yield key
            ctypes.memmove(self._key, key, size)
            attributes = _ELEMENT.pack(self.fd, 0, ctypes.addressof(self._key), ctypes.addressof(following), 0)
            result = bpf.call(bpf.MAP_NEXT_KEY, attributes)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every key and value."""
        found = self._read_batches() if self._batches else None
        if found is not None:
            return found
        return [(key, value) for key in list(self.keys()) if (value := self.get(key)) is not None]

    def put_many(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        """Set every pair; how many. KernelError names the first that failed; the ones before it are set."""
        entries = list(pairs)
        for start in range(0, len(entries), BATCH):
            part = entries[start : start + BATCH]
            keys, values = b"".join(k for k, _ in part), b"".join(v for _, v in part)
            self._fits(keys, self.info.key_size * len(part), "keys")
            self._fits(values, self.value_bytes * len(part), "values")
            if not self._batch(bpf.MAP_UPDATE_BATCH, keys, values, len(part)):
                for key, value in part:
                    self.put(key, value)
        return len(entries)

    def put_array(self, first: int, values: bytes) -> None:
        """Set the elements of an array from number `first` on."""
        size, most = self.value_bytes, 1 << 14
        count = len(values) // size
        for start in range(0, count, most):
            many = min(most, count - start)
            keys = struct.pack(f"={many}I", *range(first + start, first + start + many))
            part = values[start * size : (start + many) * size]
            if not self._batch(bpf.MAP_UPDATE_BATCH, keys, part, many):
                for at in range(many):
                    self.put(keys[4 * at : 4 * at + 4], part[at * size : (at + 1) * size])

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove every key; those not there are no error."""
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            joined = b"".join(part)
            self._fits(joined, self.info.key_size * len(part), "keys")
            if not self._batch(bpf.MAP_DELETE_BATCH, joined, b"", len(part)):
                for key in part:
                    self.delete(key)

    def clear(self) -> None:
        """Remove every entry of a hash."""
        self.delete_many(list(self.keys()))

    def sum_u64(self, key: bytes) -> int:
        """The u64 counters under `key`, summed over CPUs; 0 when the key is not there."""
        value = self.get(key)
        return 0 if value is None else sum(memoryview(value).cast("Q").tolist())

    def _fits(self, data: bytes, size: int, what: str) -> None:
        if len(data) != size:
            raise ValueError(f"expected {size} bytes of {what} for map `{self.target}`, got {len(data)}")

    def _call(self, command: int, key: bytes, value: bytes | None, flags: int = 0) -> int:
        self._fits(key, self.info.key_size, "key")
        ctypes.memmove(self._key, key, len(key))
        if value is not None:
            self._fits(value, self.value_bytes, "value")
            ctypes.memmove(self._value, value, len(value))
        # A delete has no value, and the kernel refuses attributes it does not use.
        place = 0 if command == bpf.MAP_DELETE else ctypes.addressof(self._value)
        return bpf.call(command, _ELEMENT.pack(self.fd, 0, ctypes.addressof(self._key), place, flags))

    def _check(self, command: int, result: int) -> None:
        if result < 0:
            raise bpf.refused(bpf.COMMANDS[command], self.target, -result)

    def _batch(self, command: int, keys: bytes, values: bytes, count: int) -> bool:
        # False: do it one by one. A batch delete stops at the first key that is absent, so the rest is done singly.
        if not self._batches:
            return False
        key_buffer = ctypes.create_string_buffer(keys, len(keys))
        value_buffer = ctypes.create_string_buffer(values, max(len(values), 1))
        result = bpf.call(
            command,
            _BATCH.pack(0, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), count, self.fd, 0, 0),
        )
        if result >= 0:
            return True
        if -result in _UNSUPPORTED:
            self._batches = False
            return False
        if command == bpf.MAP_DELETE_BATCH and -result == errno.ENOENT:
            return False
        raise bpf.refused(bpf.COMMANDS[command], self.target, -result)

    def _read_batches(self) -> list[tuple[bytes, bytes]] | None:
        key_size, value_size = self.info.key_size, self.value_bytes
        count = BATCH
        # The cursor is the map's own: a u32 bucket for hashes, a key for others; 8 bytes hold either.
        cursor = ctypes.create_string_buffer(max(key_size, 8))
        started = 0
        found: list[tuple[bytes, bytes]] = []
        while True:
            keys = ctypes.create_string_buffer(count * key_size)
            values = ctypes.create_string_buffer(count * value_size)
            attributes = bytearray(
                _BATCH.pack(
                    started, ctypes.addressof(cursor), ctypes.addressof(keys), ctypes.addressof(values), count, self.fd, 0, 0
                )
            )  # fmt: skip
            result = bpf.call(bpf.MAP_LOOKUP_BATCH, (ctypes.c_char * _BATCH.size).from_buffer(attributes))
            if result == -errno.ENOSPC:
                # One bucket held more than the batch: the cursor has not moved, so ask again for more.
                count *= 2
                continue
            if result < 0 and -result in _UNSUPPORTED and not found:
                self._batches = False
                return None
            if result < 0 and result != -errno.ENOENT:
                self._check(bpf.MAP_LOOKUP_BATCH, result)
            got = int(struct.unpack_from("=I", attributes, 32)[0])
            raw_keys, raw_values = keys.raw, values.raw
            found += [
                (raw_keys[i * key_size : (i + 1) * key_size], raw_values[i * value_size : (i + 1) * value_size])
                for i in range(got)
            ]
            if result == -errno.ENOENT:
                return found
            started = ctypes.addressof(cursor)
