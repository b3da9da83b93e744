# SPDX-License-Identifier: Apache-2.0
"""A blob as plain bytes, in order and within bounds: gzip, Zstandard or neither, its digest compared at the end.

What is refused is refused before it is held: more bytes than an image may have, more than it could honestly shrink by.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec

from hauberk.images.zstd import ZstdReader
from schemas.errors import SettingsError

PIECE: Final = 1 << 16
_BOMB_BYTES: Final = 64 << 20
_BOMB_RATIO: Final = 200
"""Layers shrink by 2 to 5, of zeros alone by 1000."""


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one image: plain bytes of all layers, names and bytes of them, layers; bytes of a manifest or configuration; images of an archive."""

    plain_bytes: int = 16 << 30
    names: int = 1_000_000
    name_bytes: int = 256 << 20
    layers: int = 512
    json_bytes: int = 8 << 20
    images: int = 256


class ByteSource(Protocol):
    """Bytes in pieces: a file, a member of an archive, an answer of a registry."""

    def read(self, size: int, /) -> bytes: ...


def is_gzip(begin: bytes) -> bool:
    """By the first bytes (RFC 1952)."""
    return begin.startswith(b"\x1f\x8b")


def is_packed(begin: bytes) -> bool:
    """Whether they are gzip's or Zstandard's (RFC 8878, skippable frames among them)."""
    return is_gzip(begin) or begin.startswith(b"\x28\xb5\x2f\xfd") or begin[1:4] == b"\x2a\x4d\x18"


class PlainStream:
    """`read` gives plain bytes. `spend(n)` is told how many and refuses when they are too many."""

    def __init__(self, source: ByteSource, name: str, spend: Callable[[int], None], digest: str = "") -> None:
        self._source, self._name, self._spend, self._digest = source, name, spend, digest
        self._hash = hashlib.sha256()
        self._packed = self._plain = 0
        self._pieces = self._open()
        self._held = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        parts, got = [self._held], len(self._held)
        while got < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            parts.append(piece)
            got += len(piece)
        whole = b"".join(parts)
        self._held = whole[size:]
        return whole[:size]

    def finish(self) -> None:
        """Reads what is left, and compares the digest. SettingsError when it is another."""
        while self.read(1 << 20):
            pass
        while self._take():
            pass
        found = f"sha256:{self._hash.hexdigest()}"
        if self._digest and found != self._digest:
            raise SettingsError(
                f"expected {self._name} to have the digest {self._digest}, it has {found}; it is damaged or not what it says"
            )

    def _take(self) -> bytes:
        piece = self._source.read(PIECE)
        self._hash.update(piece)
        self._packed += len(piece)
        return piece

    def _count(self, piece: bytes) -> bytes:
        self._plain += len(piece)
        self._spend(len(piece))
        if self._plain > _BOMB_BYTES and self._plain > _BOMB_RATIO * self._packed:
            raise SettingsError(
                f"expected {self._name} to be a layer, it grows to more than {_BOMB_RATIO} times its {self._packed:,} bytes; an archive that is "
                "made to fill a machine is not read"
            )
        return piece

    def _open(self) -> Iterator[bytes]:
        first = self._take()
        try:
            if is_gzip(first):
                yield from map(self._count, self._gzip(first))
            elif is_packed(first):
                yield from map(self._count, self._zstd(first))
            else:
                while first:
                    yield self._count(first)
                    first = self._take()
        except (zlib.error, EOFError, ValueError) as error:
            raise SettingsError(
                f"expected {self._name} to be a whole gzip, Zstandard or plain archive, got: {error}"
            ) from error

    def _gzip(self, data: bytes) -> Iterator[bytes]:
        while data:
            reader = zlib.decompressobj(wbits=31)
            while not reader.eof:
                piece = reader.decompress(data, 1 << 18)
                if piece:
                    yield piece
                data = reader.unconsumed_tail
                if not data and not reader.eof:
                    data = self._take()
                    if not data:
                        raise EOFError("it ends too early")
            # Members of gzip may follow one another (RFC 1952); zeros after them are padding.
            data = reader.unused_data.lstrip(b"\0") or self._take().lstrip(b"\0")

    def _zstd(self, data: bytes) -> Iterator[bytes]:
        reader = ZstdReader()
        try:
            while data:
                yield from reader.pieces(data)
                data = self._take()
            reader.finish()
        finally:
            reader.close()
