# SPDX-License-Identifier: Apache-2.0
"""Images in files: an OCI layout (a directory, or a tar of one), and what `docker save` writes (which since 25 is both)."""

from __future__ import annotations

import platform
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import msgspec

from hauberk.images.image import (
    ARCHITECTURE,
    ImageConfiguration,
    ImageManifest,
    ReadImage,
    described,
    from_manifest,
    read_json,
)  # fmt: skip
from hauberk.images.layers import BoundedMember, LayerReader
from hauberk.images.spool import spooled
from hauberk.images.streams import PIECE, ByteSource, ImageLimits, PlainStream, is_packed
from schemas.errors import SettingsError


def architecture() -> str:
    """Of this machine, as Go calls it."""
    return ARCHITECTURE.get(platform.machine(), platform.machine())


def read_path(path: Path, wanted: str = "", limits: ImageLimits = ImageLimits()) -> list[ReadImage]:  # noqa: B008
    """Every image of a layout or an archive. SettingsError in one sentence for anything else."""
    wanted = wanted or architecture()
    try:
        if path.is_dir():
            return list(_layout(_Directory(path), str(path), wanted, limits))
        with path.open("rb") as file:
            return read_file(file, str(path), wanted, limits)
    except OSError as error:
        raise SettingsError(
            f"expected an image archive or an OCI layout at `{path}`, got: {error.strerror or error}"
        ) from error


def read_file(file: BinaryIO, origin: str, wanted: str = "", limits: ImageLimits = ImageLimits()) -> list[ReadImage]:  # noqa: B008
    """Every image of an archive, packed with gzip or Zstandard or not. SettingsError in one sentence for anything else; OSError of
    the file."""
    if is_packed(file.peek(4) if isinstance(file, BufferedReader) else b""):
        plain = PlainStream(file, f"`{origin}`", lambda count: None)
        with spooled(iter(lambda: plain.read(PIECE), b""), f"`{origin}`", limits) as unpacked:
            return _read_tar(unpacked, origin, wanted, limits)
    return _read_tar(file, origin, wanted, limits)


def _read_tar(file: BinaryIO, origin: str, wanted: str, limits: ImageLimits) -> list[ReadImage]:
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedMember) as archive:
            files = _Archive(archive, origin, limits)
            if "manifest.json" in files.members:
                return list(_saved(files, origin, limits))
            return list(_layout(files, origin, wanted or architecture(), limits))
    except tarfile.TarError as error:
        raise SettingsError(
            f"expected an image archive or an OCI layout at `{origin}`, got a file that is neither: {error}"
        ) from error


class _SavedImage(msgspec.Struct, frozen=True):
    Config: str
    Layers: list[str]
    RepoTags: list[str] | None = None


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def file(self, name: str) -> Iterator[ByteSource]:
        with (self._root / name).open("rb") as file:
            yield file

    @contextmanager
    def open(self, digest: str) -> Iterator[ByteSource]:
        with self.file(f"blobs/sha256/{digest[7:]}") as file:
            yield file


class _Archive:
    def __init__(self, archive: tarfile.TarFile, origin: str, limits: ImageLimits) -> None:
        self._archive, self._origin = archive, origin
        self.members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(archive):
            if count > 10 * limits.layers:
                raise SettingsError(
                    f"expected an image archive at `{origin}`, got an archive of more than {10 * limits.layers} files"
                )
            self.members[member.name.removeprefix("./")] = member

    @contextmanager
    def file(self, name: str) -> Iterator[ByteSource]:
        member = self.members.get(name)
        # What `docker save` wrote twice is a symlink to the first (before 25).
        if member is not None and member.issym():
            parts = [*name.split("/")[:-1], *member.linkname.split("/")]
            while ".." in parts and parts.index(".."):
                at = parts.index("..")
                del parts[at - 1 : at + 1]
            member = self.members.get("/".join(parts))
        held = self._archive.extractfile(member) if member is not None and member.isreg() else None
        if held is None:
            raise SettingsError(f"expected `{name[:120]}` in `{self._origin}`, it has no such file")
        with held:
            yield held

    @contextmanager
    def open(self, digest: str) -> Iterator[ByteSource]:
        with self.file(f"blobs/sha256/{digest[7:]}") as file:
            yield file


def _layout(files: _Directory | _Archive, origin: str, wanted: str, limits: ImageLimits) -> Iterator[ReadImage]:
    with files.file("index.json") as source:
        index = read_json(source, f"index.json of `{origin}`", ImageManifest, limits)
    if not index.manifests:
        raise SettingsError(f"expected images in the OCI layout `{origin}`, its index names none")
    _expect_few(len(index.manifests), origin, limits)
    for entry in index.manifests:
        noted = entry.annotations or {}
        name = noted.get("io.containerd.image.name") or noted.get("org.opencontainers.image.ref.name") or ""
        yield from_manifest(files, ImageManifest(manifests=[entry]), origin, (name,) if name else (), wanted, limits)


def _saved(files: _Archive, origin: str, limits: ImageLimits) -> Iterator[ReadImage]:
    with files.file("manifest.json") as source:
        manifest = read_json(source, f"manifest.json of `{origin}`", list[_SavedImage], limits)
    if not manifest:
        raise SettingsError(f"expected images in `{origin}`, its manifest.json names none")
    _expect_few(len(manifest), origin, limits)
    for entry in manifest:
        with files.file(entry.Config) as source:
            configuration = read_json(source, f"the configuration of `{origin}`", ImageConfiguration, limits)
        reader = LayerReader(limits)
        for name in entry.Layers:
            with files.file(name) as source:
                reader.add(source, f"layer {name[:40]} of `{origin}`")
        yield described(reader.contents(), configuration, origin, tuple(entry.RepoTags or ()))


def _expect_few(count: int, origin: str, limits: ImageLimits) -> None:
    if count > limits.images:
        raise SettingsError(f"expected at most {limits.images} images in `{origin}`, it names {count:,}")
