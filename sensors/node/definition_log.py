# SPDX-License-Identifier: Apache-2.0
"""Definitions on disk, so that an agent killed at any moment knows again what the kernel has told it.

The kernel announces an id once; rows that lay in the ring when the agent died would otherwise name ids nobody can
explain. Records are appended before the definitions ring is released and rewritten when the memory turns over, so the
file stays near the memory's size. No fsync: it must survive the process, not the machine, whose boot starts new ids.

    "HBRKDEF\\n"  32 bytes of identity (boot and ring)   u32 size  record ...

A file of another boot or another load of the programs is started afresh. Neighbours: `definitions`, `rings`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from typing import Final

from schemas.errors import SettingsError

MAGIC: Final = b"HBRKDEF\n"
_SIZE: Final = struct.Struct("<I")
_START: Final = len(MAGIC) + 32
_LARGEST: Final = 1 << 16


class DefinitionLog:
    """One file, one writer. `identity`: anything that changes when ids lose their meaning. SettingsError when `path` cannot
    be written. `known` is False when there was nothing to read back: then the kernel must be made to announce again."""

    def __init__(self, path: str, identity: str) -> None:
        self.path = path
        self.size = 0
        self._head = MAGIC + hashlib.sha256(identity.encode()).digest()
        self._records: list[bytes] = []
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            self.known = self._read()
            if not self.known:
                self._start(())
            else:
                os.truncate(path, self.size)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise SettingsError(
                f"expected a writable file for definitions, got {error.strerror} at {path}; set `state_dir` to a directory this process may write"
            ) from error

    def read(self) -> list[bytes]:
        """The records found at opening, once."""
        records, self._records = self._records, []
        return records

    def append(self, records: Iterable[bytes]) -> None:
        """Write records at the end. OSError (a full disk) passes through: the agent goes on and counts it."""
        data = b"".join([_SIZE.pack(len(record)) + record for record in records])
        os.write(self._fd, data)
        self.size += len(data)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace the file by these records."""
        self._start(records)
        old, self._fd = self._fd, os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.close(old)

    def close(self) -> None:
        """Close; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _start(self, records: Iterable[bytes]) -> None:
        fresh = self.path + ".new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(self._head)
            for record in records:
                file.write(_SIZE.pack(len(record)) + record)
            self.size = file.tell()
        os.replace(fresh, self.path)

    def _read(self) -> bool:
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return False
        if data[:_START] != self._head:
            return False
        at = _START
        while at + _SIZE.size <= len(data):
            (length,) = _SIZE.unpack_from(data, at)
            end = at + _SIZE.size + length
            if length > _LARGEST or end > len(data):
                break
            self._records.append(data[at + _SIZE.size : end])
            at = end
        # A torn tail (killed in the middle of a write) is cut; the ring still holds what it would have said.
        self.size = at
        return True
