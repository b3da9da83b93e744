# SPDX-License-Identifier: Apache-2.0
"""A raw stream in a file: frames as they were published and the identities they need, to be replayed without root.

    "HBRKREC\\n"  u16 version  u16 0  u32 size  u32 crc32   header, JSON (kernel, date, command, node)
    "HBLK" u8 kind  u8 codec  u16 0  u32 size  u32 raw size  u32 crc32 of payload  u32 crc32 of the 20 bytes before   payload
    ...

All numbers are little-endian. A block's payload is zlib of msgpack: a list of [Unix ns, key, value]. Blocks stand for themselves, so a file
is appended to, cut short by a crash, or damaged in the middle without losing the rest. Must never hold a recording in
memory. Neighbours: `replay` (a source made of this), `docs/recordings.md`.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgspec

from schemas.decoding import Nanoseconds, decoder
from schemas.errors import DecodeError, Incompatible

MAGIC: Final = b"HBRKREC\n"
VERSION: Final = 1
MARK: Final = b"HBLK"
_START: Final = struct.Struct("<8sHHII")
_BLOCK: Final = struct.Struct("<4sBBHIII")
_CRC: Final = struct.Struct("<I")
_HEAD: Final = _BLOCK.size + _CRC.size
BLOCK_BYTES: Final = 256 * 1024
"""A block is written when this much waits: large enough for zlib, small enough to lose little to a torn tail."""
LARGEST: Final = 64 * 1024 * 1024
"""No block is larger, packed or unpacked: a damaged size must not make the reader allocate the machine."""


class BlockKind(IntEnum):
    """What a block's entries are: values of `events.raw.v1`, or keys and values of `inventory.v1`."""

    FRAMES = 1
    INVENTORY = 2


class RecordedEntry(msgspec.Struct, frozen=True, gc=False):
    """One record: when (Unix ns), its key and value (None: a tombstone)."""

    kind: BlockKind
    time_ns: int
    key: bytes
    value: bytes | None


_pack = msgspec.msgpack.Encoder().encode
_unpack = decoder(list[tuple[Nanoseconds, bytes, bytes | None]], "the entries of a block")
_header = decoder(dict[str, Any], "the header", msgspec.json)


class RecordingWriter:
    """Writes a recording, or goes on with one. `with Writer(path, {...}) as recording` flushes at the end.

    A new file is readable by its owner alone. An existing one is continued: its header stays, a torn tail is cut off (`cut` says how many bytes). DecodeError when the
    file is something else, Incompatible when a newer build wrote it. OSError from the filesystem passes through.
    """

    def __init__(self, path: str, header: dict[str, Any] | None = None) -> None:
        self.path = path
        self.entries = 0
        self.cut = 0
        self._waiting: list[tuple[int, bytes, bytes | None]] = []
        self._kind = BlockKind.FRAMES
        self._size = 0
        if os.path.exists(path) and os.path.getsize(path):
            self._cut_tail()
            self._file: BinaryIO = open(path, "ab")  # noqa: SIM115
        else:
            # It holds arguments and addresses of the machine: its owner's alone.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._file = open(fd, "wb")  # noqa: SIM115
            text = json.dumps(header or {}, separators=(",", ":")).encode()
            self._file.write(_START.pack(MAGIC, VERSION, 0, len(text), zlib.crc32(text)) + text)

    def add(self, kind: BlockKind, time_ns: int, key: bytes, value: bytes | None) -> None:
        """Append one entry; it reaches the file with its block, at `flush` or `close` at the latest."""
        if kind is not self._kind:
            self.flush()
            self._kind = kind
        self._waiting.append((time_ns, key, value))
        self._size += len(key) + len(value or b"")
        self.entries += 1
        if self._size >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one block."""
        if self._waiting:
            raw = _pack(self._waiting)
            payload = zlib.compress(raw, 6)
            head = _BLOCK.pack(MARK, self._kind, 1, 0, len(payload), len(raw), zlib.crc32(payload))
            self._file.write(head + _CRC.pack(zlib.crc32(head)) + payload)
            self._waiting = []
            self._size = 0
        self._file.flush()

    def close(self) -> None:
        """Flush and close; twice is once."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _cut_tail(self) -> None:
        with RecordingReader(self.path) as reader:
            for _ in reader.blocks():
                pass
            whole, self.cut = reader.whole, reader.truncated
        if self.cut:
            os.truncate(self.path, whole)


class RecordingReader:
    """Reads a recording once, front to back. `header`: the JSON. After the last entry: `truncated` (bytes of a torn tail),
    `skipped` (damaged blocks left out, only with `skip_damaged`), `whole` (bytes up to the last good block).

    Raises DecodeError when it is no recording or, without `skip_damaged`, at the first damaged block, naming its offset.
    """

    def __init__(self, path: str, *, skip_damaged: bool = False) -> None:
        self.path = path
        self.skipped = 0
        self.truncated = 0
        self._skip = skip_damaged
        # A FIFO without a writer must not hold up the open; a regular file does not care.
        self._file: BinaryIO = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise DecodeError(f"expected a recording in a file, got a pipe or a device at `{path}`; name a file")
            self.header: dict[str, Any] = self._read_header()
        except BaseException:
            self._file.close()
            raise
        self.whole = self._file.tell()

    def __iter__(self) -> Iterator[RecordedEntry]:
        for kind, raw in self.blocks():
            for time_ns, key, value in raw:
                yield RecordedEntry(kind, time_ns, key, value)

    def blocks(self) -> Iterator[tuple[BlockKind, list[tuple[int, bytes, bytes | None]]]]:
        """(kind, entries) of each block."""
        size = os.fstat(self._file.fileno()).st_size
        while True:
            at = self._file.tell()
            head = self._file.read(_HEAD)
            if not head:
                return
            if len(head) < _HEAD:
                self.truncated = size - at
                return
            mark, kind, codec, _, length, raw_size, crc = _BLOCK.unpack_from(head)
            if zlib.crc32(head[: _BLOCK.size]) != _CRC.unpack_from(head, _BLOCK.size)[0] or mark != MARK:
                if not self._damaged(at, "a block header", "its checksum does not match"):
                    return
                continue
            if length > LARGEST or raw_size > LARGEST or codec != 1 or kind not in BlockKind.__members__.values():
                if kind not in BlockKind.__members__.values() or codec != 1:
                    # A later build may write kinds this one does not know: their size is still good.
                    self._file.seek(length, os.SEEK_CUR)
                    self.skipped += 1
                    continue
                if not self._damaged(at, f"a block of at most {LARGEST} bytes", f"{max(length, raw_size)}"):
                    return
                continue
            if at + _HEAD + length > size:
                self.truncated = size - at
                return
            payload = self._file.read(length)
            entries = self._open(payload, raw_size, crc)
            if isinstance(entries, str):
                if self._skip:
                    self.skipped += 1
                    continue
                raise self._error(at, f"{length} bytes of block payload", entries)
            self.whole = self._file.tell()
            yield BlockKind(kind), entries

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read_header(self) -> dict[str, Any]:
        start = self._file.read(_START.size)
        if len(start) < _START.size or not start.startswith(MAGIC):
            text = start[:8].decode("ascii", "replace").strip()
            found = (
                "an empty file"
                if not start
                else f"{len(start)} bytes of one that was cut short"
                if start.startswith(MAGIC)
                else f"`{text}`"
                if text.isprintable() and text.isascii()
                else "binary data"
            )
            raise DecodeError(
                f"expected a recording (`{MAGIC[:-1].decode()}` at offset 0), got {found} in `{self.path}`; "
                "name a recording; to make one, name a file that does not exist yet"
            )
        _, version, _, length, crc = _START.unpack(start)
        if version > VERSION:
            raise Incompatible(
                f"recording version {version} in {self.path} is newer than {VERSION}, the newest this build reads; upgrade hauberk"
            )
        json_text = self._file.read(min(length, LARGEST))
        if len(json_text) != length or zlib.crc32(json_text) != crc:
            raise self._error(_START.size, f"a JSON header of {length} bytes", "its checksum does not match", "")
        try:
            return _header(json_text)
        except DecodeError as error:
            raise self._error(_START.size, f"a JSON header of {length} bytes", str(error), "") from error

    def _open(self, payload: bytes, raw_size: int, crc: int) -> list[tuple[int, bytes, bytes | None]] | str:
        # The entries, or what is wrong.
        if zlib.crc32(payload) != crc:
            return "its checksum does not match"
        try:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(payload, raw_size)
            if len(raw) != raw_size or unpacker.decompress(unpacker.unconsumed_tail, 1):
                return f"it does not unpack to {raw_size} bytes"
            return _unpack(raw)
        except (zlib.error, DecodeError) as error:
            return str(error)

    def _damaged(self, at: int, expected: str, got: str) -> bool:
        # Whether reading goes on: the size cannot be trusted, so look for the next mark.
        if not self._skip:
            raise self._error(at, expected, got)
        self.skipped += 1
        offset = at + 1
        carry = b""
        self._file.seek(offset)
        while block := self._file.read(1 << 16):
            found = (carry + block).find(MARK)
            if found >= 0:
                self._file.seek(offset - len(carry) + found)
                return True
            carry = block[-len(MARK) + 1 :]
            offset += len(block)
        return False

    def _error(self, at: int, expected: str, got: str, hint: str = "; `--skip-damaged` plays the rest") -> DecodeError:
        return DecodeError(f"expected {expected} at offset {at} of {self.path}, got damage: {got}{hint}")
