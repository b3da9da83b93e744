# SPDX-License-Identifier: Apache-2.0
"""Guard programs on cgroups: attached, recorded by a pin, found again by another process, taken off.

A link is pinned as links/guard-CGROUP-NAME and ends with its pin or its cgroup. A kernel without cgroup links keeps an
attachment until somebody takes it off, so there the program itself is pinned under that name: the pin says that it is on
the cgroup, and whoever removes the pin detaches first. It must never touch a cgroup that has no such pin. Neighbours:
`bpf` (the calls), `catalogue` (the guards), `loading.unload` and `enforcers.cgroup` (who call).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from kernel import bpf
from kernel.catalogue import GUARDS
from schemas.errors import KernelError

_PIN: Final = "guard-{cgroup}-{name}"


def missing(pin_dir: str, cgroup: int) -> list[str]:
    """Names of the guards that are not on the cgroup with this id."""
    return [guard.name for guard in GUARDS if not _pin(pin_dir, cgroup, guard.name).exists()]


def held(pin_dir: str) -> set[int]:
    """Ids of the cgroups that any guard is on, as the pins say."""
    try:
        names = os.listdir(f"{pin_dir}/links")
    except FileNotFoundError:
        return set()
    return {int(name.split("-")[1]) for name in names if name.startswith("guard-")}


def hold(pin_dir: str, name: str, attach_type: int, directory: str, cgroup: int) -> None:
    """Put guard `name` on the cgroup at `directory`, whose id is `cgroup`; once it is there, nothing."""
    place = _pin(pin_dir, cgroup, name)
    if place.exists():
        return
    program = bpf.pinned(f"{pin_dir}/programs/{name}")
    try:
        target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link = bpf.cgroup_attach(program, target, attach_type, f"{name} on {directory}")
            try:
                bpf.pin(program if link < 0 else link, str(place))
            except KernelError as error:
                if link < 0 and error.errno != errno.EEXIST:
                    bpf.cgroup_detach(program, target, attach_type, directory)
                if error.errno != errno.EEXIST:
                    raise
            finally:
                if link >= 0:
                    os.close(link)
        finally:
            os.close(target)
    finally:
        os.close(program)


def release(pin_dir: str, cgroup: int) -> None:
    """Take every guard off the cgroup with this id. A cgroup that is gone took them along. Twice is once."""
    directory = ""
    for guard in GUARDS:
        pin = _pin(pin_dir, cgroup, guard.name)
        if not pin.exists():
            continue
        pinned = bpf.pinned(str(pin))
        try:
            if os.readlink(f"/proc/self/fd/{pinned}") != "anon_inode:bpf-prog":
                bpf.link_detach(pinned, str(pin))
            elif directory := directory or _find(cgroup):
                _detach(pinned, directory, guard.attach_type)
        finally:
            os.close(pinned)
        pin.unlink()


def release_all(pin_dir: str) -> None:
    """The same for every cgroup, as far as it goes: one that cannot be released keeps nobody from the rest."""
    for cgroup in held(pin_dir):
        with suppress(KernelError, OSError):
            release(pin_dir, cgroup)


def _detach(program: int, directory: str, attach_type: int) -> None:
    with suppress(FileNotFoundError):
        target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.cgroup_detach(program, target, attach_type, directory)
        except KernelError as error:
            # It is not there: detached before, by somebody who ended before the pin was removed.
            if error.errno != errno.ENOENT:
                raise
        finally:
            os.close(target)


def _find(cgroup: int) -> str:
    """The directory of the cgroup with this id, "" when there is none. Reads the tree; only kernels without links need it."""
    from kernel.features import cgroup2_mount  # an agent on a kernel with links never needs it

    waiting = [cgroup2_mount() or ""]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.inode() == cgroup:
                            return entry.path
                        waiting.append(entry.path)
        except OSError:
            continue
    return ""


def _pin(pin_dir: str, cgroup: int, name: str) -> Path:
    return Path(pin_dir, "links", _PIN.format(cgroup=cgroup, name=name))
