# SPDX-License-Identifier: Apache-2.0
"""Layers of an image, lowest first -> the names that a container sees: whiteouts, symlinks, hard links, replaced directories.

Nothing is extracted. A name that leaves the image or is too long is refused: no builder makes them. A device is a name that no program has.
"""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, Final, cast

from hauberk.images.streams import ByteSource, ImageLimits, PlainStream
from policy.recommend.contents import EntryKind, ImageContents, ImageEntry, PathSteps, os_release
from schemas.errors import SettingsError

TEXT_MOST: Final = 1 << 16
"""Bytes of an os-release(5)."""
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")
_PATH_MOST: Final = 4096
"""PATH_MAX."""
DEPTH_MOST: Final = 256
"""Directories in one another; by feel, no builder makes a tenth."""
_HEADER_MOST: Final = 1 << 20
"""Bytes of an extended header: names and attributes, which the reader holds whole."""


class BoundedMember(tarfile.TarInfo):
    """A member whose extended headers are not of any length."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if self.type in extended and self.size > _HEADER_MOST:
            raise SettingsError(
                f"expected a header of at most {_HEADER_MOST:,} bytes in a layer, got one of {self.size:,}"
            )
        return super()._proc_member(tarfile_)  # type: ignore[misc, no-any-return]


class LayerNames:
    """What one layer says: names that it `added`, lower ones that it `removed`, directories of which it `emptied` what is below, and
    the `texts` of os-release(5)."""

    def __init__(self) -> None:
        self.added: dict[str, ImageEntry] = {}
        self.removed: set[str] = set()
        self.emptied: set[str] = set()
        self.texts: dict[str, str] = {}


class LayerReader:
    """`add` each layer, or `begin` and `merge` one that lies unpacked; then `contents`."""

    def __init__(self, limits: ImageLimits = ImageLimits()) -> None:  # noqa: B008
        self._limits = limits
        self._spent = self._layers = self._named = 0
        self._steps = PathSteps()
        self._entries: dict[str, ImageEntry] = {}
        self._texts: dict[str, str] = {}

    def add(self, source: ByteSource, name: str, digest: str = "") -> None:
        """One layer. SettingsError for what is none or is not to be read."""
        layer = self.begin()
        stream = PlainStream(source, name, self._spend, digest)
        try:
            with tarfile.open(
                fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=BoundedMember, errorlevel=1
            ) as archive:
                for member in archive:
                    self._member(archive, member, name, layer)
                    # The reader keeps every member it has seen, for a search that nobody makes here.
                    archive.members = []  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, EOFError, OSError) as error:
            raise SettingsError(f"expected {name} to be a tar archive, got: {error}") from error
        stream.finish()
        self.merge(layer)

    def begin(self) -> LayerNames:
        """A layer above those that there are. SettingsError when they are too many."""
        self._layers += 1
        if self._layers > self._limits.layers:
            raise SettingsError(f"expected at most {self._limits.layers} layers, got more")
        return LayerNames()

    def count(self, layer: LayerNames, path: str, target: str, name: str) -> None:
        """Before a name is taken. SettingsError when there are too many, or too long ones."""
        if len(layer.added) + len(self._entries) >= self._limits.names:
            raise SettingsError(f"expected at most {self._limits.names:,} names in an image, got more in {name}")
        self._named += len(path) + len(target)
        if self._named > self._limits.name_bytes:
            raise SettingsError(
                f"expected at most {self._limits.name_bytes:,} bytes of names in an image, got more in {name}"
            )

    def contents(self) -> ImageContents:
        """After the last layer."""
        made = ImageContents(self._entries, steps=self._steps)
        for path in OS_RELEASE:
            target = made.resolve(path)
            if target in self._texts:
                made.distribution = os_release(self._texts[target])
                break
        return made

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > self._limits.plain_bytes:
            raise SettingsError(
                f"expected at most {self._limits.plain_bytes:,} bytes in the layers of an image, got more; it is not read"
            )

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, layer: LayerNames) -> None:
        added = layer.added
        path = _inside(member.name, name)
        self.count(layer, path, member.linkname, name)
        if path == "/":
            return
        base = posixpath.basename(path)
        if base == OPAQUE:
            layer.emptied.add(posixpath.dirname(path))
        elif base.startswith(WHITEOUT):
            layer.removed.add(joined(posixpath.dirname(path), base.removeprefix(WHITEOUT)))
        elif member.issym():
            if len(member.linkname) > _PATH_MOST:
                raise SettingsError(
                    f"expected the symlink `{path}` in {name} to lead somewhere, its target has {len(member.linkname):,} characters"
                )
            added[path] = ImageEntry(EntryKind.SYMLINK, 0o777, member.linkname)
        elif member.isdir():
            added[path] = ImageEntry(EntryKind.DIRECTORY, member.mode & 0o7777)
        elif member.islnk():
            target = _inside(member.linkname, name)
            known = added.get(target) or self._entries.get(target)
            if known is None:
                raise SettingsError(f"expected the hard link `{path}` in {name} to lead to a file, `{target}` is none")
            added[path] = ImageEntry(known.kind, known.mode, known.target, known.same or target)
        elif member.isreg():
            added[path] = ImageEntry(EntryKind.FILE, member.mode & 0o7777)
            if path in OS_RELEASE and member.size <= TEXT_MOST:
                held = archive.extractfile(member)
                layer.texts[path] = held.read().decode("utf-8", "replace") if held is not None else ""
        else:
            added[path] = ImageEntry(EntryKind.FILE, 0)

    def merge(self, layer: LayerNames, *, through_links: bool = True) -> None:
        """Whiteouts are about lower layers alone, whatever their place in the archive (OCI image-spec, layer.md). `through_links`: what lies
        in a directory that is a symlink below goes where that leads, as when it is unpacked there; overlayfs hides the symlink instead."""
        below, added = ImageContents(self._entries, steps=self._steps), layer.added
        moved: dict[str, str] = {}

        def real(path: str) -> str:
            if not through_links:
                return path
            directory = posixpath.dirname(path)
            if directory not in moved:
                moved[directory] = directory if directory in added else below.resolve(directory) or directory
            return joined(moved[directory], posixpath.basename(path))

        gone = {real(path) for path in layer.removed}
        empty = {real(path) for path in layer.emptied}
        replaced = {real(path) for path, entry in added.items() if entry.kind is not EntryKind.DIRECTORY}
        if gone or empty or replaced:
            self._entries = {
                path: entry for path, entry in self._entries.items()
                if path not in gone and not _below(path, gone | empty | (replaced & self._entries.keys()))
            }  # fmt: skip
        for path, entry in added.items():
            place = real(path)
            known = self._entries.get(place)
            if (
                through_links
                and entry.kind is EntryKind.DIRECTORY
                and known is not None
                and known.kind is EntryKind.SYMLINK
            ):
                continue
            self._entries[place] = entry
            # Some builders write no directories: what holds a file is one.
            above = posixpath.dirname(place)
            while above != "/" and above not in self._entries:
                self._entries[above] = ImageEntry(EntryKind.DIRECTORY)
                above = posixpath.dirname(above)
            if place in OS_RELEASE and path in layer.texts:
                self._texts[place] = layer.texts[path]


def _below(path: str, directories: set[str]) -> bool:
    above = posixpath.dirname(path)
    while above != "/":
        if above in directories:
            return True
        above = posixpath.dirname(above)
    return "/" in directories


def joined(directory: str, name: str) -> str:
    """A path below `directory`."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def _inside(text: str, name: str) -> str:
    """An absolute path of a member's name. SettingsError for one that leaves the image."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in text or len(text) > _PATH_MOST or len(parts) > DEPTH_MOST:
        raise SettingsError(f"expected names inside of the image in {name}, got `{text[:200]}`")
    return "/" + "/".join(parts)
