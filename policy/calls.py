# SPDX-License-Identifier: Apache-2.0
"""Which system call an operation may have been, for behaviours whose sensor did not name it.

System call rules ask by name; a raw tracepoint knows the name, an LSM hook or a recording of another tool may not. A rule
then holds when it names any call that does the operation. Architectures differ in numbers, not in these names.
"""

from __future__ import annotations

from typing import Final

from schemas.behaviour import Behaviour
from schemas.operations import Operation

_CALLS: Final[dict[Operation, tuple[str, ...]]] = {
    Operation.EXEC: ("execve", "execveat"),
    Operation.EXIT: (),
    Operation.OPEN: ("open", "openat", "openat2"),
    Operation.CREATE: ("creat", "open", "openat", "openat2"),
    Operation.UNLINK: ("unlink", "unlinkat"),
    Operation.RENAME: ("rename", "renameat", "renameat2"),
    Operation.MKDIR: ("mkdir", "mkdirat"),
    Operation.RMDIR: ("rmdir", "unlinkat"),
    Operation.LINK: ("link", "linkat"),
    Operation.SYMLINK: ("symlink", "symlinkat"),
    Operation.CHMOD: ("chmod", "fchmod", "fchmodat"),
    Operation.CHOWN: ("chown", "fchown", "lchown", "fchownat"),
    Operation.TRUNCATE: ("truncate", "ftruncate"),
    Operation.MOUNT: ("mount",),
    Operation.UMOUNT: ("umount", "umount2"),
    Operation.MKNOD: ("mknod", "mknodat"),
    Operation.SOCKET: ("socket",),
    Operation.BIND: ("bind",),
    Operation.LISTEN: ("listen",),
    Operation.CONNECT: ("connect",),
    Operation.ACCEPT: ("accept", "accept4"),
    Operation.SEND: ("sendto", "sendmsg", "sendmmsg"),
    Operation.DNS: (),
    Operation.SETUID: ("setuid", "setreuid", "setresuid", "setfsuid"),
    Operation.SETGID: ("setgid", "setregid", "setresgid", "setfsgid"),
    Operation.PTRACE: ("ptrace",),
    Operation.CAPABLE: (),
    Operation.MODULE: ("init_module", "finit_module", "delete_module"),
    Operation.BPF: ("bpf",),
    Operation.MMAP: ("mmap",),
    Operation.DEVICE: (),
}

BY_OPERATION: Final[tuple[tuple[str, ...], ...]] = tuple(
    _CALLS.get(Operation(number), ()) if number in Operation._value2member_map_ else () for number in range(64)
)


def calls(behaviour: Behaviour) -> tuple[str, ...]:
    """The names a system call rule may ask for."""
    if behaviour.syscall_name:
        return (behaviour.syscall_name,)
    return BY_OPERATION[behaviour.operation]
