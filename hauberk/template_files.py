# SPDX-License-Identifier: Apache-2.0
"""Texts of templates for `hauberk recommend update`: of a file, of a directory and what is below it, of a tar or a zip archive.

Nothing is unpacked: texts are read in memory, within bounds. A name that would leave the archive is refused all the same: who packed it meant
something else than templates.
"""

from __future__ import annotations

import bz2
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from hauberk.images.layers import BoundedMember
from hauberk.images.streams import PlainStream
from schemas.errors import SettingsError

_MOST: Final = 4 << 20
"""Bytes of one text; the set that comes with Hauberk has 60 KB."""
_WHOLE_MOST: Final = 64 << 20
"""Bytes of an archive, packed and plain."""
_FILES: Final = 1000
_ENDINGS: Final = (".yaml", ".yml")


def template_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, text) of each, in order. SettingsError for what is none, or is too much."""
    try:
        if path.is_dir():
            yield from _below(path)
            return
        with path.open("rb") as file:
            begin = file.peek(6)
            if begin.startswith(b"PK"):
                yield from _of_zip(file, path)
            elif begin.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")) or tarfile.is_tarfile(path):
                yield from _of_tar(file, begin, path)
            else:
                yield str(path), _bounded(file, str(path))
    except (
        OSError,
        EOFError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        RuntimeError,
        ValueError,
    ) as error:
        raise SettingsError(f"expected templates at `{path}`, got: {error}") from error


def _below(path: Path) -> Iterator[tuple[str, bytes]]:
    files = sorted(one for one in path.rglob("*") if one.suffix in _ENDINGS and one.is_file())
    if len(files) > _FILES:
        raise SettingsError(f"expected at most {_FILES} files of templates below `{path}`, got {len(files)}")
    for one in files:
        with one.open("rb") as file:
            yield str(one), _bounded(file, str(one))


def _of_tar(file: BinaryIO, begin: bytes, path: Path) -> Iterator[tuple[str, bytes]]:
    spent = 0

    def spend(count: int) -> None:
        nonlocal spent
        spent += count
        if spent > _WHOLE_MOST:
            raise SettingsError(f"expected at most {_WHOLE_MOST:,} bytes of templates in `{path}`, got more")

    with ExitStack() as stack:
        packed: IO[bytes] = file
        if begin.startswith(b"BZh"):
            packed = stack.enter_context(bz2.open(file))
        elif begin.startswith(b"\xfd7zXZ"):
            packed = stack.enter_context(lzma.open(file))
        stream = PlainStream(packed, f"`{path}`", spend)
        plain = cast("IO[bytes]", stream)
        archive = stack.enter_context(tarfile.open(fileobj=plain, mode="r|", tarinfo=BoundedMember, errorlevel=1))
        for number, member in enumerate(archive):
            _expect(number, member.name, path)
            if member.isreg() and member.name.endswith(_ENDINGS):
                held = archive.extractfile(member)
                if held is not None:
                    yield f"{path}: {member.name}", _bounded(held, member.name)


def _of_zip(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    if path.stat().st_size > _WHOLE_MOST:
        raise SettingsError(f"expected at most {_WHOLE_MOST:,} bytes of templates in `{path}`, got more")
    with zipfile.ZipFile(file) as archive:
        for number, member in enumerate(archive.infolist()):
            _expect(number, member.filename, path)
            if not member.is_dir() and member.filename.endswith(_ENDINGS):
                with archive.open(member) as held:
                    yield f"{path}: {member.filename}", _bounded(held, member.filename)


def _expect(number: int, name: str, path: Path) -> None:
    if number >= _FILES:
        raise SettingsError(f"expected at most {_FILES} files in `{path}`, got more")
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise SettingsError(f"expected names inside of the archive `{path}`, got `{name[:200]}`")


def _bounded(file: IO[bytes], name: str) -> bytes:
    text = file.read(_MOST + 1)
    if len(text) > _MOST:
        raise SettingsError(f"expected at most {_MOST:,} bytes in `{name[:200]}`, got more")
    return text
