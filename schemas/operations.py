# SPDX-License-Identifier: Apache-2.0
"""What a workload can be seen doing: operations, access modes, enforcers. Numbers are on disk and in the kernel: append only."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Operation(IntEnum):
    """One thing a task did, as the kernel programs number it."""

    EXEC = 1
    EXIT = 2
    OPEN = 10
    CREATE = 11
    UNLINK = 12
    RENAME = 13
    MKDIR = 14
    RMDIR = 15
    LINK = 16
    SYMLINK = 17
    CHMOD = 18
    CHOWN = 19
    TRUNCATE = 20
    MOUNT = 21
    UMOUNT = 22
    MKNOD = 23
    SOCKET = 30
    BIND = 31
    LISTEN = 32
    CONNECT = 33
    ACCEPT = 34
    SEND = 35
    DNS = 36
    SETUID = 40
    SETGID = 41
    PTRACE = 42
    CAPABLE = 43
    MODULE = 44
    BPF = 45
    MMAP = 46
    CALL = 47
    """A watched system call that is none of the others: `Behaviour.syscall_name` says which (schemas/watched.py)."""
    DEVICE = 50


class Class(IntEnum):
    """KubeArmor's `Operation` of an alert; also the unit of visibility and of default posture (kubearmor.md 3.3, 2.1)."""

    PROCESS = 1
    FILE = 2
    NETWORK = 3
    CAPABILITIES = 4
    SYSCALL = 5
    DEVICE = 6

    @property
    def label(self) -> str:
        """The word in alerts: `Process`, `File`, ..."""
        return self.name.capitalize()


def _class(operation: Operation) -> Class:
    """CREATE..MKNOD are file operations, SETUID/SETGID/PTRACE/MODULE/BPF system calls."""
    if operation <= Operation.EXIT or operation is Operation.MMAP:
        return Class.PROCESS
    if operation in (Operation.MOUNT, Operation.UMOUNT):
        return Class.SYSCALL
    if operation < Operation.SOCKET:
        return Class.FILE
    if operation < Operation.SETUID:
        return Class.NETWORK
    if operation is Operation.CAPABLE:
        return Class.CAPABILITIES
    return Class.DEVICE if operation is Operation.DEVICE else Class.SYSCALL


_CLASSES = {operation: _class(operation) for operation in Operation}


def class_of(operation: Operation) -> Class:
    """The class an operation belongs to."""
    return _CLASSES[operation]


class Access(IntFlag):
    """What was done to the resource; a rule with `readOnly` allows READ alone."""

    READ = 1
    WRITE = 2
    APPEND = 4
    EXEC = 8
    CREATE = 16
    TRUNCATE = 32
    DELETE = 64
    METADATA = 128
    DIRECTORY = 256
    PARTIAL = 512
    """The path in the behaviour is not whole: it could not be resolved or did not fit. Never to be matched as if it were."""
    OWN = 1024
    """Opened below `/proc/<pid>/` of the process itself."""
    UNTOLD = 2048
    """One of many: its container made more new names than the node could tell, so paths, addresses and arguments were left
    out. Counted exactly, never judged."""

    @classmethod
    def _missing_(cls, value: object) -> Access:
        # Asked for each behaviour that is decoded with more than one of these. The library makes the same member anew: 7 of 8 us.
        known = cls._value2member_map_.get(value)
        return known if isinstance(known, cls) else super()._missing_(value)

    @property
    def changes(self) -> bool:
        """Whether anything but reading or executing is asked for."""
        return bool(
            self & (Access.WRITE | Access.APPEND | Access.CREATE | Access.TRUNCATE | Access.DELETE | Access.METADATA)
        )


class Backend(IntEnum):
    """Who stopped an operation (`Enforcer` of an alert). OBSERVER: nobody did, it was only seen."""

    OBSERVER = 0
    BPF_LSM = 1
    APPARMOR = 2
    CGROUP = 3
    SIGNAL = 4
