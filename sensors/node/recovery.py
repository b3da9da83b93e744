# SPDX-License-Identifier: Apache-2.0
"""Definitions that did not come, from the other places that know: the kernel's process map, and /proc while the task lives.

A string found in /proc is believed only when its keyed hash is the id that was missing: a task that has changed its image
since then, or lies, hashes to something else. Must never wait and never be called for ids that are defined.
Neighbours: `rings` (asks), `kernel.siphash` (the hash), `definitions` (takes what is found).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Final

from kernel.maps import Map
from kernel.siphash import siphash13
from schemas.kernel import IMAGE, PROCESS, STRING_LIMIT, DefinitionKind, ProcessFlag
from sensors.node.pins import TGID

Found = tuple[DefinitionKind, int, bytes]
AT_MOST: Final = 64
"""Tasks asked per drain: a readlink and a hash are some 20 us each, and a drain must stay under 2 ms."""


class Elsewhere:
    """`key`: the two u64 that string ids are hashed with. `images`: the kernel's `processes` map."""

    def __init__(self, images: Map, key: tuple[int, int]) -> None:
        self._images = images
        self._key = key

    def strings(self, pids: Iterable[int], wanted: set[int]) -> list[Found]:
        """Executable paths of these tasks (host tgids) that hash to one of `wanted`."""
        found: list[Found] = []
        for pid in list(pids)[:AT_MOST]:
            body = _executable(pid)
            if body:
                ident = siphash13(self._key, body)
                if ident in wanted:
                    found.append((DefinitionKind.STRING, ident, body))
        return found

    def processes(self, wanted: Iterable[int]) -> list[Found]:
        """Definitions of images that still run, made from the kernel's map, and their arguments from /proc."""
        found: list[Found] = []
        for process in list(wanted)[:AT_MOST]:
            pid = process & TGID
            value = self._images.get(struct.pack("=I", pid))
            if value is None or len(value) != IMAGE.size:
                continue
            image = dict(zip(IMAGE.offsets, IMAGE.struct.unpack(value), strict=True))
            if image["process"] != process:
                continue
            arguments = _arguments(pid)
            ident = siphash13(self._key, arguments) if arguments else 0
            if ident:
                found.append((DefinitionKind.STRING, ident, arguments))
            unknown = 0xFFFFFFFF
            flags = ProcessFlag.CUT if len(arguments) >= STRING_LIMIT - 1 else 0
            body = PROCESS.struct.pack(
                process, image["executable"], 0, ident, 0, image["parent_process"], image["start"],
                image["pid"], image["ppid"], image["ns_pid"], unknown, unknown, flags, b"",
            )  # fmt: skip
            found.append((DefinitionKind.PROCESS, process, body))
        return found

    def adopt_again(self, pids: Iterable[int]) -> None:
        """Have the kernel forget these tasks, so that it announces them at their next call."""
        self._images.delete_many([struct.pack("=I", pid) for pid in list(pids)[:AT_MOST]])


def _executable(pid: int) -> bytes:
    try:
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return b""
    # The kernel appends this to a path that was unlinked; the ids of the programs do not have it.
    return os.fsencode(path.removesuffix(" (deleted)"))


def _arguments(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(STRING_LIMIT).rstrip(b"\0")
    except OSError:
        return b""
