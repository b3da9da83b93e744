# SPDX-License-Identifier: Apache-2.0
"""Which system calls are watched and what their arguments mean: one table, and the numbers of each architecture.

The kernel programs know no call by name: `call_records()` is written into the `calls` map when they are loaded, and one row
tells the handler which argument is a path, a descriptor or flags. A new architecture is a new column of numbers.
Must never decide policy. Numbers: include/uapi/asm-generic/unistd.h (aarch64) and arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

import platform
from typing import Final

import msgspec

from schemas.errors import Incompatible
from schemas.kernel import CALL
from schemas.operations import Access, Operation, class_of

NONE: Final = 255

# name: (x86_64, aarch64); None where the architecture has no such call
NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None),
    "open_by_handle_at": (304, 265),
    "execve": (59, 221), "execveat": (322, 281), "exit_group": (231, 94),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "truncate": (76, 45), "ftruncate": (77, 46),
    "mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429), "pivot_root": (155, 41), "chroot": (161, 51),
    "socket": (41, 198), "bind": (49, 200), "listen": (50, 201), "connect": (42, 203),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "ptrace": (101, 117), "bpf": (321, 280),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
}  # fmt: skip
_COLUMN: Final = {"x86_64": 0, "aarch64": 1}


class Call(msgspec.Struct, frozen=True):
    """One watched call. `hop`: handler by name. Arguments are given by number, 0 to 5; NONE: it has none such."""

    hop: str
    operation: Operation
    access: Access = Access(0)
    path: int = NONE
    dirfd: int = NONE
    path2: int = NONE
    dirfd2: int = NONE
    fd: int = NONE
    flags: int = NONE
    arg0: int = NONE
    arg1: int = NONE


_O, _A = Operation, Access
CALLS: Final[dict[str, Call]] = {
    "open": Call("open", _O.OPEN, path=0, flags=1),
    "openat": Call("open", _O.OPEN, path=1, dirfd=0, flags=2),
    "openat2": Call("open", _O.OPEN, path=1, dirfd=0, flags=2),
    "creat": Call("open", _O.OPEN, path=0),
    "open_by_handle_at": Call("open", _O.OPEN, dirfd=0, flags=2),
    "execve": Call("paths", _O.EXEC, _A.EXEC, path=0),
    "execveat": Call("paths", _O.EXEC, _A.EXEC, path=1, dirfd=0, flags=4),
    "unlink": Call("paths", _O.UNLINK, _A.DELETE, path=0),
    "unlinkat": Call("paths", _O.UNLINK, _A.DELETE, path=1, dirfd=0, flags=2),
    "rmdir": Call("paths", _O.RMDIR, _A.DELETE | _A.DIRECTORY, path=0),
    "rename": Call("paths", _O.RENAME, _A.DELETE | _A.CREATE, path=0, path2=1),
    "renameat": Call("paths", _O.RENAME, _A.DELETE | _A.CREATE, path=1, dirfd=0, path2=3, dirfd2=2),
    "renameat2": Call("paths", _O.RENAME, _A.DELETE | _A.CREATE, path=1, dirfd=0, path2=3, dirfd2=2, flags=4),
    "mkdir": Call("paths", _O.MKDIR, _A.CREATE | _A.DIRECTORY, path=0, arg0=1),
    "mkdirat": Call("paths", _O.MKDIR, _A.CREATE | _A.DIRECTORY, path=1, dirfd=0, arg0=2),
    "mknod": Call("paths", _O.MKNOD, _A.CREATE, path=0, arg0=1, arg1=2),
    "mknodat": Call("paths", _O.MKNOD, _A.CREATE, path=1, dirfd=0, arg0=2, arg1=3),
    # resource: the new name, the thing that appears; resource2: what it points at
    "link": Call("paths", _O.LINK, _A.CREATE, path=1, path2=0),
    "linkat": Call("paths", _O.LINK, _A.CREATE, path=3, dirfd=2, path2=1, dirfd2=0, flags=4),
    "symlink": Call("symlink", _O.SYMLINK, _A.CREATE, path=1, path2=0),
    "symlinkat": Call("symlink", _O.SYMLINK, _A.CREATE, path=2, dirfd=1, path2=0),
    "chmod": Call("paths", _O.CHMOD, _A.METADATA, path=0, arg0=1),
    "fchmod": Call("paths", _O.CHMOD, _A.METADATA, fd=0, arg0=1),
    "fchmodat": Call("paths", _O.CHMOD, _A.METADATA, path=1, dirfd=0, arg0=2),
    "fchmodat2": Call("paths", _O.CHMOD, _A.METADATA, path=1, dirfd=0, arg0=2, flags=3),
    "chown": Call("paths", _O.CHOWN, _A.METADATA, path=0, arg0=1, arg1=2),
    "lchown": Call("paths", _O.CHOWN, _A.METADATA, path=0, arg0=1, arg1=2),
    "fchown": Call("paths", _O.CHOWN, _A.METADATA, fd=0, arg0=1, arg1=2),
    "fchownat": Call("paths", _O.CHOWN, _A.METADATA, path=1, dirfd=0, arg0=2, arg1=3, flags=4),
    "truncate": Call("paths", _O.TRUNCATE, _A.WRITE | _A.TRUNCATE, path=0, arg0=1),
    "ftruncate": Call("paths", _O.TRUNCATE, _A.WRITE | _A.TRUNCATE, fd=0, arg0=1),
    # resource: where it is mounted; resource2: what
    "mount": Call("mount", _O.MOUNT, path=1, path2=0, flags=3),
    "move_mount": Call("paths", _O.MOUNT, path=3, dirfd=2, path2=1, dirfd2=0, flags=4),
    "umount2": Call("paths", _O.UMOUNT, path=0, flags=1),
    "socket": Call("socket", _O.SOCKET),
    "bind": Call("address", _O.BIND, fd=0, path=1, flags=2),
    "connect": Call("address", _O.CONNECT, fd=0, path=1, flags=2),
    "listen": Call("listen", _O.LISTEN, fd=0, arg0=1),
    "accept": Call("accept", _O.ACCEPT, fd=0),
    "accept4": Call("accept", _O.ACCEPT, fd=0, flags=3),
    "sendto": Call("send", _O.SEND, fd=0, path=4, arg0=5),
    "sendmsg": Call("send", _O.SEND, fd=0),
    "sendmmsg": Call("send", _O.SEND, fd=0),
    "setuid": Call("identity", _O.SETUID, arg0=0),
    "setreuid": Call("identity", _O.SETUID, arg0=0, arg1=1),
    "setresuid": Call("identity", _O.SETUID, arg0=0, arg1=1),
    "setfsuid": Call("identity", _O.SETUID, arg0=0),
    "setgid": Call("identity", _O.SETGID, arg0=0),
    "setregid": Call("identity", _O.SETGID, arg0=0, arg1=1),
    "setresgid": Call("identity", _O.SETGID, arg0=0, arg1=1),
    "setfsgid": Call("identity", _O.SETGID, arg0=0),
    "ptrace": Call("identity", _O.PTRACE, arg0=0, arg1=1),
    "bpf": Call("identity", _O.BPF, arg0=0),
    "init_module": Call("identity", _O.MODULE),
    "finit_module": Call("paths", _O.MODULE, fd=0, flags=2),
    "delete_module": Call("identity", _O.MODULE, flags=1),
}


def number(name: str, machine: str = platform.machine()) -> int | None:
    """Number of call `name` on `machine`; None where it has none. Raises Incompatible for an unknown machine."""
    if machine not in _COLUMN:
        raise Incompatible(
            f"expected machine {' or '.join(_COLUMN)}, got `{machine}`; add its numbers to kernel/syscalls.py"
        )
    return NUMBERS[name][_COLUMN[machine]]


def call_records(hops: dict[str, int], machine: str = platform.machine()) -> list[tuple[int, bytes]]:
    """(number, CALL record) of every watched call. `hops`: index of each handler in the `hops` program array."""
    records = []
    for name, call in CALLS.items():
        value = number(name, machine)
        if value is None:
            continue
        record = CALL.struct.pack(
            hops[call.hop], class_of(call.operation), call.operation, call.access, call.path, call.dirfd, call.path2,
            call.dirfd2, call.fd, call.flags, call.arg0, call.arg1, 0,
        )  # fmt: skip
        records.append((value, record))
    return records
