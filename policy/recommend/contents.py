# SPDX-License-Identifier: Apache-2.0
"""What is in an image: names and where they lead, without the bytes. Pure. Neighbour: `hauberk.images` reads layers into it.

A symlink leads within the image. A program that many names lead to (busybox) is not the program of one of them: rules are on what the
kernel resolves, so a rule for one name would be for all.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Final

import msgspec

from schemas.errors import SettingsError

_TARGET: Final = re.compile(r"[a-z0-9_]+-(?:[a-z0-9]+-)?linux-[a-z0-9]+-")
"""Before the name of a compiler: `x86_64-linux-gnu-gcc-12` behind `gcc`."""
_HOPS: Final = 40
"""As the kernel: after so many symlinks there is no file."""
_STEPS: Final = 1_000_000
_STEPS_OF_NAME: Final = 64
"""Of paths that are ten names deep each takes ten, and a few more for symlinks."""


class EntryKind(Enum):
    """Of a name in an image."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class ImageEntry(msgspec.Struct, frozen=True):
    """`target`: of a symlink, as written. `same`: the first name of a hard-linked file, "" for itself."""

    kind: EntryKind
    mode: int = 0o755
    target: str = ""
    same: str = ""


class Distribution(msgspec.Struct, frozen=True):
    """Of os-release(5): `ident` is its ID, "" for an image that has none (distroless from scratch)."""

    ident: str = ""
    version: str = ""
    name: str = ""


class PathSteps:
    """Steps through the names of one image, all its layers together: symlinks to symlinks may have been made to take hours."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, names: int) -> None:
        """SettingsError after more than an image of so many names could need."""
        self.taken += 1
        if self.taken > _STEPS + _STEPS_OF_NAME * names:
            raise SettingsError(
                f"expected symlinks that lead somewhere in an image, those of {names:,} names take more than {self.taken - 1:,} steps"
            )


class ImageContents:
    """Names by absolute path."""

    def __init__(
        self,
        entries: dict[str, ImageEntry],
        distribution: Distribution = Distribution(),  # noqa: B008
        steps: PathSteps | None = None,
    ) -> None:
        self.entries = entries
        self.distribution = distribution
        self._steps = steps or PathSteps()
        # Of many containers of one image each asks for the same: that costs no steps.
        self._asked: dict[str, str | None] = {}
        self._programs: dict[str, set[str]] | None = None
        self._names_of: dict[str, set[str]] = {}

    def resolve(self, path: str) -> str | None:
        """Where a path leads, symlinks followed inside of the image; None when to nothing. SettingsError when they take too long."""
        if path not in self._asked:
            self._asked[path] = self._walked(path)
        return self._asked[path]

    def _walked(self, path: str) -> str | None:
        hops = 0
        waiting = _parts(path)
        at = ""
        while waiting:
            self._steps.take(len(self.entries))
            part = waiting.pop()
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            here = f"{at}/{part}"
            entry = self.entries.get(here)
            if entry is None:
                return None
            if entry.kind is EntryKind.SYMLINK:
                hops += 1
                if hops > _HOPS:
                    return None
                if entry.target.startswith("/"):
                    at = ""
                waiting += _parts(entry.target)
                continue
            at = here
        return at or "/"

    def has(self, path: str) -> bool:
        """Whether there is something; a directory with or without its slash."""
        return self.resolve(path) is not None

    def programs(self, names: Collection[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """(files that are these programs and nothing else, (name, file) of those that are others' as well or that no policy can write)."""
        known = self._index()
        mine: set[str] = set()
        shared: set[tuple[str, str]] = set()
        for name in names:
            for target in known.get(name, ()):
                others = self._names_of[target] - set(names)
                # `nc.openbsd` behind `nc`, `python3.11` behind `python3`: a longer spelling of a name is no other program.
                others = {one for one in others if not _TARGET.sub("", one, count=1).startswith(tuple(names))}
                if others or not target.isprintable():
                    shared.add((name, target))
                else:
                    mine.add(target)
        return sorted(mine), sorted(shared)

    def _index(self) -> dict[str, set[str]]:
        if self._programs is None:
            self._programs = {}
            for path, entry in self.entries.items():
                if entry.kind is EntryKind.DIRECTORY:
                    continue
                target = self._walked(path)
                final = self.entries.get(target) if target is not None else None
                if target is None or final is None or final.kind is not EntryKind.FILE or not final.mode & 0o111:
                    continue
                name = posixpath.basename(path)
                self._programs.setdefault(name, set()).add(target)
                self._names_of.setdefault(target, set()).add(name)
                # Hard links are one file by several paths, and each path is one that the kernel may tell.
                if final.same:
                    self._names_of.setdefault(final.same, set()).add(name)
            for path, entry in self.entries.items():
                if entry.same and path in self._names_of:
                    self._names_of[path] |= self._names_of.get(entry.same, set())
        return self._programs


def _parts(path: str) -> list[str]:
    """Names of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part and part != "."]


def os_release(text: str) -> Distribution:
    """What os-release(5) says; quotes are the shell's."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key] = value.strip().strip("\"'")[:200]
    return Distribution(
        found.get("ID", ""), found.get("VERSION_ID", ""), found.get("PRETTY_NAME") or found.get("NAME", "")
    )


def of_paths(paths: Iterable[str]) -> ImageContents:
    """Contents in which exactly these files are, for tests and for what is known from elsewhere."""
    entries: dict[str, ImageEntry] = {}
    for path in paths:
        entries[path.rstrip("/")] = ImageEntry(EntryKind.DIRECTORY if path.endswith("/") else EntryKind.FILE)
        above = posixpath.dirname(path.rstrip("/"))
        while above not in ("/", ""):
            entries.setdefault(above, ImageEntry(EntryKind.DIRECTORY))
            above = posixpath.dirname(above)
    return ImageContents(entries)
