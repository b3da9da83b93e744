# SPDX-License-Identifier: Apache-2.0
"""Bytes that have to be gone through out of order, in a temporary file without a name: nothing is left of it, however the run ends."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from hauberk.images.streams import ImageLimits
from schemas.errors import SettingsError

_SPARE: Final = 64 << 20
"""Bytes of the disk that are left to others."""
_ASKED: Final = 16 << 20
"""Bytes after which the disk is asked again."""


@contextmanager
def spooled(pieces: Iterable[bytes], origin: str, limits: ImageLimits) -> Iterator[BinaryIO]:
    """The file, at its beginning. SettingsError when it would be too large for an image or for the disk."""
    with tempfile.TemporaryFile(prefix="hauberk-") as file:
        got, asked = 0, _ASKED
        for piece in pieces:
            got += len(piece)
            if got > limits.plain_bytes:
                raise SettingsError(f"expected an image of at most {limits.plain_bytes:,} bytes of {origin}, got more")
            if got >= asked:
                asked = got + _ASKED
                if shutil.disk_usage(tempfile.gettempdir()).free < _SPARE:
                    raise SettingsError(
                        f"expected room for the image of {origin} in `{tempfile.gettempdir()}`, the disk is full; set TMPDIR"
                    )
            file.write(piece)
        file.seek(0)
        yield file
