# SPDX-License-Identifier: Apache-2.0
"""The words in `Resource`, `Data` and `Result` of KubeArmor's logs, as numbers (kubearmor.md 4.3). Tables and their readers.

Unknown words are never an error here: a log of a newer agent must stay readable. Neighbour: `policy/tools/events.py`.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from schemas.backends import BACKENDS
from schemas.operations import Access, Backend, Operation
from schemas.watched import CALLS as CALL_ROWS

CALLS: Final = {name: row.operation for name, row in CALL_ROWS.items()} | {
    "creat": Operation.CREATE,
    "umount": Operation.UMOUNT,
}
"""Calls by the name in `syscall=`, without `SYS_`."""
HOOKS: Final = {
    "SECURITY_BPRM_CHECK": Operation.EXEC,
    "MMAP_FILE": Operation.MMAP,
    "FILE_OPEN": Operation.OPEN,
    "FILE_PERMISSION": Operation.OPEN,
    "FILE_MKNOD": Operation.MKNOD,
    "FILE_UNLINK": Operation.UNLINK,
    "FILE_MKDIR": Operation.MKDIR,
    "FILE_RMDIR": Operation.RMDIR,
    "FILE_SYMLINK": Operation.SYMLINK,
    "FILE_LINK": Operation.LINK,
    "FILE_RENAME": Operation.RENAME,
    "FILE_CHMOD": Operation.CHMOD,
    "FILE_CHOWN": Operation.CHOWN,
    "FILE_TRUNCATE": Operation.TRUNCATE,
    "SOCKET_CREATE": Operation.SOCKET,
    "SOCKET_BIND": Operation.BIND,
    "SOCKET_LISTEN": Operation.LISTEN,
    "SOCKET_CONNECT": Operation.CONNECT,
    "SOCKET_ACCEPT": Operation.ACCEPT,
    "SOCKET_SENDMSG": Operation.DNS,
    "CAPABLE": Operation.CAPABLE,
    "TCP_CONNECT": Operation.CONNECT,
    "TCP_ACCEPT": Operation.ACCEPT,
    "UDP_SENDSKB": Operation.DNS,
    "UDP_SENDMSG": Operation.DNS,
}
"""Values of `lsm=`, `kprobe=` and `kfunc=`, in upper case."""
FAMILIES: Final = {
    "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_LOCAL": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17,
    "AF_BLUETOOTH": 31, "AF_ALG": 38, "AF_VSOCK": 40, "AF_SMC": 43, "AF_XDP": 44,
}  # fmt: skip
TYPES: Final = {
    "SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_RDM": 4, "SOCK_SEQPACKET": 5, "SOCK_DCCP": 6, "SOCK_PACKET": 10,
}  # fmt: skip
PROTOCOLS: Final = {
    "IP": 0, "ICMP": 1, "TCP": 6, "UDP": 17, "DCCP": 33, "IPV6-ICMP": 58, "ICMPV6": 58, "SCTP": 132, "RAW": 255,
    "SMC": 256, "MPTCP": 262,
}  # fmt: skip
ENFORCERS: Final = {
    word.lower(): backend for backend, about in BACKENDS.items() for word in (about.name, about.alert)
} | {"selinux": Backend.APPARMOR, "networkpolicyenforcer": Backend.CGROUP}
"""Names of enforcers, lower case. `eBPF Monitor` and everything else only watched."""
_RESULTS: Final = {os.strerror(number).lower(): -number for number in errno.errorcode} | {"passed": 0, "": 0}
_OPEN_FLAGS: Final = {
    "O_WRONLY": Access.WRITE,
    "O_RDWR": Access.READ | Access.WRITE,
    "O_APPEND": Access.APPEND,
    "O_CREAT": Access.CREATE,
    "O_TRUNC": Access.TRUNCATE,
    "O_DIRECTORY": Access.DIRECTORY,
}
_PAIR: Final = re.compile(r"(?:^|[\s,])([A-Za-z_][A-Za-z0-9_]*)=([^\s,]*)")


def pairs(text: str) -> dict[str, str]:
    """`key=value` words of `text`, separated by blanks or commas; keys in lower case, the first one counts."""
    found: dict[str, str] = {}
    for key, value in _PAIR.findall(text):
        found.setdefault(key.lower(), value)
    return found


def result(value: object) -> int:
    """0 or -errno of `Result`. A text that no errno has counts as EIO: failed, and not by a denial."""
    if isinstance(value, int):
        return value if value <= 0 else -value
    return _RESULTS.get(str(value or "").strip().lower(), -errno.EIO)


def access(operation: Operation, flags: str) -> Access:
    """Access mode of a file operation; `flags` as in `Data`, joined by `|`."""
    if operation is Operation.EXEC:
        return Access.EXEC
    if operation is Operation.CREATE:
        return Access.WRITE | Access.CREATE | Access.TRUNCATE
    if operation in (Operation.UNLINK, Operation.RMDIR):
        return Access.DELETE
    if operation in (Operation.CHMOD, Operation.CHOWN):
        return Access.METADATA
    if operation is Operation.TRUNCATE:
        return Access.WRITE | Access.TRUNCATE
    if operation is not Operation.OPEN:
        return Access.WRITE | Access.CREATE
    found = Access(0)
    if "O_PATH" in flags.upper().split("|"):
        return found  # a name for the file, whatever else was asked for
    for word in flags.upper().split("|"):
        found |= _OPEN_FLAGS.get(word.strip(), Access(0))
    if not found & Access.WRITE:
        found |= Access.READ
    return found


def number(text: str, table: dict[str, int]) -> int:
    """The number a word stands for (the first known of a `|` list), a plain number as it is, 0 when unknown."""
    for word in text.upper().split("|"):
        if word in table:
            return table[word]
        if word.isdecimal():
            return int(word)
    return 0


def port(text: str) -> int:
    """A port, 0 when it is none."""
    return int(text) if text.isdecimal() and int(text) <= 65535 else 0
