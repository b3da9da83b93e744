# SPDX-License-Identifier: Apache-2.0
"""The LSM hooks: which there are, their maps and their C text. The list, as `catalogue` is of the sensor's programs.

A unit of its own beside the sensor's, because most kernels cannot take it: nobody compiles it for nothing, and what goes wrong
with it leaves the sensor alone. It shares maps with the sensor by their names. Neighbours: `hook_compiler`, `hook_loading`,
programs/lsm_ask.c (read first).
"""

from __future__ import annotations

from typing import Final

import msgspec

from kernel.catalogue import PROGRAM_DIRECTORY, KernelMap

SOURCES: Final = (
    "hash", "work", "scope", "budget", "announce", "event", "caller", "question", "lsm_ask", "lsm_match", "lsm_actors", "lsm_tell",
    "lsm_files", "lsm_run", "lsm_sockets",
)  # fmt: skip
"""Files of kernel/programs in the order they are compiled."""


class Hook(msgspec.Struct, frozen=True):
    """A program on the LSM hook `name`, its C function is lsm_NAME; pinned as programs/lsm_NAME and links/lsm_NAME.
    `needed`: without it the backend would not hold what it says; the others are newer than some kernels."""

    name: str
    why: str
    needed: bool = True


HOOKS: Final = (
    Hook("file_open", "open in every way but O_PATH"),
    Hook("bprm_check_security", "exec: the file, and each interpreter after it"),
    Hook("path_mknod", "a new file, before it is there"),
    Hook("path_mkdir", "a new directory"),
    Hook("path_symlink", "a new symbolic link"),
    Hook("path_link", "a new name for a file"),
    Hook("path_unlink", "a name that goes"),
    Hook("path_rmdir", "a directory that goes"),
    Hook("path_rename", "a name that becomes another"),
    Hook("path_chmod", "mode of a file"),
    Hook("path_chown", "owner of a file"),
    Hook("path_truncate", "truncate(2)"),
    Hook("file_truncate", "ftruncate(2), which path_truncate covers before Linux 6.2", needed=False),
    Hook("mmap_file", "memory without a file that is executable; a program that a loader maps"),
    Hook("file_mprotect", "memory that becomes executable"),
    Hook("capable", "use of a capability"),
    Hook(
        "ptrace_access_check",
        "a process that another attaches to: ptrace, process_vm_readv, pidfd_getfd, /proc/PID/mem",
    ),
    Hook("sb_mount", "a mount, which gives files other paths"),
    Hook("move_mount", "a mount that is put into the tree"),
    Hook("sb_pivotroot", "another root"),
    Hook("userns_create", "a user namespace, in which everybody may mount; since Linux 6.1", needed=False),
    Hook("socket_create", "a socket of a kind that is not allowed"),
    Hook("socket_bind", "an address and port that are taken"),
    Hook("socket_connect", "a peer that is connected to"),
    Hook("socket_sendmsg", "a peer that is sent to"),
    Hook("socket_listen", "a socket that takes connections"),
    Hook("socket_accept", "a connection that is taken, on the port that it came to"),
)

TABLES: Final = (
    KernelMap("lsm_counts", "per-cpu array", "u32 HookCount", "u64", "kernel", "what the LSM hooks did"),
    KernelMap("patterns", "array", "u32 cell", "u32", "enforcer", "machines of the tables with patterns"),
)


def source() -> str:
    """The C text of the unit, whole (`catalogue.source` says why)."""
    return "\n".join(f'#line 1 "{name}.c"\n{(PROGRAM_DIRECTORY / f"{name}.c").read_text()}' for name in SOURCES)
