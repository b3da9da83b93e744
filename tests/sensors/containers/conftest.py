# SPDX-License-Identifier: Apache-2.0
"""What the inventory's tests ask of cgroups. Real runtimes: `tests/runtimes`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sensors.containers import cgroups


def remove_cgroup(path: str) -> None:
    """rmdir a cgroup of the test's own; tasks that were just reaped may hold it for a moment."""
    full = Path(cgroups.mount_point() + path)
    deadline = time.monotonic() + 30
    while full.exists():
        try:
            full.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@pytest.fixture(name="remove_cgroup")
def _remove_cgroup() -> Callable[[str], None]:
    return remove_cgroup


@pytest.fixture
def new_cgroup() -> Iterator[Callable[[str], str]]:
    """new_cgroup(name): the directory of a cgroup of that name at the top; removed after."""
    made = []

    def new(name: str) -> str:
        made.append(f"/{name}")
        os.mkdir(cgroups.mount_point() + made[-1])
        return cgroups.mount_point() + made[-1]

    yield new
    for path in made:
        remove_cgroup(path)


def kernel_cgroup_id(path: str) -> int:
    """What the kernel calls the cgroup: the handle of its directory (the same number BPF programs see)."""
    import ctypes

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("id", ctypes.c_uint64))

    handle, mount = Handle(8, 0, 0), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    full = (cgroups.mount_point() + path).encode()
    at_fdcwd = -100
    if libc.name_to_handle_at(at_fdcwd, full, ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return int(handle.id)


@pytest.fixture(name="kernel_cgroup_id")
def _kernel_cgroup_id() -> Callable[[str], int]:
    return kernel_cgroup_id
