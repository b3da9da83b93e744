# SPDX-License-Identifier: Apache-2.0
"""The keys of `Identity.links` that a path in a policy asks for: shared by the sensor that resolves them and the compiler that
looks them up; and the executables that are many programs. Pure.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 4096
"""Bytes of a path (PATH_MAX); longer texts name nothing."""
MULTI_CALL: Final = frozenset(
    {
        "busybox", "busybox.static", "ccache", "coreutils", "dropbearmulti", "firejail", "git", "gnu-coreutils", "kmod", "lvm",
        "rustup", "sbase-box", "snap", "systemctl", "toybox", "uutils", "xtables-legacy-multi", "xtables-nft-multi",
    }
)  # fmt: skip
"""Executables that act by the name they are called with: /sbin/reboot is systemctl, /sbin/insmod is kmod."""
_GLOB: Final = re.compile(r"[*?\[{\\]")
_SLASHES: Final = re.compile(r"/(?:\.?/)+")


def asked(text: str) -> tuple[str, ...]:
    """Keys for a path, directory or glob: itself; the directory it lies in; the directory before its first wildcard.

    Directories end with a slash. Empty for what is no absolute path, and for what lies in /proc: links there differ from
    process to process.
    """
    if not text.startswith("/") or "\0" in text or len(text.encode("utf-8", "replace")) >= LONGEST:
        return ()
    path = _SLASHES.sub("/", text)
    if path.startswith("/proc/"):
        return ()
    found = [path, path[: path.rindex("/") + 1]]
    if (wild := _GLOB.search(path)) is not None:
        found.append(path[: path.rindex("/", 0, wild.start()) + 1])
    return tuple(key for key in dict.fromkeys(found) if key != "/")


def directory_before(glob: str) -> tuple[str, str]:
    """`/bin/*sh` -> (`/bin/`, `*sh`): the directory that every match lies below, and the rest. (`/`, ...) when there is none."""
    wild = _GLOB.search(glob)
    cut = glob.rindex("/", 0, wild.start() if wild else len(glob)) + 1 if glob.startswith("/") else 0
    return glob[:cut], glob[cut:]
