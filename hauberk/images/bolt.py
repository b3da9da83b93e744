# SPDX-License-Identifier: Apache-2.0
"""A database of bbolt, which containerd keeps its names in: read while its owner writes, without a lock and without a library.

A page that the newest committed meta page leads to is not written to before the commit after the next one. So what was read counts when
no commit came meanwhile; else it is read again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from schemas.errors import SettingsError

_MAGIC: Final = 0xED0CDAED
_VERSION: Final = 2
_HEADER: Final = struct.Struct("=QHHI")
"""Of a page (go.etcd.io/bbolt, internal/common/page.go): number, kind, elements, pages that follow it."""
_META: Final = struct.Struct("=IIIIQQQQQQ")
"""magic, version, page size, flags, root, its sequence, freelist, pages, transaction, checksum."""
_BRANCH: Final = struct.Struct("=IIQ")
_LEAF: Final = struct.Struct("=IIII")
_BUCKET: Final = struct.Struct("=QQ")
_IS_BRANCH: Final = 1
_IS_LEAF: Final = 2
_TRIES: Final = 20
_PAGES_MOST: Final = 1 << 17
"""Pages of one answer: half a gigabyte, where a node's names take a few."""
_T = TypeVar("_T")


class BoltBucket(NamedTuple):
    """`root`: its page; 0 for a small one, whose page is `inline`."""

    root: int
    inline: bytes


class BoltDatabase:
    """One state of an open file."""

    def __init__(self, file: int, size: int) -> None:
        self._file, self._size, self._left = file, size, _PAGES_MOST
        self._page_size = 4096
        self.transaction, root = self._newest()
        self.root = BoltBucket(root, b"")

    def _newest(self) -> tuple[int, int]:
        """(transaction, root page) of the meta page that holds: the first two pages take turns."""
        found: dict[int, tuple[int, int]] = {}
        for place in (0, *(1 << shift for shift in range(9, 17))):
            data = os.pread(self._file, _META.size, place + _HEADER.size)
            if len(data) < _META.size:
                continue
            magic, version, page_size, _, root, _, _, _, transaction, checksum = _META.unpack(data)
            if (magic, version, _fnv(data[:-8])) == (_MAGIC, _VERSION, checksum) and place in (0, page_size):
                found[transaction] = page_size, root
        if not found:
            raise ValueError("it has no page that says where it begins")
        newest = max(found)
        self._page_size, root = found[newest]
        if not 512 <= self._page_size <= 1 << 16:
            raise ValueError(f"its pages have {self._page_size} bytes")
        return newest, root

    def bucket(self, *names: bytes) -> BoltBucket | None:
        """A bucket within buckets; None where one of them is not."""
        at: BoltBucket | None = self.root
        for name in names:
            if at is None:
                return None
            at = next((value for key, value in self.items(at) if key == name and isinstance(value, BoltBucket)), None)
        return at

    def items(self, bucket: BoltBucket) -> Iterator[tuple[bytes, bytes | BoltBucket]]:
        """What is in a bucket, in order. ValueError for what is no such page."""
        waiting: list[int | bytes] = [bucket.inline or bucket.root]
        while waiting:
            one = waiting.pop()
            page = one if isinstance(one, bytes) else self._page(one)
            _, kind, count, _ = _HEADER.unpack_from(page)
            if kind == _IS_BRANCH:
                places = [_BRANCH.unpack_from(page, _HEADER.size + at * _BRANCH.size)[2] for at in range(count)]
                waiting += reversed(places)
            elif kind == _IS_LEAF:
                for at in range(count):
                    yield self._element(page, _HEADER.size + at * _LEAF.size)
            else:
                raise ValueError(f"a page of kind {kind} where there should be names")

    def _element(self, page: bytes, at: int) -> tuple[bytes, bytes | BoltBucket]:
        flags, place, key_size, value_size = _LEAF.unpack_from(page, at)
        begin = at + place
        middle, end = begin + key_size, begin + key_size + value_size
        if end > len(page):
            raise ValueError("a name beyond its page")
        key, value = page[begin:middle], page[middle:end]
        if not flags & 1:
            return key, value
        root, _ = _BUCKET.unpack_from(value)
        return key, BoltBucket(root, b"" if root else value[_BUCKET.size :])

    def _page(self, number: int) -> bytes:
        place = number * self._page_size
        head = os.pread(self._file, _HEADER.size, place) if place < self._size else b""
        if number < 2 or len(head) < _HEADER.size:
            raise ValueError(f"no page {number}")
        own, _, _, more = _HEADER.unpack(head)
        self._left -= 1 + more
        if own != number or self._left < 0:
            raise ValueError(f"page {number} is another, or too many pages")
        return os.pread(self._file, (1 + more) * self._page_size, place)


def ask(path: Path, question: Callable[[BoltDatabase], _T]) -> _T:
    """The answer of one state of the database. SettingsError when it is none, or never still; OSError of the file."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        why = "it is written to all the time"
        for _ in range(_TRIES):
            try:
                database = BoltDatabase(file, os.fstat(file).st_size)
            except ValueError as error:
                why = str(error)
                continue
            try:
                answer = question(database)
            except (ValueError, struct.error) as error:
                # Half of a page of before and half of one of now, or a database that is damaged: the next try tells.
                why = str(error)
                continue
            if BoltDatabase(file, os.fstat(file).st_size).transaction == database.transaction:
                return answer
    finally:
        os.close(file)
    raise SettingsError(f"expected a database of bbolt at `{path}`, got: {why}")


def _fnv(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    made = 0xCBF29CE484222325
    for byte in data:
        made = (made ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return made
