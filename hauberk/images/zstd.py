# SPDX-License-Identifier: Apache-2.0
"""Zstandard, piece by piece: the system's libzstd through ctypes (Python has it from 3.14 on). Memory is bounded by the window that the
library takes, 128 MB by its own default."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from schemas.errors import SettingsError

_OUT = 1 << 17


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer (zstd.h)."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


@cache
def _library() -> Any:
    try:
        found = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise SettingsError(
            "expected libzstd.so.1 for a layer in Zstandard, there is none; install the package libzstd1 or zstd"
        ) from error
    found.ZSTD_createDStream.restype = ctypes.c_void_p
    found.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    found.ZSTD_decompressStream.restype = ctypes.c_size_t
    found.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    found.ZSTD_isError.argtypes = [ctypes.c_size_t]
    found.ZSTD_getErrorName.restype = ctypes.c_char_p
    found.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    return found


class ZstdReader:
    """Compressed pieces in, plain pieces out. ValueError for what is no Zstandard; EOFError at `finish` when a frame is not whole."""

    def __init__(self) -> None:
        self._lib = _library()
        self._stream = ctypes.c_void_p(self._lib.ZSTD_createDStream())
        self._out = ctypes.create_string_buffer(_OUT)
        self._left = 0

    def pieces(self, data: bytes) -> list[bytes]:
        """What `data` adds. At most 128 KB more than was asked for is held."""
        held = ctypes.create_string_buffer(data, len(data))
        source = _Buffer(ctypes.cast(held, ctypes.c_void_p), len(data), 0)
        made: list[bytes] = []
        while True:
            target = _Buffer(ctypes.cast(self._out, ctypes.c_void_p), _OUT, 0)
            self._left = self._lib.ZSTD_decompressStream(self._stream, ctypes.byref(target), ctypes.byref(source))
            if self._lib.ZSTD_isError(self._left):
                raise ValueError(f"no Zstandard: {self._lib.ZSTD_getErrorName(self._left).decode()}")
            if target.pos:
                made.append(self._out.raw[: target.pos])
            if source.pos == source.size and target.pos < _OUT:
                return made

    def finish(self) -> None:
        """After the last piece."""
        if self._left:
            raise EOFError("a Zstandard frame is not whole")

    def close(self) -> None:
        """Lets go of the library's memory."""
        if self._stream:
            self._lib.ZSTD_freeDStream(self._stream)
            self._stream = ctypes.c_void_p()
