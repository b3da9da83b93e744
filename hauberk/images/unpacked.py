# SPDX-License-Identifier: Apache-2.0
"""A layer that lies unpacked in an engine's store: the directory that overlayfs, or fuse-overlayfs, puts above those of lower layers.

Names alone are looked at, no symlink is followed, nothing is opened but an os-release(5). Neighbour: `layers`, which reads packed ones.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from hauberk.images.layers import DEPTH_MOST, OPAQUE, OS_RELEASE, TEXT_MOST, WHITEOUT, LayerNames, LayerReader, joined
from policy.recommend.contents import EntryKind, ImageEntry
from schemas.errors import SettingsError

_OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
"""Attributes of a directory that hides what lower layers have there (Documentation/filesystems/overlayfs.rst), by who may set them."""
_NONE: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


def add_unpacked(reader: LayerReader, root: Path, name: str) -> None:
    """The layer below `root`. SettingsError for what is not to be read; OSError of the directory."""
    layer = reader.begin()
    first: dict[tuple[int, int], str] = {}
    waiting = [("/", 0)]
    while waiting:
        directory, depth = waiting.pop()
        if depth > DEPTH_MOST:
            raise SettingsError(f"expected at most {DEPTH_MOST} directories in one another in {name}, got more")
        place = f"{root}{directory}"
        if _is_opaque(place):
            layer.emptied.add(directory)
        # In order, so that of a file with several names the same is the first in every run.
        for entry in sorted(os.scandir(place), key=lambda one: one.name):
            path = joined(directory, entry.name)
            reader.count(layer, path, "", name)
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                layer.added[path] = ImageEntry(EntryKind.DIRECTORY, stat.S_IMODE(found.st_mode))
                waiting.append((path, depth + 1))
            elif entry.name == OPAQUE:
                layer.emptied.add(directory)
            elif entry.name.startswith(WHITEOUT):
                layer.removed.add(joined(directory, entry.name.removeprefix(WHITEOUT)))
            elif stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                layer.removed.add(path)
            elif stat.S_ISLNK(found.st_mode):
                target = os.readlink(entry.path)
                reader.count(layer, "", target, name)
                layer.added[path] = ImageEntry(EntryKind.SYMLINK, 0o777, target)
            elif stat.S_ISREG(found.st_mode):
                same = first.setdefault((found.st_dev, found.st_ino), path) if found.st_nlink > 1 else path
                layer.added[path] = ImageEntry(
                    EntryKind.FILE, stat.S_IMODE(found.st_mode), "", "" if same == path else same
                )
                _text(layer, path, entry.path, found.st_size)
            else:
                layer.added[path] = ImageEntry(EntryKind.FILE, 0)
    reader.merge(layer, through_links=False)


def _is_opaque(place: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(place, name, follow_symlinks=False) == b"y":
                return True
        except OSError as error:
            if error.errno not in _NONE:
                raise
    return False


def _text(layer: LayerNames, path: str, place: str, size: int) -> None:
    if path not in OS_RELEASE or size > TEXT_MOST:
        return
    with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        layer.texts[path] = file.read(TEXT_MOST).decode("utf-8", "replace")
