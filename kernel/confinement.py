# SPDX-License-Identifier: Apache-2.0
"""What a child process gives up before it reads what others wrote: it ends with its parent, and holds no capability but those to read files.

Linux UAPI: prctl(2), capset(2), include/uapi/linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from schemas.errors import KernelError

READING: Final = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: a store may be another user's."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 1, 38, 47, 4
_VERSION_3: Final = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def end_with_parent(parent: int) -> None:
    """SIGKILL for this process when the process `parent` ends, also when it ended before this was asked. KernelError."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def give_up_capabilities(keep: tuple[int, ...] = READING) -> None:
    """Capabilities of this thread and of what it starts, but those of `keep` that it has. For a process of one thread. KernelError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _CLEAR_ALL)
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise _failed("capget")
    kept = sum(1 << number for number in keep) & sets[0].permitted
    sets[0] = _Sets(kept & sets[0].effective, kept, 0)
    sets[1] = _Sets(0, 0, 0)
    if libc.capset(ctypes.byref(header), sets):
        raise _failed("capset")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        raise _failed(f"prctl {option}")


def _failed(what: str) -> KernelError:
    number = ctypes.get_errno()
    return KernelError(f"expected {what} to give up what a child does not need, got: {os.strerror(number)}")
