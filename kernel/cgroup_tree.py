# SPDX-License-Identifier: Apache-2.0
"""Every cgroup below a directory, whatever shape a workload gave the tree: no recursion, one descriptor, any depth.

A container that may make cgroups can nest thousands of them, deeper than Python recurses and further than PATH_MAX reaches, so
the walk goes from directory to directory by descriptor and comes back by `..`. Cgroups are never moved, so `..` is where
it came from. Neighbours: `enforcers.tables` and `sensors.containers.cgroups` (who look).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

PATH_MOST: Final = 4096
"""Of a path that is handed out: what is deeper has that of its deepest ancestor that fits, so a deep tree costs no square."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def walk(top: str, skip: Callable[[int], bool] | None = None) -> Iterator[tuple[int, str]]:
    """(id, path below `top`) of the cgroup at `top` ("") and of all below it, parents first, siblings by name.

    `skip(id)`: leave out this cgroup and all below it. What is removed meanwhile may be missed.
    """
    try:
        at = os.open(top, _OPEN & ~os.O_NOFOLLOW)
    except OSError:
        return
    try:
        yield os.fstat(at).st_ino, ""
        paths, waiting = [""], [_below(at)]
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                paths.pop()
                if not waiting:
                    return
                at = _to(at, "..")
                continue
            name = waiting[-1].pop()
            try:
                inner = os.open(name, _OPEN, dir_fd=at)
            except OSError:  # removed while we looked
                continue
            ident = os.fstat(inner).st_ino
            if skip is not None and skip(ident):
                os.close(inner)
                continue
            os.close(at)
            at = inner
            path = f"{paths[-1]}/{name}"
            paths.append(path if len(path) <= PATH_MOST else paths[-1])
            yield ident, paths[-1]
            waiting.append(_below(at))
    except OSError:
        return  # the way back is gone: the tree was unmounted
    finally:
        os.close(at)


def _to(at: int, name: str) -> int:
    new = os.open(name, _OPEN, dir_fd=at)
    os.close(at)
    return new


def _below(at: int) -> list[str]:
    """Names of the directories in it, the first last."""
    try:
        with os.scandir(at) as entries:
            return sorted((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), reverse=True)
    except OSError:
        return []
