# SPDX-License-Identifier: Apache-2.0
"""Layers of an image, lowest first -> the names that a container sees: whiteouts, symlinks, hard links, replaced directories.

Nothing is extracted. A name that leaves the image, a device, a name twice too long is refused: no builder makes them.
"""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, Final, cast

from hauberk.images.streams import ByteSource, ImageLimits, PlainStream
from policy.recommend.contents import EntryKind, ImageContents, ImageEntry, os_release
from schemas.errors import SettingsError

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")
_PATH_MOST: Final = 4096
"""PATH_MAX."""
_DEPTH_MOST: Final = 256
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


class LayerReader:
    """`add` each layer, then `contents`."""

    def __init__(self, limits: ImageLimits = ImageLimits()) -> None:  # noqa: B008
        self._limits = limits
        self._spent = self._layers = self._named = 0
        self._entries: dict[str, ImageEntry] = {}
        self._texts: dict[str, str] = {}

    def add(self, source: ByteSource, name: str, digest: str = "") -> None:
        """One layer. SettingsError for what is none or is not to be read."""
        self._layers += 1
        if self._layers > self._limits.layers:
            raise SettingsError(f"expected at most {self._limits.layers} layers, got more")
        stream = PlainStream(source, name, self._spend, digest)
        removed: set[str] = set()
        emptied: set[str] = set()
        added: dict[str, ImageEntry] = {}
        texts: dict[str, str] = {}
        try:
            with tarfile.open(
                fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=BoundedMember, errorlevel=1
            ) as archive:
                for member in archive:
                    self._member(archive, member, name, added, removed, emptied, texts)
                    # The reader keeps every member it has seen, for a search that nobody makes here.
                    archive.members = []  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, EOFError, OSError) as error:
            raise SettingsError(f"expected {name} to be a tar archive, got: {error}") from error
        stream.finish()
        self._merge(added, removed, emptied, texts)

    def contents(self) -> ImageContents:
        """After the last layer."""
        made = ImageContents(self._entries)
        for path in _OS_RELEASE:
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

    def _member(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, added: dict[str, ImageEntry], removed: set[str], emptied: set[str],
        texts: dict[str, str],
    ) -> None:  # fmt: skip
        path = _inside(member.name, name)
        if member.ischr() or member.isblk():
            raise SettingsError(f"expected no devices in {name}, got `{path}`")
        if len(added) + len(self._entries) > self._limits.names:
            raise SettingsError(f"expected at most {self._limits.names:,} names in an image, got more in {name}")
        self._named += len(path) + len(member.linkname)
        if self._named > self._limits.name_bytes:
            raise SettingsError(
                f"expected at most {self._limits.name_bytes:,} bytes of names in an image, got more in {name}"
            )
        if path == "/":
            return
        base = posixpath.basename(path)
        if base == _OPAQUE:
            emptied.add(posixpath.dirname(path))
        elif base.startswith(_WHITEOUT):
            removed.add(_join(posixpath.dirname(path), base.removeprefix(_WHITEOUT)))
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
            if path in _OS_RELEASE and member.size <= 1 << 16:
                held = archive.extractfile(member)
                texts[path] = held.read().decode("utf-8", "replace") if held is not None else ""

    def _merge(self, added: dict[str, ImageEntry], removed: set[str], emptied: set[str], texts: dict[str, str]) -> None:
        """Whiteouts are about lower layers alone, whatever their place in the archive (OCI image-spec, layer.md)."""
        below = ImageContents(self._entries)
        moved: dict[str, str] = {}

        def real(path: str) -> str:
            # What is unpacked into a directory that is a symlink below lies where that leads.
            directory = posixpath.dirname(path)
            if directory not in moved:
                moved[directory] = directory if directory in added else below.resolve(directory) or directory
            return _join(moved[directory], posixpath.basename(path))

        gone = {real(path) for path in removed}
        empty = {real(path) for path in emptied}
        replaced = {real(path) for path, entry in added.items() if entry.kind is not EntryKind.DIRECTORY}
        if gone or empty or replaced:
            self._entries = {
                path: entry for path, entry in self._entries.items()
                if path not in gone and not _below(path, gone | empty | (replaced & self._entries.keys()))
            }  # fmt: skip
        for path, entry in added.items():
            place = real(path)
            known = self._entries.get(place)
            if entry.kind is EntryKind.DIRECTORY and known is not None and known.kind is EntryKind.SYMLINK:
                continue
            self._entries[place] = entry
            # Some builders write no directories: what holds a file is one.
            above = posixpath.dirname(place)
            while above != "/" and above not in self._entries:
                self._entries[above] = ImageEntry(EntryKind.DIRECTORY)
                above = posixpath.dirname(above)
            if place in _OS_RELEASE and path in texts:
                self._texts[place] = texts[path]


def _below(path: str, directories: set[str]) -> bool:
    above = posixpath.dirname(path)
    while above != "/":
        if above in directories:
            return True
        above = posixpath.dirname(above)
    return "/" in directories


def _join(directory: str, name: str) -> str:
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def _inside(text: str, name: str) -> str:
    """An absolute path of a member's name. SettingsError for one that leaves the image."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in text or len(text) > _PATH_MOST or len(parts) > _DEPTH_MOST:
        raise SettingsError(f"expected names inside of the image in {name}, got `{text[:200]}`")
    return "/" + "/".join(parts)
