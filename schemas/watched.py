# SPDX-License-Identifier: Apache-2.0
"""Which system calls are watched, which operation each is, and what is read of its arguments: the one table of that.

The kernel programs know no call by name: `kernel/syscalls.py` writes these rows into the `calls` map. The policy language,
the words of alerts and the readers of logs derive from the same rows, so none of them can know a call that another does not.
Pure. Numbers are in `schemas/syscalls.py`. To watch another call whose arguments are numbers, texts or paths: add a row.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

import msgspec

from schemas.operations import Access, Class, Operation

NONE: Final = 255
"""The call has no such argument."""
ROOT: Final = 254
"""In `fd`: the root directory of the task after the call."""


REPORTED: Final = frozenset({Class.PROCESS, Class.FILE, Class.NETWORK, Class.SYSCALL})
"""Classes that the kernel programs report; capability checks and devices are not observed (docs/kernel.md)."""


class Mark(IntFlag):
    """What a row of the `calls` map says beside its arguments. FOREIGN: the same number of a 32-bit entry is watched. NARROW:
    structures in user memory have 32-bit members. IO_URING: ends its process where the scope says STOP_IO_URING."""

    FOREIGN = 1
    NARROW = 2
    IO_URING = 4


class Call(msgspec.Struct, frozen=True):
    """One watched call. `hop`: handler by name. Arguments are given by number, 0 to 5; NONE: it has none such.
    `words`: what `path`, `path2`, `flags`, `arg0` and `arg1` are called in alerts, in this order, of those that there are."""

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
    words: str = ""


_O, _A = Operation, Access


def _call(hop: str = "identity", words: str = "", /, **arguments: int) -> Call:
    return Call(hop, _O.CALL, words=words, **arguments)  # type: ignore[arg-type]


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
    "symlink": Call("path_text", _O.SYMLINK, _A.CREATE, path=1, path2=0),
    "symlinkat": Call("path_text", _O.SYMLINK, _A.CREATE, path=2, dirfd=1, path2=0),
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
    "bpf": Call("identity", _O.BPF, arg0=0, words="command"),
    "init_module": Call("identity", _O.MODULE),
    "finit_module": Call("paths", _O.MODULE, fd=0, flags=2, words="module flags"),
    "delete_module": Call("text", _O.MODULE, path=0, flags=1, words="module flags"),
    # Calls that are no file, socket or identity operation: told with what tells one use from another, by their own words.
    "acct": _call("paths", "path", path=0),
    "add_key": _call("text", "type description", path=0, path2=1),
    "adjtimex": _call(),
    "capset": _call(),
    "chroot": _call("paths", "path", path=0, fd=ROOT),
    "clock_adjtime": _call("identity", "clock", arg0=0),
    "clock_settime": _call("identity", "clock", arg0=0),
    "fanotify_init": _call("identity", "flags", flags=0),
    "fanotify_mark": _call("identity", "flags", flags=1),
    "fsconfig": _call("text", "key command", path=2, arg0=1),
    "fsmount": _call("identity", "flags attributes", flags=1, arg0=2),
    "fsopen": _call("text", "filesystem flags", path=0, flags=1),
    "fspick": _call("paths", "path flags", path=1, dirfd=0, flags=2),
    "fsetxattr": _call("text", "name", path=1),
    "fremovexattr": _call("text", "name", path=1),
    "io_uring_setup": _call("uring", "entries", arg0=0),
    "ioperm": _call("identity", "from count", arg0=0, arg1=1),
    "iopl": _call("identity", "level", arg0=0),
    "kcmp": _call("identity", "pid pid2", arg0=0, arg1=1),
    "kexec_file_load": _call("identity", "flags", flags=4),
    "kexec_load": _call("identity", "flags", flags=3),
    "keyctl": _call("identity", "command", arg0=0),
    "kill": _call("identity", "pid signal", arg0=0, arg1=1),
    "landlock_add_rule": _call("identity", "type", arg0=1),
    "landlock_create_ruleset": _call("identity", "flags", flags=2),
    "landlock_restrict_self": _call("identity", "flags", flags=1),
    "lremovexattr": _call("path_text", "path name", path=0, path2=1),
    "lsetxattr": _call("path_text", "path name", path=0, path2=1),
    "lsm_set_self_attr": _call("identity", "attribute", arg0=0),
    "memfd_create": _call("text", "name flags", path=0, flags=1),
    "memfd_secret": _call("identity", "flags", flags=0),
    "migrate_pages": _call("identity", "pid", arg0=0),
    "modify_ldt": _call("identity", "command", arg0=0),
    "mount_setattr": _call("paths", "path flags", path=1, dirfd=0, flags=2),
    "move_pages": _call("identity", "pid", arg0=0),
    "name_to_handle_at": _call("paths", "path flags", path=1, dirfd=0, flags=4),
    "open_tree": _call("paths", "path flags", path=1, dirfd=0, flags=2),
    "open_tree_attr": _call("paths", "path flags", path=1, dirfd=0, flags=2),
    "perf_event_open": _call("identity", "flags pid", flags=4, arg0=1),
    "personality": _call("identity", "persona", arg0=0),
    "pidfd_getfd": _call("identity", "fd", arg0=1),
    "pidfd_open": _call("identity", "flags pid", flags=1, arg0=0),
    "pidfd_send_signal": _call("identity", "signal", arg0=1),
    "pivot_root": _call("paths", "path old", path=0, path2=1),
    "process_vm_readv": _call("identity", "pid", arg0=0),
    "process_vm_writev": _call("identity", "pid", arg0=0),
    "quotactl": _call("paths", "path command", path=1, arg0=0),
    "quotactl_fd": _call("paths", "path command", fd=0, arg0=1),
    "reboot": _call("identity", "command", arg0=2),
    "removexattr": _call("path_text", "path name", path=0, path2=1),
    "removexattrat": _call("path_text", "path name flags", path=1, dirfd=0, path2=3, flags=2),
    "request_key": _call("text", "type description", path=0, path2=1),
    "seccomp": _call("identity", "flags command", flags=1, arg0=0),
    "setdomainname": _call(),
    "setgroups": _call("identity", "count", arg0=0),
    "sethostname": _call(),
    "setns": _call("identity", "type", flags=1),
    "settimeofday": _call(),
    "setxattr": _call("path_text", "path name", path=0, path2=1),
    "setxattrat": _call("path_text", "path name flags", path=1, dirfd=0, path2=3, flags=2),
    "swapoff": _call("paths", "path", path=0),
    "swapon": _call("paths", "path flags", path=0, flags=1),
    "syslog": _call("identity", "command", arg0=0),
    "unshare": _call("identity", "flags", flags=0),
    "uselib": _call("paths", "path", path=0),
    "userfaultfd": _call("identity", "flags", flags=0),
}
"""Every watched call by name."""

# Shapes of arguments in user memory that a handler must know of, by what the programs call the number of such a call.
MARKED: Final = {"io_uring_setup": Mark.IO_URING}
NARROW: Final = frozenset({"sendmsg", "sendmmsg"})
"""Calls with a structure in user memory that has another layout in a 32-bit task, and that the programs read."""


def named(operation: Operation) -> tuple[str, ...]:
    """The watched calls that do `operation`, for behaviours whose sensor did not name one."""
    return _BY_OPERATION.get(operation, ())


def texts(call: Call) -> bool:
    """Whether what the call names first is a text and no path."""
    return call.hop == "text"


def words(call: Call) -> tuple[tuple[str, str], ...]:
    """(member of a behaviour, word) of what alerts tell of a call: `resource resource2 flags arg0 arg1`."""
    first = call.path if call.path != NONE else call.fd
    there = (
        ("resource", first),
        ("resource2", call.path2),
        ("flags", call.flags),
        ("arg0", call.arg0),
        ("arg1", call.arg1),
    )
    return tuple(zip((member for member, index in there if index != NONE), call.words.split(), strict=bool(call.words)))


_BY_OPERATION: dict[Operation, tuple[str, ...]] = {}
for _name, _row in CALLS.items():
    _BY_OPERATION[_row.operation] = (*_BY_OPERATION.get(_row.operation, ()), _name)
# What a call does is seen when it ends: an open that made its file, an unlinkat of a directory.
_BY_OPERATION[Operation.CREATE] = ("creat", "open", "openat", "openat2")
_BY_OPERATION[Operation.RMDIR] = ("rmdir", "unlinkat")
_BY_OPERATION[Operation.CALL] = ()
